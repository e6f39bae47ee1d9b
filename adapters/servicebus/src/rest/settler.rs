//! Settling over HTTP, a request for each delivery, whose answer is the result.

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
    capabilities::EXPIRES_BEFORE_RETRY,
    consume::in_place_hold::single,
    error,
    message::envelope::{self, CopyFields, SendOptions},
    rest::{
        consumer::{RestConsumer, RestDelivery},
        message_out::{self, PostedMessage},
    },
    topology::{
        names::EntityPath,
        targeting::{self, CopyTargeting},
    },
    transport::http::HttpPool,
};

/// The most requests of one call at once.
const CONCURRENT_REQUESTS: usize = 32;

pub(crate) struct RestSettler {
    consumer: Arc<RestConsumer>,
    /// The live source, also where its dead letters are consumed.
    live: EntityPath,
    limit: usize,
    /// Whether a copy reaches this source alone.
    targeting: CopyTargeting,
    /// The longest time to hold a message in place.
    max_hold: Duration,
}

impl RestSettler {
    pub(crate) fn new(consumer: Arc<RestConsumer>, http: Arc<HttpPool>, from: &Entity<Source>, limit: usize) -> Self {
        let live = EntityPath::of(from);
        Self { targeting: CopyTargeting::new(http, &live), consumer, live, limit, max_hold: from.settings.max_hold }
    }

    fn ensure_held(&self, held: &RestDelivery) -> Result<()> {
        if self.consumer.unsettled.awaits_core(&held.number) { Ok(()) } else { Err(error::not_held()) }
    }

    async fn settle_one(&self, settle: &SettleRequest, held: &RestDelivery) -> Result<()> {
        let dead = self.consumer.source.is_dead_letters();
        self.ensure_held(held)?;
        match &settle.how {
            Settlement::Ack => self.finish(held, held.lock.complete().await),
            Settlement::Release | Settlement::GiveBack => self.finish(held, held.lock.unlock().await),
            // The message expires before its retry is due, but its copy would live on. It becomes a dead letter, where
            // it can be seen.
            Settlement::RetryAfter(delay)
                if !dead && settle.envelope.expires_at.is_none() && held.expires_within(*delay) =>
            {
                let mut late = settle.clone();
                late.time = OffsetDateTime::now_utc();
                late.how = Settlement::DeadLetter { reason: "expired".into(), detail: EXPIRES_BEFORE_RETRY.into() };
                self.dead_letter(&late, held).await
            }
            Settlement::RetryAfter(delay) if !dead => self.retry(settle, held, *delay).await,
            Settlement::DeadLetter { .. } if !dead => self.dead_letter(settle, held).await,
            Settlement::Redrive | Settlement::RedriveAs(_) if dead => self.redrive(settle, held).await,
            other => Err(Error::unsupported(format!("{other:?} on {}", self.consumer.source)).with_operation("settle")),
        }
    }

    /// Removes a delivery that is settled or lost. After any other error it may be settled again.
    fn finish(&self, held: &RestDelivery, settled: Result<()>) -> Result<()> {
        if settled.as_ref().map_or_else(|e| e.kind() == ErrorKind::LockLost, |()| true) {
            self.consumer.unsettled.remove([held.number]);
        }
        settled
    }

    async fn retry(&self, settle: &SettleRequest, held: &RestDelivery, delay: Duration) -> Result<()> {
        if !self.targeting.reaches_only_target().await {
            if delay > self.max_hold {
                return Err(targeting::hold_refused());
            }
            return single::start(self.consumer.clone(), settle.token.clone(), delay);
        }
        let at = OffsetDateTime::now_utc() + delay;
        let carried = self.copy_state(settle, held);
        let id = self.copy_id(held, carried.hop);
        let options =
            SendOptions { enqueue_at: Some(at), target: self.live.target(), ..Self::options(held, &id, false) };
        let message = message_out::copy(&held.native, &settle.envelope, &carried, &options)?;
        if delay <= self.max_hold && message.exceeds(self.limit, &held.native) {
            return single::start(self.consumer.clone(), settle.token.clone(), delay);
        }
        // Longer delays are tried all the same: the broker may allow more than was configured.
        match self.copy_and_complete(self.live.address(), &message, held).await {
            // There is no room for a copy.
            Err(e) if is_copy_too_large(&e) && delay <= self.max_hold => {
                single::start(self.consumer.clone(), settle.token.clone(), delay)
            }
            done => done,
        }
    }

    async fn dead_letter(&self, settle: &SettleRequest, held: &RestDelivery) -> Result<()> {
        let mut carried = self.copy_state(settle, held);
        let id = self.copy_id(held, carried.hop);
        let options = Self::options(held, &id, false);
        let mut message = message_out::copy(&held.native, &settle.envelope, &carried, &options)?;
        // A long detail must not cost the message its place among the dead letters.
        let too_large = message.exceeds(self.limit, &held.native);
        if let (true, Some(dead_letter)) = (too_large, carried.dead_letter.as_deref_mut()) {
            dead_letter.detail = None;
            message = message_out::copy(&held.native, &settle.envelope, &carried, &options)?;
        }
        let bare = || Ok(message_out::bare(&held.native, &settle.envelope, &options)?.without_expiry());
        self.move_copy(self.live.companion().address(), message.without_expiry(), bare, settle, held).await
    }

    async fn redrive(&self, settle: &SettleRequest, held: &RestDelivery) -> Result<()> {
        if !self.targeting.reaches_only_target().await {
            return Err(targeting::redrive_refused());
        }
        let carried = self.copy_state(settle, held);
        let id = self.copy_id(held, carried.hop);
        let mut options = SendOptions { target: self.live.target(), ..Self::options(held, &id, true) };
        if let Settlement::RedriveAs(other) = &settle.how {
            let own = held.native.broker.session_id.as_deref();
            let session = envelope::replacement_session(other, &settle.envelope, own, options.ordered);
            options.copy = options.copy.map(|copy| CopyFields { session: session.as_deref(), ..copy });
            let message = message_out::encode(other, &carried, &options)?;
            message.check_replacement(self.limit, &held.native)?;
            return self.copy_and_complete(self.live.address(), &message, held).await;
        }
        let whole = message_out::copy(&held.native, &settle.envelope, &carried, &options)?;
        let bare = || message_out::bare(&held.native, &settle.envelope, &options);
        self.move_copy(self.live.address(), whole, bare, settle, held).await
    }

    /// Moves a message by a copy. Where what polybus adds finds no room, by our limit or by the broker's word, the
    /// copy is `bare`: the move counts for more than what it tells. A bare copy is hardly larger than what the broker
    /// has, so the broker alone may refuse it.
    async fn move_copy(
        &self,
        address: &str,
        whole: PostedMessage,
        bare: impl FnOnce() -> Result<PostedMessage>,
        settle: &SettleRequest,
        held: &RestDelivery,
    ) -> Result<()> {
        if !whole.exceeds(self.limit, &held.native) {
            match self.copy_and_complete(address, &whole, held).await {
                Err(e) if is_copy_too_large(&e) => {}
                done => return done,
            }
        }
        let id = &settle.envelope.id;
        tracing::warn!(source = %self.consumer.source, %id, "the message leaves no room: its copy carries nothing");
        self.copy_and_complete(address, &bare()?, held).await
    }

    fn copy_state(&self, settle: &SettleRequest, held: &RestDelivery) -> CopyState {
        held.carried.copied(settle, &self.consumer.source)
    }

    /// The message id of this copy.
    fn copy_id(&self, held: &RestDelivery, hop: u32) -> String {
        let broker = &held.native.broker;
        let sequence = broker.sequence_number.unwrap_or_default().to_string();
        let delivery = broker.lock_token.as_deref().map_or_else(|| held.number.to_string(), str::to_owned);
        envelope::copy_id(&self.live.path(), &sequence, &delivery, hop)
    }

    fn options<'a>(held: &RestDelivery, id: &'a str, redrive: bool) -> SendOptions<'a> {
        let left = match redrive {
            // Among dead letters the broker does not count: the time to live begins anew.
            true => held.native.broker.time_to_live_span(),
            false => held.expires.map(|until| {
                let left = until.saturating_duration_since(Instant::now());
                time::Duration::try_from(left).unwrap_or(time::Duration::MAX)
            }),
        };
        SendOptions { copy: Some(CopyFields { id, session: None, left, redrive }), ..SendOptions::default() }
    }

    /// Posts a copy, then completes the original, in this order: the message is stored twice at worst, never lost. A
    /// copy cannot be withdrawn over HTTP.
    async fn copy_and_complete(&self, address: &str, message: &PostedMessage, held: &RestDelivery) -> Result<()> {
        let (headers, body) = message.as_request()?;
        self.consumer
            .client
            .send(address, headers, body)
            .await
            .map_err(|e| e.with_operation("settle").with_context("to", address))?;
        let settled = self.finish(held, held.lock.complete().await);
        settled.map_err(Error::with_kept_copy)
    }

    async fn extend_one(&self, held: &RestDelivery) -> Result<Instant> {
        self.ensure_held(held).map_err(|e| e.with_operation("extend"))?;
        let from = Instant::now();
        match held.lock.renew().await {
            Ok(()) => {
                self.consumer.unsettled.renewed(&held.number, from);
                Ok(self.consumer.deadline(from))
            }
            Err(e) => self.finish(held, Err(e)).map(|()| from),
        }
    }
}

/// Whether the broker has refused a copy for its size. Then nothing was changed.
fn is_copy_too_large(e: &Error) -> bool {
    e.kind() == ErrorKind::PayloadTooLarge && !e.is_copy_kept()
}

fn each_held<'a>(tokens: impl Iterator<Item = &'a DriverToken>) -> Result<Vec<&'a RestDelivery>> {
    tokens.map(|token| token.get::<RestDelivery>()).collect()
}

#[async_trait]
impl Settler for RestSettler {
    fn batching(&self) -> Batching {
        Batching::new(CONCURRENT_REQUESTS, usize::MAX, 4)
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
        for some in held.chunks(CONCURRENT_REQUESTS) {
            results.extend(join_all(some.iter().map(|held| self.extend_one(held))).await);
        }
        results
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<RestDelivery>().is_ok_and(|held| self.consumer.unsettled.awaits_core(&held.number))
    }

    fn forget(&self, token: &DriverToken) {
        if let Ok(held) = token.get::<RestDelivery>() {
            self.consumer.unsettled.remove_lost(&held.number);
        }
    }

    async fn close(&self) -> Result<()> {
        self.consumer.closed.store(true, Ordering::Release);
        for some in self.consumer.unsettled.take().chunks(CONCURRENT_REQUESTS) {
            join_all(some.iter().map(|(_, lock)| lock.unlock())).await;
        }
        Ok(())
    }
}
