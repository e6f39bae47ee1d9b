//! One status for many locks, and their renewal: what the broker answers of the whole, asked again of each where it fails.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use futures_util::future::join_all;
use polybus_core::{Error, ErrorKind, Result, driver::kit::lease::within};
use tokio::time::Instant;

use crate::{
    amqp::{
        consumer::{Feed, Held},
        management::Status,
        receive_task::Fate,
        sessions::Session,
    },
    error,
};

/// Most lock tokens in one request.
pub(crate) const ENTRIES: usize = 500;

/// What the broker knows a delivery by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lock {
    pub(crate) token: uuid::Uuid,
    /// One request is for one partition.
    pub(crate) partition: u16,
}

impl Feed {
    /// Indices of what may go into one request: of one partition each, since the broker refuses what names several.
    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-partitioning>
    fn together(&self, locks: impl Iterator<Item = (usize, Lock)>) -> Vec<Vec<usize>> {
        let most = if self.one_by_one.load(Ordering::Acquire) { 1 } else { ENTRIES };
        let mut groups: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (i, lock) in locks {
            groups.entry(lock.partition).or_default().push(i);
        }
        groups.into_values().flat_map(|group| group.chunks(most).map(<[usize]>::to_vec).collect::<Vec<_>>()).collect()
    }

    /// A request for several locks was refused: `each` tells whether any lock of it was the cause. If none was, the broker takes one at a time.
    fn learn_from<T>(&self, e: &Error, each: &[Result<T>]) {
        if e.kind() != ErrorKind::LockLost
            && each.iter().all(Result::is_ok)
            && !self.one_by_one.swap(true, Ordering::AcqRel)
        {
            tracing::info!(source = %self.source, error = %e, "the broker takes no request for several locks here: one each from now on");
        }
    }

    /// Settles locks that no session holds; one result each.
    pub(crate) async fn settle_locks(&self, locks: &[Lock], status: &Status) -> Vec<Result<()>> {
        let mut results = vec![Ok(()); locks.len()];
        let groups = self.together(locks.iter().copied().enumerate());
        let settled = join_all(groups.into_iter().map(|group| async move {
            let tokens: Vec<uuid::Uuid> = group.iter().map(|i| locks[*i].token).collect();
            let done = match self.management.settle(&tokens, status, None).await {
                Err(e) if group.len() > 1 && !passing(&e) => {
                    let each = tokens.chunks(1).map(|one| self.management.settle(one, status, None));
                    let each = join_all(each).await;
                    self.learn_from(&e, &each);
                    each
                }
                done => vec![done; group.len()],
            };
            (group, done)
        }));
        for (group, done) in settled.await {
            for (i, done) in group.into_iter().zip(done) {
                results[i] = done.map_err(|e| lost(e, None));
            }
        }
        results
    }

    /// Settles those of `which` with one status. Where a request for many fails, each is asked for itself: the broker does not
    /// say which one was lost.
    pub(crate) async fn settle_all(
        &self,
        held: &[&Held],
        which: &[usize],
        status: &Status,
        results: &mut [Result<()>],
    ) {
        let mut left = Vec::new();
        for i in which {
            match self.holds(held[*i]) {
                true => left.push(*i),
                false => results[*i] = Err(not_held()),
            }
        }
        // Sessions have locks of their own.
        let (alone, together): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|i| held[*i].session.is_some());
        let groups = self.together(together.into_iter().map(|i| (i, held[i].lock)));
        let groups = groups.into_iter().chain(alone.into_iter().map(|i| vec![i]));
        let settled = join_all(groups.map(|group| self.settle_group(held, group, status))).await;
        for (i, result) in settled.into_iter().flatten() {
            results[i] = result;
        }
    }

    pub(crate) async fn settle_group(
        &self,
        held: &[&Held],
        group: Vec<usize>,
        status: &Status,
    ) -> Vec<(usize, Result<()>)> {
        let session = group.first().and_then(|i| held[*i].session.as_deref());
        let locks: Vec<uuid::Uuid> = group.iter().map(|i| held[*i].lock.token).collect();
        let settled = self.management.settle(&locks, status, session).await;
        match settled.map_err(|e| lost(e, session)) {
            Ok(()) => {
                self.settled(held, &group, *status == Status::Completed);
                group.into_iter().map(|i| (i, Ok(()))).collect()
            }
            Err(e) if group.len() > 1 && !passing(&e) => {
                let each = locks.chunks(1).map(|lock| self.management.settle(lock, status, None));
                let each = join_all(each).await;
                self.learn_from(&e, &each);
                let one = |(i, settled): (usize, Result<()>)| {
                    if settled.is_ok() {
                        self.settled(held, &[i], *status == Status::Completed);
                    }
                    (i, settled.map_err(|e| lost(e, None)).inspect_err(|e| self.note(held[i], e)))
                };
                group.into_iter().zip(each).map(one).collect()
            }
            Err(e) => {
                group.iter().for_each(|i| self.note(held[*i], &e));
                group.into_iter().map(|i| (i, Err(e.clone()))).collect()
            }
        }
    }

    pub(crate) fn note(&self, held: &Held, e: &Error) {
        if e.kind() == ErrorKind::LockLost {
            self.forget(held);
        }
    }

    /// The broker has done it: forget the deliveries, and let their links forget them.
    fn settled(&self, held: &[&Held], group: &[usize], completed: bool) {
        let over = self.let_go(group.iter().map(|i| held[*i].lock.token));
        // Usually one link; after a reconnect some may be of an earlier one.
        let Some(first) = group.first().map(|i| held[*i]) else { return };
        match (&first.session, &first.pump) {
            (Some(session), _) => over.into_iter().for_each(|info| session.settled(info, completed)),
            (None, Some(pump)) => {
                pump.forget(over, if completed { Fate::Completed } else { Fate::Released });
            }
            (None, None) => {}
        }
    }

    /// Renews locks; each one's new local deadline. Sessions have one lock for all of theirs.
    pub(crate) async fn renew_all(&self, held: &[&Held]) -> Vec<Result<Instant>> {
        let mut results: Vec<Result<Instant>> = held.iter().map(|_| Err(not_held().with_operation("extend"))).collect();
        let open = (0..held.len()).filter(|i| self.holds(held[*i]));
        let (alone, together): (Vec<usize>, Vec<usize>) = open.partition(|i| held[*i].session.is_some());
        let locks: Vec<Lock> = together.iter().map(|i| held[*i].lock).collect();
        let sessions = alone.into_iter().filter_map(|i| Some((i, held[i].session.as_deref()?)));
        let sessions = sessions.map(|(i, session)| async move { (i, self.renew_session(session).await) });
        let (renewed, sessions) = tokio::join!(self.renew_locks(&locks), join_all(sessions));
        for (i, result) in together.into_iter().zip(renewed).chain(sessions) {
            match &result {
                Ok(from) => self.renewed(held[i], *from),
                Err(e) => self.note(held[i], e),
            }
            results[i] = result.map(|from| self.deadline(from));
        }
        results
    }

    /// Renews locks of messages without a session; from when each counts now.
    pub(crate) async fn renew_locks(&self, locks: &[Lock]) -> Vec<Result<Instant>> {
        let mut results: Vec<Result<Instant>> =
            locks.iter().map(|_| Err(not_held().with_operation("extend"))).collect();
        let groups = self.together(locks.iter().copied().enumerate());
        let renewed = join_all(groups.into_iter().map(|group| async move {
            let tokens: Vec<uuid::Uuid> = group.iter().map(|i| locks[*i].token).collect();
            // Each bounded by itself: what hangs, as one partition may, takes no other's answer along.
            let renewed = within(self.lock(), async { Ok(self.renew_group(&tokens).await) }).await;
            (group, renewed.unwrap_or_else(|e| e.for_each_of(tokens.len())))
        }));
        for (group, renewed) in renewed.await {
            group.into_iter().zip(renewed).for_each(|(i, renewed)| results[i] = renewed);
        }
        results
    }

    async fn renew_group(&self, locks: &[uuid::Uuid]) -> Vec<Result<Instant>> {
        match self.renew(locks).await {
            Err(e) if locks.len() > 1 && !passing(&e) => {
                let each = join_all(locks.chunks(1).map(|lock| self.renew(lock))).await;
                self.learn_from(&e, &each);
                each
            }
            renewed => vec![renewed; locks.len()],
        }
    }

    async fn renew(&self, locks: &[uuid::Uuid]) -> Result<Instant> {
        let from = Instant::now();
        self.management.renew(locks).await.map(|()| from).map_err(|e| lost(e, None))
    }

    /// From when the lock of a session counts now.
    pub(crate) async fn renew_session(&self, session: &Session) -> Result<Instant> {
        let from = Instant::now();
        self.management.renew_session(session).await.map_err(|e| lost(e, Some(session)))?;
        session.renewed(from);
        Ok(from)
    }
}

/// What an error says of the delivery: with its entity or its session's connection it is gone.
fn lost(e: Error, session: Option<&Session>) -> Error {
    match e.kind() {
        ErrorKind::NotFound => error::lock_lost("the entity is gone, and the message with it").with_source(e),
        ErrorKind::LockLost => e,
        _ if session.is_some_and(|s| !s.alive()) => {
            error::lock_lost("the session is gone with its connection").with_source(e)
        }
        _ => e,
    }
}

fn passing(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled | ErrorKind::Closed)
}

/// What is said of a delivery that this side knows to be gone.
pub(crate) fn not_held() -> Error {
    error::lock_lost("the lock has run out, or the message was settled before")
}
