//! Settling and renewing many locks with one request, and with one request each where that is refused.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use futures_util::future::join_all;
use polybus_core::{Error, ErrorKind, Result, driver::kit::lease::within};
use tokio::time::Instant;

use crate::{
    amqp::{
        consumer::{AmqpConsumer, AmqpDelivery},
        management::SettleStatus,
        receive_task::Disposition,
        sessions::MessageSession,
    },
    error,
};

/// The most lock tokens in one request.
const TOKENS_PER_REQUEST: usize = 500;

/// The lock of a message. The management node settles and renews by its token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MessageLock {
    pub(crate) token: uuid::Uuid,
    /// Where the message is stored: the locks of one request must be of one partition.
    pub(crate) partition: u16,
}

impl AmqpConsumer {
    /// Indices of the locks that may share a request. They are of one partition each, since the broker refuses a
    /// request for several.
    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-partitioning>
    fn groups_by_partition(&self, locks: impl Iterator<Item = (usize, MessageLock)>) -> Vec<Vec<usize>> {
        let most = if self.one_lock_per_request.load(Ordering::Acquire) { 1 } else { TOKENS_PER_REQUEST };
        let mut groups: BTreeMap<u16, Vec<usize>> = BTreeMap::new();
        for (i, lock) in locks {
            groups.entry(lock.partition).or_default().push(i);
        }
        groups.into_values().flat_map(|group| group.chunks(most).map(<[usize]>::to_vec).collect::<Vec<_>>()).collect()
    }

    /// A request for several locks was refused, and `each` holds the results of one request for each lock. If all of
    /// them succeeded, no lock was the cause: then the broker takes only one lock per request here.
    fn learn_from_refusal<T>(&self, e: &Error, each: &[Result<T>]) {
        if e.kind() != ErrorKind::LockLost
            && each.iter().all(Result::is_ok)
            && !self.one_lock_per_request.swap(true, Ordering::AcqRel)
        {
            tracing::info!(source = %self.source, error = %e, "the broker takes no request for several locks here: one each from now on");
        }
    }

    /// Settles locks of messages without a session; one result each.
    pub(crate) async fn settle_locks(&self, locks: &[MessageLock], status: &SettleStatus) -> Vec<Result<()>> {
        let mut results = vec![Ok(()); locks.len()];
        let groups = self.groups_by_partition(locks.iter().copied().enumerate());
        let settled = join_all(groups.into_iter().map(|group| async move {
            let tokens: Vec<uuid::Uuid> = group.iter().map(|i| locks[*i].token).collect();
            let settled = self.settle_tokens(&tokens, status, None).await;
            (group, settled)
        }));
        for (group, settled) in settled.await {
            group.into_iter().zip(settled).for_each(|(i, settled)| results[i] = settled);
        }
        results
    }

    /// Settles locks with one request. Where it is refused each lock is settled for itself: the broker does not say
    /// which of them was the cause.
    async fn settle_tokens(
        &self,
        tokens: &[uuid::Uuid],
        status: &SettleStatus,
        session: Option<&MessageSession>,
    ) -> Vec<Result<()>> {
        let settle = |tokens| async move {
            self.management.settle(tokens, status, session).await.map_err(|e| as_lock_lost(e, session))
        };
        match settle(tokens).await {
            Err(e) if tokens.len() > 1 && !is_passing(&e) => {
                let each = join_all(tokens.chunks(1).map(settle)).await;
                self.learn_from_refusal(&e, &each);
                each
            }
            settled => vec![settled; tokens.len()],
        }
    }

    /// Settles the deliveries at the indices `which` with one status.
    pub(crate) async fn settle_all(
        &self,
        held: &[&AmqpDelivery],
        which: &[usize],
        status: &SettleStatus,
        results: &mut [Result<()>],
    ) {
        let mut left = Vec::new();
        for i in which {
            match self.holds(held[*i]) {
                true => left.push(*i),
                false => results[*i] = Err(error::not_held()),
            }
        }
        // A message of a session takes a request of its own, which names the session.
        let (alone, together): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|i| held[*i].session.is_some());
        let groups = self.groups_by_partition(together.into_iter().map(|i| (i, held[i].lock)));
        let groups = groups.into_iter().chain(alone.into_iter().map(|i| vec![i]));
        let settled = join_all(groups.map(|group| self.settle_group(held, group, status))).await;
        for (i, result) in settled.into_iter().flatten() {
            results[i] = result;
        }
    }

    pub(crate) async fn settle_group(
        &self,
        held: &[&AmqpDelivery],
        group: Vec<usize>,
        status: &SettleStatus,
    ) -> Vec<(usize, Result<()>)> {
        let session = group.first().and_then(|i| held[*i].session.as_deref());
        let locks: Vec<uuid::Uuid> = group.iter().map(|i| held[*i].lock.token).collect();
        let settled = self.settle_tokens(&locks, status, session).await;
        let completed = *status == SettleStatus::Completed;
        if settled.iter().all(Result::is_ok) {
            self.finish_settled(held, &group, completed);
        } else {
            group.iter().zip(&settled).for_each(|(i, settled)| match settled {
                Ok(()) => self.finish_settled(held, &[*i], completed),
                Err(e) => self.forget_if_lost(held[*i], e),
            });
        }
        group.into_iter().zip(settled).collect()
    }

    pub(crate) fn forget_if_lost(&self, held: &AmqpDelivery, e: &Error) {
        if e.kind() == ErrorKind::LockLost {
            self.forget(held);
        }
    }

    /// The broker has settled these: removes them here, and lets their link forget them.
    fn finish_settled(&self, held: &[&AmqpDelivery], group: &[usize], completed: bool) {
        let over = self.remove_unsettled(group.iter().map(|i| held[*i].lock.token));
        // All of a group are told to the link of the first. Usually they came over one link; after a reconnect some may
        // be of an earlier one, which is gone.
        let Some(first) = group.first().map(|i| held[*i]) else { return };
        match (&first.session, &first.task) {
            (Some(session), _) => over.into_iter().for_each(|info| session.settled(info, completed)),
            (None, Some(task)) => {
                task.settle(over, if completed { Disposition::Completed } else { Disposition::Released });
            }
            (None, None) => {}
        }
    }

    /// Renews the locks of deliveries, and returns the new deadline of each. The messages of a session share its lock.
    pub(crate) async fn renew_all(&self, held: &[&AmqpDelivery]) -> Vec<Result<Instant>> {
        let mut results: Vec<Result<Instant>> = vec![Err(error::not_held().with_operation("extend")); held.len()];
        let open = (0..held.len()).filter(|i| self.holds(held[*i]));
        let (alone, together): (Vec<usize>, Vec<usize>) = open.partition(|i| held[*i].session.is_some());
        let locks: Vec<MessageLock> = together.iter().map(|i| held[*i].lock).collect();
        let sessions = alone.into_iter().filter_map(|i| Some((i, held[i].session.as_deref()?)));
        let sessions = sessions.map(|(i, session)| async move { (i, self.renew_session(session).await) });
        let (renewed, sessions) = tokio::join!(self.renew_locks(&locks), join_all(sessions));
        for (i, result) in together.into_iter().zip(renewed).chain(sessions) {
            match &result {
                Ok(from) => self.unsettled.renewed(&held[i].lock.token, *from),
                Err(e) => self.forget_if_lost(held[i], e),
            }
            results[i] = result.map(|from| self.deadline(from));
        }
        results
    }

    /// Renews the locks of messages without a session. Returns when each began anew.
    pub(crate) async fn renew_locks(&self, locks: &[MessageLock]) -> Vec<Result<Instant>> {
        let mut results: Vec<Result<Instant>> = vec![Err(error::not_held().with_operation("extend")); locks.len()];
        let groups = self.groups_by_partition(locks.iter().copied().enumerate());
        let renewed = join_all(groups.into_iter().map(|group| async move {
            let tokens: Vec<uuid::Uuid> = group.iter().map(|i| locks[*i].token).collect();
            // Each request has a limit of its own: one that hangs, as one partition may, delays no other result.
            let renewed = within(self.lock_duration(), async { Ok(self.renew_group(&tokens).await) }).await;
            (group, renewed.unwrap_or_else(|e| e.for_each_of(tokens.len())))
        }));
        for (group, renewed) in renewed.await {
            group.into_iter().zip(renewed).for_each(|(i, renewed)| results[i] = renewed);
        }
        results
    }

    async fn renew_group(&self, locks: &[uuid::Uuid]) -> Vec<Result<Instant>> {
        match self.renew(locks).await {
            Err(e) if locks.len() > 1 && !is_passing(&e) => {
                let each = join_all(locks.chunks(1).map(|lock| self.renew(lock))).await;
                self.learn_from_refusal(&e, &each);
                each
            }
            renewed => vec![renewed; locks.len()],
        }
    }

    async fn renew(&self, locks: &[uuid::Uuid]) -> Result<Instant> {
        let from = Instant::now();
        self.management.renew(locks).await.map(|()| from).map_err(|e| as_lock_lost(e, None))
    }

    /// Renews the lock of a session, and returns when it began anew.
    pub(crate) async fn renew_session(&self, session: &MessageSession) -> Result<Instant> {
        let from = Instant::now();
        self.management.renew_session(session).await.map_err(|e| as_lock_lost(e, Some(session)))?;
        session.renewed(from);
        Ok(from)
    }
}

/// `LockLost` where the error means that the delivery is gone: with its entity, or with the connection of its session.
fn as_lock_lost(e: Error, session: Option<&MessageSession>) -> Error {
    match e.kind() {
        ErrorKind::NotFound => error::lock_lost("the entity is gone, and the message with it").with_source(e),
        ErrorKind::LockLost => e,
        _ if session.is_some_and(|s| !s.is_alive()) => {
            error::lock_lost("the session is gone with its connection").with_source(e)
        }
        _ => e,
    }
}

fn is_passing(e: &Error) -> bool {
    e.is_transient() || e.kind() == ErrorKind::Closed
}
