//! A message handed to a consumer, to be settled once.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    consume::settle::handling_record::HandlingRecord,
    consume::{consumer::Consumer, unsettled::UnsettledDelivery},
    driver::{DeadLetter, Settlement},
    error::{Error, Result},
    message::Envelope,
    runtime::poll_then_spawn::BoxedRun,
    topology::Source,
};

/// A message handed to a consumer. Settle it once; dropped, it is released.
///
/// A settlement is handed over when its future is first polled, and then goes on even if the future is dropped.
#[must_use = "a dropped delivery is released: ack it, or settle it in another way"]
pub struct Delivery {
    held: Option<UnsettledDelivery>,
}

impl Delivery {
    pub(crate) fn new(held: UnsettledDelivery) -> Self {
        Self { held: Some(held) }
    }

    fn held(&self) -> &UnsettledDelivery {
        match &self.held {
            Some(held) => held,
            None => unreachable!("settling takes the delivery by value"),
        }
    }

    /// The message.
    pub fn envelope(&self) -> &Envelope {
        &self.held().parts().envelope
    }

    /// 1-based count of deliveries of this message from this source.
    pub fn attempt(&self) -> u32 {
        self.held().parts().attempt
    }

    /// Where it came from.
    pub fn source(&self) -> &Source {
        &self.held().consumer.entity.name
    }

    /// On dead letters: how it got there.
    pub fn dead_letter_info(&self) -> Option<&DeadLetter> {
        self.held().parts().rare()?.dead_letter.as_deref()
    }

    /// Why the message could not be decoded; only on dead letters, where it is handed out raw.
    pub fn malformed(&self) -> Option<&str> {
        self.held().parts().malformed()
    }

    /// The adapter's own view of the message as it came, if it is a `T`: what no field or header of the envelope shows. Which type an
    /// adapter hands out stands in its README under "Native access"; `None` where it hands out another one or none.
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.held().parts().rare()?.native.as_ref()?.get().ok()
    }

    /// When the lock ends on this machine's monotonic clock; moves as the lock is renewed. `None` where there are no
    /// locks, and once it is lost.
    pub fn locked_until(&self) -> Option<Instant> {
        let held = self.held();
        held.parts().lock.and_then(|id| held.consumer.locks.until(id))
    }

    /// Whether this consumer still holds the message, as far as is known without I/O.
    pub fn is_held(&self) -> bool {
        self.held().is_held()
    }

    /// Done: removes the message.
    pub async fn ack(self) -> Result<(), SettleError> {
        self.finish(Settlement::Ack, None).await
    }

    /// Makes it available again at once. At the last attempt it becomes a dead letter instead.
    pub async fn release(self) -> Result<(), SettleError> {
        self.finish(Settlement::Release, None).await
    }

    /// Makes it available again after `delay`, with attempt + 1; late by at most 10 %. At the last attempt it becomes a
    /// dead letter at once. On an ordered source it is held in place, up to `max_hold`.
    pub async fn retry_after(self, delay: Duration) -> Result<(), SettleError> {
        self.finish(Settlement::RetryAfter(delay), None).await
    }

    /// Moves it to the source's dead letters. If the move fails, the message is not acknowledged. The reason is cut at 128
    /// bytes, the detail at 2 KiB: they travel as headers. An error with context `copy=kept` says that it was moved and is
    /// still here as well: ack it.
    pub async fn dead_letter(
        self,
        reason: impl Into<Box<str>>,
        detail: impl Into<Box<str>>,
    ) -> Result<(), SettleError> {
        self.finish(Settlement::DeadLetter { reason: reason.into(), detail: detail.into() }, None).await
    }

    /// Lengthens the lock: held for `by` from now. `Unsupported` where the hold cannot be renewed.
    pub async fn extend(&mut self, by: Duration) -> Result<()> {
        let held = self.held();
        held.consumer.extend(held.parts(), by).await
    }

    /// What the broker knows it by: see [`ReceivedMessage::known_by`](crate::driver::ReceivedMessage::known_by).
    pub(crate) fn known_by(&self) -> Option<&str> {
        self.held().parts().rare()?.known_by.as_deref()
    }

    /// The mark of the redrive that has seen it.
    pub(crate) fn mark(&self) -> Option<&str> {
        self.held().parts().rare()?.mark.as_deref()
    }

    /// Puts a mark on the copy that settling it will make.
    pub(crate) fn stamped(mut self, mark: Arc<str>) -> Self {
        if let Some(held) = &mut self.held {
            held.stamp(mark);
        }
        self
    }

    pub(crate) fn is_from(&self, consumer: &Arc<Consumer>) -> bool {
        Arc::ptr_eq(&self.held().consumer, consumer)
    }

    /// Settles without anybody waiting: who carries it out tells what became of it. What comes back must be run.
    pub(crate) fn hand_in(
        mut self,
        how: Settlement,
        detail: Option<Box<str>>,
        told: HandlingRecord,
    ) -> Option<BoxedRun> {
        let held = self.held.take()?;
        held.consumer.clone().hand_in(held, how, detail, told)
    }

    /// Settles; `detail` explains the dead letter that a release or retry becomes at the last attempt.
    pub(crate) async fn finish(mut self, how: Settlement, detail: Option<Box<str>>) -> Result<(), SettleError> {
        let Some(held) = self.held.take() else { return Ok(()) };
        let consumer = held.consumer.clone();
        let settling = consumer.settle(held, how, detail);
        let outcome = consumer.settled(settling).await;
        outcome.map_err(|(e, held)| SettleError(Box::new((e, held.map(Delivery::new)))))
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            let parts = held.parts();
            held.consumer.note_handled(parts);
            tracing::debug!(source = %held.consumer.entity.name, id = %parts.envelope.id, "delivery dropped: it is given back");
            held.consumer.clone().settle_detached(held, Settlement::Release);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Delivery");
        if let Some(held) = &self.held {
            let parts = held.parts();
            out.field("source", &held.consumer.entity.name).field("attempt", &parts.attempt);
            out.field("envelope", &parts.envelope);
        }
        out.finish_non_exhaustive()
    }
}

/// A settlement that failed. It gives the delivery back, except after `LockLost`.
pub struct SettleError(Box<(Error, Option<Delivery>)>);

impl SettleError {
    /// What went wrong.
    pub fn error(&self) -> &Error {
        &self.0.0
    }

    /// The error, and the delivery to settle again unless its lock is lost.
    pub fn into_parts(self) -> (Error, Option<Delivery>) {
        *self.0
    }
}

impl From<SettleError> for Error {
    fn from(e: SettleError) -> Self {
        e.0.0
    }
}

impl fmt::Display for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.0.fmt(f)
    }
}

impl fmt::Debug for SettleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0.0, f)
    }
}

impl std::error::Error for SettleError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0.0)
    }
}
