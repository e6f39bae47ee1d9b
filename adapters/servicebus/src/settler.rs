//! Settling deliveries on the management link, where the broker answers.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use polybus_core::{
    Batching, DeadLetter, Entity, Error, Kind, Result, Settle, Settlement, Settler, Source, Token,
    cloudevents::{self, Carried},
};
use time::OffsetDateTime;
use tokio::time::{Instant, timeout};

use crate::{
    config,
    envelope::{self, Postage},
    error,
    feed::{Feed, Held},
    hold,
    http::Http,
    management::{Management, Scheduled, Status},
    names::Place,
    outlet::Outlet,
    sessions::Session,
    targeting::Targeting,
};

/// Most lock tokens in one request.
const ENTRIES: usize = 500;
/// How long closing tries to give back what is held.
const GOODBYE: Duration = Duration::from_secs(5);

pub(crate) struct ServicebusSettler {
    feed: Arc<Feed>,
    /// Of the queue or topic that copies go to.
    target: Arc<Management>,
    outlet: Arc<Outlet>,
    place: Place,
    ordered: bool,
    deduplicated: bool,
    /// On subscriptions: whether copies reach this one alone.
    targeting: Option<Targeting>,
    /// How long a message is held in place where they do not.
    max_hold: Duration,
}

impl ServicebusSettler {
    pub(crate) fn new(feed: Arc<Feed>, http: Arc<Http>, from: &Entity<Source>) -> Result<Self> {
        let place = Place::of(from);
        let wires = feed.wires.clone();
        Ok(Self {
            target: match (&place, from.name.is_dead_letters()) {
                (Place::Queue(_), false) => feed.management.clone(),
                _ => Arc::new(Management::new(wires.clone(), place.address())),
            },
            outlet: Arc::new(Outlet::new(wires, place.address())),
            targeting: place.target().map(|_| Targeting::new(http, place.address())),
            max_hold: from.settings.max_hold,
            feed,
            place,
            ordered: from.settings.ordered,
            deduplicated: config::options(from)?.duplicate_detection.is_some(),
        })
    }

    fn dead(&self) -> bool {
        self.feed.source.is_dead_letters()
    }

    /// Settles those of `which` with one status. Where a request for many fails, each is asked for itself: the broker does not
    /// say which one was lost.
    async fn settle_all(&self, held: &[&Held], which: &[usize], status: &Status, results: &mut [Result<()>]) {
        let mut left = Vec::new();
        for i in which {
            match self.feed.holds(held[*i]) {
                true => left.push(*i),
                false => results[*i] = Err(error::lock_lost("the lock has run out, or the message was settled before")),
            }
        }
        // Sessions have locks of their own.
        let (alone, together): (Vec<usize>, Vec<usize>) = left.into_iter().partition(|i| held[*i].session.is_some());
        let groups = together.chunks(ENTRIES).map(<[usize]>::to_vec).chain(alone.into_iter().map(|i| vec![i]));
        let settled = join_all(groups.map(|group| self.settle_group(held, group, status))).await;
        for (i, result) in settled.into_iter().flatten() {
            results[i] = result;
        }
    }

    async fn settle_group(&self, held: &[&Held], group: Vec<usize>, status: &Status) -> Vec<(usize, Result<()>)> {
        let session = group.first().and_then(|i| held[*i].session.as_ref());
        let locks: Vec<uuid::Uuid> = group.iter().map(|i| held[*i].lock).collect();
        let settled = self.feed.management.settle(&locks, status, session.map(|s| s.id())).await;
        match settled.map_err(|e| lost(e, session.map(|s| &**s))) {
            Ok(()) => {
                self.settled(held, &group, *status == Status::Completed);
                group.into_iter().map(|i| (i, Ok(()))).collect()
            }
            Err(e) if group.len() > 1 && !passing(&e) => {
                let each = group.into_iter().map(|i| async move {
                    let settled = self.feed.management.settle(&[held[i].lock], status, None).await;
                    if settled.is_ok() {
                        self.settled(held, &[i], *status == Status::Completed);
                    }
                    (i, settled.map_err(|e| lost(e, None)).inspect_err(|e| self.note(held[i], e)))
                });
                join_all(each).await
            }
            Err(e) => {
                group.iter().for_each(|i| self.note(held[*i], &e));
                group.into_iter().map(|i| (i, Err(e.clone()))).collect()
            }
        }
    }

    fn note(&self, held: &Held, e: &Error) {
        if e.kind() == Kind::LockLost {
            self.feed.let_go(&held.lock);
        }
    }

    /// The broker has done it: forget the deliveries, and let their links forget them.
    fn settled(&self, held: &[&Held], group: &[usize], completed: bool) {
        for i in group {
            self.feed.let_go(&held[*i].lock);
        }
        // Usually one link; after a reconnect some may be of an earlier one.
        if let Some(first) = group.first() {
            match &held[*first].session {
                Some(session) => session.settled(held[*first].info.clone(), completed),
                None => {
                    let infos = group.iter().map(|i| held[*i].info.clone()).collect();
                    if let Some(pump) = &held[*first].pump {
                        pump.forget(infos, completed);
                    }
                }
            }
        }
    }

    /// Schedules a copy of each, tells their numbers.
    async fn schedule(
        &self,
        batch: &[Settle],
        held: &[&Held],
        which: &[usize],
        results: &mut [Result<()>],
    ) -> Vec<(usize, i64)> {
        let limit = self.feed.wires.config.max_message_size;
        let (mut groups, mut size) = (vec![Vec::new()], 0);
        for i in which {
            let Settlement::RetryAfter(delay) = &batch[*i].how else { continue };
            if !self.feed.holds(held[*i]) {
                results[*i] = Err(error::lock_lost("the lock has run out, or the message was settled before"));
                continue;
            }
            match self.later(&batch[*i], held[*i], *delay) {
                Ok(message) => {
                    if size + message.encoded.len() > limit && size > 0 {
                        groups.push(Vec::new());
                        size = 0;
                    }
                    size += message.encoded.len() + 256;
                    if let Some(group) = groups.last_mut() {
                        group.push((*i, message));
                    }
                }
                Err(e) => results[*i] = Err(e),
            }
        }
        let mut made = Vec::new();
        for group in groups.into_iter().filter(|g| !g.is_empty()) {
            let (indices, messages): (Vec<usize>, Vec<Scheduled>) = group.into_iter().unzip();
            match self.target.schedule(messages).await {
                Ok(numbers) => made.extend(indices.into_iter().zip(numbers)),
                Err(e) => indices.into_iter().for_each(|i| results[i] = Err(unsure(e.clone()))),
            }
        }
        made
    }

    fn later(&self, settle: &Settle, held: &Held, delay: Duration) -> Result<Scheduled> {
        let envelope = &settle.envelope;
        let postage = Postage {
            ordered: self.ordered,
            deduplicated: self.deduplicated,
            enqueue_at: Some(OffsetDateTime::now_utc() + delay),
            target: self.place.target(),
        };
        let carried = Carried::new(held.hop.saturating_add(1), settle.attempt);
        let message_id = envelope::message_id(envelope, &carried, &postage);
        let encoded = envelope::copy(&held.native, envelope, &carried, &postage)?;
        Ok(Scheduled { message_id, session: None, encoded })
    }

    /// Copies for later, then settles what was copied.
    async fn retry(&self, batch: &[Settle], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        let made = self.schedule(batch, held, which, results).await;
        let copied: Vec<usize> = made.iter().map(|(i, _)| *i).collect();
        self.settle_all(held, &copied, &Status::Completed, results).await;
        let failed: Vec<(usize, i64)> = made.into_iter().filter(|(i, _)| results[*i].is_err()).collect();
        if failed.is_empty() {
            return;
        }
        // The original comes back, so its copy must not; unless it was settled and only the answer was lost.
        let numbers: Vec<i64> = failed.iter().map(|(_, n)| *n).collect();
        let lost = failed.iter().all(|(i, _)| results[*i].as_ref().is_err_and(|e| e.kind() == Kind::LockLost));
        if lost && self.target.cancel(&numbers).await.is_ok() {
            return;
        }
        for (i, _) in failed {
            if let Err(e) = &results[i] {
                results[i] = Err(e.clone().may_duplicate().with("copy", "kept"));
            }
        }
    }

    /// Copies to the live source, then settles what was copied.
    async fn redrive(&self, batch: &[Settle], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        let postage = Postage {
            ordered: self.ordered,
            deduplicated: self.deduplicated,
            enqueue_at: None,
            target: self.place.target(),
        };
        let (mut indices, mut copies) = (Vec::new(), Vec::new());
        for i in which {
            if !self.feed.holds(held[*i]) {
                results[*i] = Err(error::lock_lost("the lock has run out, or the message was settled before"));
                continue;
            }
            let carried = Carried::new(held[*i].hop.saturating_add(1), 0);
            match envelope::copy(&held[*i].native, &batch[*i].envelope, &carried, &postage) {
                Ok(copy) => {
                    indices.push(*i);
                    copies.push(Bytes::from(copy));
                }
                Err(e) => results[*i] = Err(e),
            }
        }
        let mut copied = Vec::new();
        for (indices, copies) in by_size(indices, copies, self.feed.wires.config.max_message_size) {
            for (i, sent) in indices.into_iter().zip(self.outlet.send(copies).await) {
                match sent {
                    Ok(()) => copied.push(i),
                    Err(e) => results[i] = Err(e.operation("settle")),
                }
            }
        }
        self.settle_all(held, &copied, &Status::Completed, results).await;
        for i in copied {
            if let Err(e) = &results[i] {
                results[i] = Err(e.clone().may_duplicate().with("copy", "kept"));
            }
        }
    }

    /// What dead letters tell beside reason and detail, which the broker has fields for.
    fn burial(&self, settle: &Settle, held: &Held, reason: &str, detail: &str) -> Status {
        let mut told = DeadLetter::default();
        told.attempt = Some(settle.attempt);
        told.origin = Some(self.feed.source.to_string().into());
        told.time = Some(OffsetDateTime::now_utc());
        let mut carried = Carried::default();
        carried.dead_letter = Some(Box::new(told));
        let mut notes = vec![(envelope::DELIVERIES.to_owned(), held.native.delivery_count.to_string())];
        cloudevents::encode_carried(&carried, &mut |name, value| notes.push((name.to_owned(), value.to_owned())));
        Status::DeadLettered { reason: reason.into(), detail: detail.into(), notes }
    }

    async fn settle_batch(&self, batch: &[Settle], held: &[&Held]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let (mut acks, mut releases, mut retries, mut redrives) = (vec![], vec![], vec![], vec![]);
        let mut burials = vec![];
        for (i, settle) in batch.iter().enumerate() {
            match &settle.how {
                Settlement::Ack => acks.push(i),
                Settlement::GiveBack if self.give_back(held[i]) => {}
                Settlement::Release | Settlement::GiveBack => releases.push(i),
                Settlement::RetryAfter(_) if !self.dead() => retries.push(i),
                Settlement::DeadLetter { reason, detail } if !self.dead() => {
                    burials.push((i, self.burial(settle, held[i], reason, detail)));
                }
                Settlement::Redrive if self.dead() => redrives.push(i),
                other => {
                    let text = format!("{other:?} on {}", self.feed.source);
                    results[i] = Err(Error::unsupported(text).operation("settle"));
                }
            }
        }
        self.settle_all(held, &acks, &Status::Completed, &mut results).await;
        self.settle_all(held, &releases, &Status::Abandoned, &mut results).await;
        let buried = join_all(burials.into_iter().map(|(i, status)| async move {
            if !self.feed.holds(held[i]) {
                return (i, Err(error::lock_lost("the lock has run out, or the message was settled before")));
            }
            match self.settle_group(held, vec![i], &status).await.pop() {
                Some(done) => done,
                None => (i, Err(error::new(Kind::Unexpected, "settle", "no answer"))),
            }
        }));
        for (i, result) in buried.await {
            results[i] = result;
        }
        if !retries.is_empty() {
            if self.ordered {
                self.hold(batch, held, &retries, &mut results);
            } else if self.is_exact().await {
                self.retry(batch, held, &retries, &mut results).await;
            } else {
                self.keep(batch, held, &retries, &mut results);
            }
        }
        if !redrives.is_empty() {
            if self.is_exact().await {
                self.redrive(batch, held, &redrives, &mut results).await;
            } else {
                let text =
                    "the topic has rules that polybus did not make: what is moved back could reach other subscriptions";
                let refused = Error::unsupported(text).operation("settle");
                redrives.iter().for_each(|i| results[*i] = Err(refused.clone()));
            }
        }
        results
    }

    /// Gives deliveries back to the broker.
    async fn give_up(&self, locks: &[uuid::Uuid]) {
        let management = &self.feed.management;
        match management.settle(locks, &Status::Abandoned, None).await {
            // One that is lost must not keep the others from going back at once.
            Err(e) if !passing(&e) && locks.len() > 1 => {
                join_all(locks.chunks(1).map(|lock| management.settle(lock, &Status::Abandoned, None))).await;
            }
            _ => {}
        }
    }

    /// What was never handed out goes back uncounted, which only its link can do. The broker does not answer; at worst it comes
    /// back when its lock ends. False if the link is gone.
    fn give_back(&self, held: &Held) -> bool {
        let Some(pump) = held.pump.as_ref().filter(|_| self.feed.holds(held)) else { return false };
        let sent = pump.forget(vec![held.info.clone()], false);
        if sent {
            self.feed.let_go(&held.lock);
        }
        sent
    }

    async fn is_exact(&self) -> bool {
        match &self.targeting {
            Some(targeting) => targeting.is_exact().await,
            None => true,
        }
    }

    /// In place without a session: the lock is renewed until the time has come.
    fn keep(&self, batch: &[Settle], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        for i in which {
            let (held, Settlement::RetryAfter(delay)) = (held[*i], &batch[*i].how) else { continue };
            results[*i] = if !self.feed.holds(held) {
                Err(error::lock_lost("the lock has run out, or the message was settled before"))
            } else if *delay > self.max_hold {
                let text =
                    "the topic has rules that polybus did not make, so a retry holds the message: longer than max_hold";
                Err(Error::unsupported(text).operation("settle"))
            } else {
                hold::start(self.feed.clone(), held, *delay);
                Ok(())
            };
        }
    }

    /// In place: the session is kept, and its message abandoned when the time has come.
    fn hold(&self, batch: &[Settle], held: &[&Held], which: &[usize], results: &mut [Result<()>]) {
        for i in which {
            let (held, how) = (held[*i], &batch[*i].how);
            let session = held.session.as_ref().filter(|_| self.feed.holds(held));
            results[*i] = match (session, how) {
                (Some(session), Settlement::RetryAfter(delay)) => {
                    self.feed.let_go(&held.lock);
                    session.hold(held.info.clone(), *delay);
                    Ok(())
                }
                _ => Err(error::lock_lost("the session is gone")),
            };
        }
    }
}

/// What could not be told in one answer may have been done.
fn unsure(e: Error) -> Error {
    if matches!(e.kind(), Kind::Unavailable | Kind::Timeout) { e.may_duplicate() } else { e }
}

/// What an error says of the delivery: with its entity or its session's connection it is gone.
fn lost(e: Error, session: Option<&Session>) -> Error {
    match e.kind() {
        Kind::NotFound => error::lock_lost("the entity is gone, and the message with it").caused_by(e),
        Kind::LockLost => e,
        _ if session.is_some_and(|s| !s.alive()) => {
            error::lock_lost("the session is gone with its connection").caused_by(e)
        }
        _ => e,
    }
}

fn passing(e: &Error) -> bool {
    matches!(e.kind(), Kind::Unavailable | Kind::Timeout | Kind::Throttled | Kind::Closed)
}

fn by_size(indices: Vec<usize>, copies: Vec<Bytes>, limit: usize) -> Vec<(Vec<usize>, Vec<Bytes>)> {
    let mut groups: Vec<(Vec<usize>, Vec<Bytes>)> = Vec::new();
    let mut size = 0;
    for (i, copy) in indices.into_iter().zip(copies) {
        let own = copy.len() + envelope::IN_BATCH;
        if groups.is_empty() || size + own > limit {
            groups.push(Default::default());
            size = 0;
        }
        size += own;
        if let Some((indices, copies)) = groups.last_mut() {
            indices.push(i);
            copies.push(copy);
        }
    }
    groups
}

#[async_trait]
impl Settler for ServicebusSettler {
    fn batching(&self) -> Batching {
        Batching::new(ENTRIES, 8 << 20, 4)
    }

    async fn settle(&self, batch: &[Settle]) -> Vec<Result<()>> {
        let mut held = Vec::with_capacity(batch.len());
        for settle in batch {
            match settle.token.get::<Held>() {
                Ok(found) => held.push(found),
                Err(e) => return e.for_each_of(batch.len()),
            }
        }
        self.settle_batch(batch, &held).await
    }

    async fn extend(&self, tokens: &[Token], _by: Duration) -> Vec<Result<Instant>> {
        let mut held = Vec::with_capacity(tokens.len());
        for token in tokens {
            match token.get::<Held>() {
                Ok(found) => held.push(found),
                Err(e) => return e.for_each_of(tokens.len()),
            }
        }
        let mut results: Vec<Result<Instant>> = Vec::with_capacity(held.len());
        let settled =
            || Err(error::lock_lost("the lock has run out, or the message was settled before").operation("extend"));
        let (alone, together): (Vec<usize>, Vec<usize>) = (0..held.len()).partition(|i| held[*i].session.is_some());
        held.iter().for_each(|_| results.push(settled()));
        let together: Vec<usize> = together.into_iter().filter(|i| self.feed.holds(held[*i])).collect();
        for group in together.chunks(ENTRIES) {
            let locks: Vec<uuid::Uuid> = group.iter().map(|i| held[*i].lock).collect();
            let from = Instant::now();
            match self.feed.management.renew(&locks).await.map_err(|e| lost(e, None)) {
                Ok(()) => group.iter().for_each(|i| results[*i] = Ok(self.feed.deadline(from))),
                Err(e) if group.len() > 1 && !passing(&e) => {
                    let each = group.iter().map(|i| async move {
                        let from = Instant::now();
                        let renewed = self.feed.management.renew(&[held_lock(tokens, *i)]).await;
                        (*i, renewed.map(|()| self.feed.deadline(from)))
                    });
                    for (i, result) in join_all(each).await {
                        results[i] = result;
                    }
                }
                Err(e) => group.iter().for_each(|i| results[*i] = Err(e.clone())),
            }
        }
        let sessions: Vec<(usize, Arc<Session>)> =
            alone.into_iter().filter_map(|i| Some((i, held[i].session.clone().filter(|s| s.alive())?))).collect();
        let renewed = join_all(sessions.into_iter().map(|(i, session)| async move {
            let from = Instant::now();
            let renewed = self.feed.management.renew_session(session.id()).await.map_err(|e| lost(e, Some(&session)));
            (i, renewed.map(|()| session.renewed(from)).map(|()| self.feed.deadline(from)))
        }));
        for (i, result) in renewed.await {
            results[i] = result;
        }
        for (held, result) in held.iter().zip(&results) {
            if let Err(e) = result {
                self.note(held, e);
            }
        }
        results
    }

    fn holds(&self, token: &Token) -> bool {
        token.get::<Held>().is_ok_and(|held| self.feed.holds(held))
    }

    async fn close(&self) -> Result<()> {
        self.feed.closed.store(true, Ordering::Release);
        let open = self.feed.take_open();
        let (sessions, plain): (Vec<_>, Vec<_>) = open.into_iter().partition(|(_, session)| session.is_some());
        let plain: Vec<uuid::Uuid> = plain.into_iter().map(|(lock, _)| lock).collect();
        let giving_back = async {
            for locks in plain.chunks(ENTRIES) {
                self.give_up(locks).await;
            }
            let sessions = sessions.into_iter().filter_map(|(_, session)| session);
            join_all(sessions.map(|session| async move { session.end(true).await })).await;
        };
        // Without a connection they come back when their locks end; closing does not wait for one.
        if !self.feed.wires.stands() || timeout(GOODBYE, giving_back).await.is_err() {
            tracing::debug!(source = %self.feed.source, "what was held comes back when its lock ends");
        }
        self.feed.end().await;
        self.outlet.close().await;
        Ok(())
    }
}

fn held_lock(tokens: &[Token], i: usize) -> uuid::Uuid {
    tokens[i].get::<Held>().map(|held| held.lock).unwrap_or_default()
}
