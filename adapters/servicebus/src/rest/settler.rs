//! Settling deliveries over HTTP, one request each, and the broker's answer is the result.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use polybus_core::{
    Error, ErrorKind, Result, Source,
    driver::{Batching, DriverToken, SettleRequest, Settlement, Settler},
    message::cloudevents::CopyState,
    topology::Entity,
};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::{
    amqp::settler::LIFE_ENDS,
    error,
    message::envelope::{self, CopyOf, Postage},
    rest::{
        consumer::{RestFeed, RestHeld},
        hold,
        message_out::{self, RestDeadLetter},
    },
    topology::{names::Place, targeting::Targeting},
    transport::http::Http,
};

/// Most requests of one call at once.
const WIDTH: usize = 32;

pub(crate) struct RestSettler {
    feed: Arc<RestFeed>,
    /// The live source, also where its dead letters are consumed.
    live: Place,
    limit: usize,
    /// On subscriptions: whether copies reach this one alone.
    targeting: Option<Targeting>,
    /// How long a message is held in place where they do not.
    max_hold: Duration,
}

impl RestSettler {
    pub(crate) fn new(feed: Arc<RestFeed>, http: Arc<Http>, from: &Entity<Source>, limit: usize) -> Self {
        let live = Place::of(from);
        Self {
            targeting: live.target().map(|name| Targeting::new(http, live.address(), name)),
            feed,
            live,
            limit,
            max_hold: from.settings.max_hold,
        }
    }

    fn check(&self, held: &RestHeld) -> Result<()> {
        if self.feed.holds(held) {
            return Ok(());
        }
        Err(error::lock_lost("the lock has run out, or the message was settled before"))
    }

    async fn settle_one(&self, settle: &SettleRequest, held: &RestHeld) -> Result<()> {
        let dead = self.feed.source.is_dead_letters();
        self.check(held)?;
        match &settle.how {
            Settlement::Ack => self.over(held, held.lock.complete().await),
            Settlement::Release | Settlement::GiveBack => self.over(held, held.lock.unlock().await),
            // As over AMQP: what cannot be back in time is seen among the dead letters.
            Settlement::RetryAfter(delay)
                if !dead && settle.envelope.expires_at.is_none() && held.ends_within(*delay) =>
            {
                let mut late = settle.clone();
                late.time = OffsetDateTime::now_utc();
                late.how = Settlement::DeadLetter { reason: "expired".into(), detail: LIFE_ENDS.into() };
                self.bury(&late, held).await
            }
            Settlement::RetryAfter(delay) if !dead => self.retry(settle, held, *delay).await,
            Settlement::DeadLetter { .. } if !dead => self.bury(settle, held).await,
            Settlement::Redrive | Settlement::RedriveAs(_) if dead => self.redrive(settle, held).await,
            other => Err(Error::unsupported(format!("{other:?} on {}", self.feed.source)).with_operation("settle")),
        }
    }

    /// A delivery that was settled or lost is over; after any other error it may be settled again.
    fn over(&self, held: &RestHeld, settled: Result<()>) -> Result<()> {
        if settled.as_ref().map_or_else(|e| e.kind() == ErrorKind::LockLost, |()| true) {
            self.feed.let_go(held);
        }
        settled
    }

    async fn is_exact(&self) -> bool {
        match &self.targeting {
            Some(targeting) => targeting.is_exact().await,
            None => true,
        }
    }

    async fn retry(&self, settle: &SettleRequest, held: &RestHeld, delay: Duration) -> Result<()> {
        if !self.is_exact().await {
            if delay > self.max_hold {
                let text =
                    "the topic has rules that polybus did not make, so a retry holds the message: longer than max_hold";
                return Err(Error::unsupported(text).with_operation("settle"));
            }
            return hold::start(self.feed.clone(), settle.token.clone(), delay);
        }
        let at = OffsetDateTime::now_utc() + delay;
        let carried = self.carried(settle, held);
        let id = self.copy_id(held, carried.hop);
        let postage = Postage { enqueue_at: Some(at), target: self.live.target(), ..Self::postage(held, &id, false) };
        let letter = message_out::copy(&held.native, &settle.envelope, &carried, &postage)?;
        match self.move_to(self.live.address(), &letter, held).await {
            // There is no room for what a copy adds.
            Err(e) if e.kind() == ErrorKind::PayloadTooLarge && delay <= self.max_hold => {
                hold::start(self.feed.clone(), settle.token.clone(), delay)
            }
            done => done,
        }
    }

    async fn bury(&self, settle: &SettleRequest, held: &RestHeld) -> Result<()> {
        let mut carried = self.carried(settle, held);
        let id = self.copy_id(held, carried.hop);
        let postage = Self::postage(held, &id, false);
        let mut letter = message_out::copy(&held.native, &settle.envelope, &carried, &postage)?;
        // A long story must not cost the message its place.
        if let (true, Some(dead)) = (letter.is_over(self.limit), carried.dead_letter.as_deref_mut()) {
            dead.detail = None;
            letter = message_out::copy(&held.native, &settle.envelope, &carried, &postage)?;
        }
        if letter.is_over(self.limit) {
            let id = &settle.envelope.id;
            tracing::warn!(source = %self.feed.source, %id, "the message leaves no room: its dead letter tells no reason");
            letter = message_out::bare(&held.native, &settle.envelope, &postage)?;
        }
        self.move_to(self.live.companion().address(), &letter.everlasting(), held).await
    }

    async fn redrive(&self, settle: &SettleRequest, held: &RestHeld) -> Result<()> {
        if !self.is_exact().await {
            let text =
                "the topic has rules that polybus did not make: what is moved back could reach other subscriptions";
            return Err(Error::unsupported(text).with_operation("settle"));
        }
        let carried = self.carried(settle, held);
        let id = self.copy_id(held, carried.hop);
        let postage = Postage { target: self.live.target(), ..Self::postage(held, &id, true) };
        let letter = match &settle.how {
            Settlement::RedriveAs(other) => message_out::encode(other, &carried, &postage)?,
            _ => {
                let whole = message_out::copy(&held.native, &settle.envelope, &carried, &postage)?;
                match whole.is_over(self.limit) {
                    true => message_out::bare(&held.native, &settle.envelope, &postage)?,
                    false => whole,
                }
            }
        };
        self.move_to(self.live.address(), &letter, held).await
    }

    fn carried(&self, settle: &SettleRequest, held: &RestHeld) -> CopyState {
        held.carried.copied(settle, &self.feed.source)
    }

    /// What this copy is called at the broker.
    fn copy_id(&self, held: &RestHeld, hop: u32) -> String {
        let broker = &held.native.broker;
        let sequence = broker.sequence_number.unwrap_or_default().to_string();
        let delivery = broker.lock_token.as_deref().map_or_else(|| held.number().to_string(), str::to_owned);
        envelope::copy_id(&self.live.path(), &sequence, &delivery, hop)
    }

    fn postage<'a>(held: &RestHeld, id: &'a str, redrive: bool) -> Postage<'a> {
        let left = match redrive {
            // The broker counts no longer among dead letters: it begins anew.
            true => held.native.broker.lives(),
            false => held.until.map(|until| {
                let left = until.saturating_duration_since(Instant::now());
                time::Duration::try_from(left).unwrap_or(time::Duration::MAX)
            }),
        };
        Postage { copy: Some(CopyOf { id, session: None, left, redrive }), ..Postage::default() }
    }

    /// Copies, then completes what was copied. A copy cannot be taken back over HTTP.
    async fn move_to(&self, address: &str, letter: &RestDeadLetter, held: &RestHeld) -> Result<()> {
        if letter.is_over(self.limit) {
            let text = format!(
                "there is no room in the message for what a copy adds: at most {} bytes are allowed",
                self.limit
            );
            return Err(error::new(ErrorKind::PayloadTooLarge, "settle", text).with_context("limit", self.limit));
        }
        let (headers, body) = letter.alone()?;
        self.feed
            .rest
            .send(address, headers, body)
            .await
            .map_err(|e| e.with_operation("settle").with_context("to", address))?;
        let settled = self.over(held, held.lock.complete().await);
        settled.map_err(|e| e.may_duplicate().with_context("copy", "kept"))
    }

    async fn extend_one(&self, held: &RestHeld) -> Result<Instant> {
        self.check(held).map_err(|e| e.with_operation("extend"))?;
        let from = Instant::now();
        match held.lock.renew().await {
            Ok(()) => {
                self.feed.renewed(held, from);
                Ok(self.feed.deadline(from))
            }
            Err(e) => self.over(held, Err(e)).map(|()| from),
        }
    }
}

fn each_held<'a>(tokens: impl Iterator<Item = &'a DriverToken>) -> Result<Vec<&'a RestHeld>> {
    tokens.map(|token| token.get::<RestHeld>()).collect()
}

#[async_trait]
impl Settler for RestSettler {
    fn batching(&self) -> Batching {
        Batching::new(WIDTH, usize::MAX, 4)
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        match each_held(batch.iter().map(|settle| &settle.token)) {
            Ok(held) => join_all(batch.iter().zip(held).map(|(settle, held)| self.settle_one(settle, held))).await,
            Err(e) => e.for_each_of(batch.len()),
        }
    }

    async fn extend(&self, tokens: &[DriverToken], _by: Duration) -> Vec<Result<Instant>> {
        let held = match each_held(tokens.iter()) {
            Ok(held) => held,
            Err(e) => return e.for_each_of(tokens.len()),
        };
        let mut results = Vec::with_capacity(held.len());
        for some in held.chunks(WIDTH) {
            results.extend(join_all(some.iter().map(|held| self.extend_one(held))).await);
        }
        results
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<RestHeld>().is_ok_and(|held| self.feed.holds(held))
    }

    fn forget(&self, token: &DriverToken) {
        if let Ok(held) = token.get::<RestHeld>() {
            self.feed.forget(held);
        }
    }

    async fn close(&self) -> Result<()> {
        self.feed.closed.store(true, Ordering::Release);
        for some in self.feed.take_open().chunks(WIDTH) {
            join_all(some.iter().map(|lock| lock.unlock())).await;
        }
        Ok(())
    }
}
