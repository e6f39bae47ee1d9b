//! A message that is handed out to the application, to be settled once.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Envelope, Result, SettleError, Source,
    consume::{consumer::Consumer, settle::handling_record::HandlingRecord, unsettled::UnsettledDelivery},
    driver::{DeadLetter, DriverToken, Settlement},
    runtime::poll_then_spawn::BoxedRun,
};

/// A message that was handed out. Settle it once, with one of the methods that take it by value.
///
/// | method | the message |
/// |---|---|
/// | [`ack`](Self::ack) | is removed |
/// | [`release`](Self::release) | comes again at once |
/// | [`retry_after`](Self::retry_after) | comes again after a delay |
/// | [`dead_letter`](Self::dead_letter) | goes to the dead letters |
/// | none: the delivery is dropped | comes again at once, as by `release` |
///
/// At the last attempt ([`max_deliveries`](crate::topology::QueueSpec::max_deliveries), 5 by default) a message that
/// would come again becomes a dead letter instead, with the reason `max-deliveries-exceeded`.
///
/// `Ok` from a settlement means that the broker has carried it out, where
/// [`Capabilities::confirmed_settlement`](crate::driver::Capabilities::confirmed_settlement) says so.
///
/// # Cancel safety
/// A settlement is handed over when its future is first polled. It then goes on even if the future is dropped.
///
/// # Errors
/// A settlement fails with a [`SettleError`]. It holds the delivery, to be settled again, except after `LockLost`: then
/// the broker hands the message out again, or has.
#[must_use = "a dropped delivery is released: ack it, or settle it in another way"]
pub struct Delivery {
    /// `None` only once it was taken to be settled.
    unsettled: Option<UnsettledDelivery>,
}

impl Delivery {
    pub(crate) fn new(unsettled: UnsettledDelivery) -> Self {
        Self { unsettled: Some(unsettled) }
    }

    fn unsettled(&self) -> &UnsettledDelivery {
        match &self.unsettled {
            Some(unsettled) => unsettled,
            None => unreachable!("settling takes the delivery by value"),
        }
    }

    /// The message.
    ///
    /// ```
    /// # async fn run(delivery: polybus_core::Delivery) -> polybus_core::Result<()> {
    /// let message = delivery.envelope();
    /// println!("{} {}", message.event_type, message.id);
    /// delivery.ack().await?;
    /// # Ok(()) }
    /// ```
    pub fn envelope(&self) -> &Envelope {
        &self.unsettled().message().envelope
    }

    /// How often the message was delivered from this source, this time included. The first attempt is 1.
    ///
    /// [`Capabilities::attempts_across_crash`](crate::driver::Capabilities::attempts_across_crash) says whether it
    /// survives a consumer that is killed.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// assert_eq!(delivery.attempt(), 1);
    /// delivery.release().await?;
    /// if let Some(again) = payments.next().await {
    ///     assert_eq!(again?.attempt(), 2);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn attempt(&self) -> u32 {
        self.unsettled().message().attempt
    }

    /// The source that the message came from.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// assert_eq!(delivery.source().to_string(), "queue:payments");
    /// # Ok(()) }
    /// ```
    pub fn source(&self) -> &Source {
        &self.unsettled().consumer.entity.name
    }

    /// On dead letters: how the message became one. `None` on other sources, and where the broker tells nothing.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// delivery.dead_letter("bank-away", "no answer for a day").await?;
    ///
    /// let mut dead_letters = bus.subscribe(source.dead_letters()).open().await?;
    /// if let Some(letter) = dead_letters.next().await {
    ///     let letter = letter?;
    ///     let info = letter.dead_letter_info().expect("a dead letter tells how it became one");
    ///     assert_eq!(info.reason.as_deref(), Some("bank-away"));
    ///     letter.ack().await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn dead_letter_info(&self) -> Option<&DeadLetter> {
        self.unsettled().message().rare()?.dead_letter.as_deref()
    }

    /// On dead letters: why the message could not be decoded; its envelope then holds the raw payload. `None` for a
    /// message that could.
    ///
    /// ```
    /// # async fn run(delivery: polybus_core::Delivery) -> polybus_core::Result<()> {
    /// if let Some(why) = delivery.malformed() {
    ///     println!("{} bytes cannot be decoded: {why}", delivery.envelope().data.len());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn malformed(&self) -> Option<&str> {
        self.unsettled().message().malformed()
    }

    /// The adapter's own view of the message as it came, for what no field or header of the envelope shows. `None` if
    /// the adapter hands out another type than `T`, or none.
    ///
    /// Each adapter's README names its type under "Native access".
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// // The in-process broker hands out no view of its own.
    /// assert!(delivery.native::<String>().is_none());
    /// # Ok(()) }
    /// ```
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.unsettled().message().rare()?.native.as_ref()?.get().ok()
    }

    /// The adapter's own view, for the context of a handler, which outlives the delivery.
    pub(crate) fn native_token(&self) -> Option<&DriverToken> {
        self.unsettled().message().rare()?.native.as_ref()
    }

    /// How often the message is delivered at most; `None` on dead letters, which have no limit.
    pub(crate) fn max_deliveries(&self) -> Option<u32> {
        let UnsettledDelivery { consumer, .. } = self.unsettled();
        (!consumer.entity.name.is_dead_letters()).then(|| consumer.max_deliveries(self.unsettled().message()))
    }

    /// When the lock ends, by the monotonic clock of this machine. It moves whenever the lock is renewed. `None` on a
    /// broker without locks, and once the lock is lost.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// use std::time::Duration;
    ///
    /// // A lock of 30 s by default, less a margin of at most 1 s.
    /// let until = delivery.locked_until().expect("this broker has locks");
    /// assert!(until > tokio::time::Instant::now() + Duration::from_secs(25));
    /// # Ok(()) }
    /// ```
    pub fn locked_until(&self) -> Option<Instant> {
        let unsettled = self.unsettled();
        unsettled.message().lock.and_then(|id| unsettled.consumer.locks.until(id))
    }

    /// Whether this consumer still holds the message, as far as is known without I/O. If not, settling it is
    /// `LockLost`, and the broker hands it out again, or has.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// assert!(delivery.is_held());
    /// payments.close().await?;
    /// assert!(!delivery.is_held());
    /// # Ok(()) }
    /// ```
    pub fn is_held(&self) -> bool {
        self.unsettled().is_held()
    }

    /// Acknowledges the message: it is done, and the broker removes it.
    ///
    /// # Errors
    /// [`SettleError`], most often `LockLost` or `Unavailable`. Transient errors are retried for up to 30 s as long as
    /// the message is held. An ack that may have been carried out is not retried, since a second one would be
    /// `LockLost`.
    ///
    /// # Cancel safety
    /// Once polled, it goes on even if the future is dropped.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// delivery.ack().await?;
    /// assert_eq!(bus.stats(&source).await?.in_flight, Some(0));
    /// # Ok(()) }
    /// ```
    #[doc(alias("complete", "acknowledge", "delete"))]
    pub async fn ack(self) -> Result<(), SettleError> {
        self.settle(Settlement::Ack, None).await
    }

    /// Makes the message available again at once. At the last attempt it becomes a dead letter instead.
    ///
    /// On an ordered source it stays ahead of the later messages of its key.
    ///
    /// # Errors
    /// [`SettleError`].
    ///
    /// # Cancel safety
    /// Once polled, it goes on even if the future is dropped.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// delivery.release().await?;
    /// if let Some(again) = payments.next().await {
    ///     again?.ack().await?;
    /// }
    /// # Ok(()) }
    /// ```
    #[doc(alias("nack", "reject", "requeue", "abandon"))]
    pub async fn release(self) -> Result<(), SettleError> {
        self.settle(Settlement::Release, None).await
    }

    /// Makes the message available again after `delay`, with the next attempt's number; it may be late by 10 %. At the
    /// last attempt it becomes a dead letter at once.
    ///
    /// On an ordered source the message is held in place for the delay, and blocks its key meanwhile. A subscription
    /// that was stopped holds nothing any more: where it would, the message goes back to the broker when the
    /// subscription closes, and may come again before the delay is over.
    ///
    /// # Errors
    /// [`SettleError`]. `Unsupported` if the delay is longer than
    /// [`Capabilities::max_retry_delay`](crate::driver::Capabilities::max_retry_delay), or, on an ordered source, than
    /// its [`max_hold`](crate::topology::QueueSpec::max_hold); and on dead letters.
    ///
    /// # Cancel safety
    /// Once polled, it goes on even if the future is dropped.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// delivery.retry_after(std::time::Duration::from_secs(60)).await?;
    /// assert_eq!(bus.stats(&source).await?.delayed, Some(1));
    /// # Ok(()) }
    /// ```
    pub async fn retry_after(self, delay: Duration) -> Result<(), SettleError> {
        self.settle(Settlement::RetryAfter(delay), None).await
    }

    /// Moves the message to the source's dead letters. If that fails, the message stays unacknowledged.
    ///
    /// `reason` is one word for machines, `detail` is for people. They travel as headers, so the reason is cut at 128
    /// bytes and the detail at 2 KiB.
    ///
    /// # Errors
    /// [`SettleError`]. With [`Error::is_copy_kept`](crate::Error::is_copy_kept), the copy is among the dead letters
    /// and the message is still here as well: ack it. `Unsupported` on dead letters, and on a broker that has none.
    ///
    /// # Cancel safety
    /// Once polled, it goes on even if the future is dropped.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// delivery.dead_letter("unknown-currency", "XBT is not configured").await?;
    /// assert_eq!(bus.stats(&source).await?.dead_lettered, Some(1));
    /// # Ok(()) }
    /// ```
    pub async fn dead_letter(
        self,
        reason: impl Into<Box<str>>,
        detail: impl Into<Box<str>>,
    ) -> Result<(), SettleError> {
        self.settle(Settlement::DeadLetter { reason: reason.into(), detail: detail.into() }, None).await
    }

    /// Extends the lock: the message is held for `by` from now on, or for as long as the broker allows.
    ///
    /// It is needed only where locks are not renewed by themselves: see
    /// [`SubscriptionBuilder::renew_locks`](crate::consume::SubscriptionBuilder::renew_locks).
    ///
    /// # Errors
    /// `Unsupported` on a broker whose holds cannot be renewed; `LockLost` if the lock has run out; else the broker's
    /// error.
    ///
    /// # Cancel safety
    /// If the future is dropped, the broker may or may not have extended the lock.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// # let mut payments = bus.subscribe(&source).open().await?;
    /// # let delivery = payments.next().await.expect("one was published")?;
    /// use std::time::Duration;
    ///
    /// # let mut delivery = delivery;
    /// delivery.extend(Duration::from_secs(300)).await?;
    /// let until = delivery.locked_until().expect("this broker has locks");
    /// assert!(until > tokio::time::Instant::now() + Duration::from_secs(290));
    /// # Ok(()) }
    /// ```
    pub async fn extend(&mut self, by: Duration) -> Result<()> {
        let unsettled = self.unsettled();
        unsettled.consumer.extend(unsettled.message(), by).await
    }

    /// The broker's own id of the message: see [`ReceivedMessage::known_by`](crate::driver::ReceivedMessage::known_by).
    pub(crate) fn known_by(&self) -> Option<&str> {
        self.unsettled().message().rare()?.known_by.as_deref()
    }

    /// The mark of an earlier redrive, with which the message came.
    pub(crate) fn mark(&self) -> Option<&str> {
        self.unsettled().message().rare()?.mark.as_deref()
    }

    /// Sets the mark of the copy that settling the message will make.
    pub(crate) fn with_copy_mark(mut self, mark: Arc<str>) -> Self {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.set_copy_mark(mark);
        }
        self
    }

    pub(crate) fn is_from(&self, consumer: &Arc<Consumer>) -> bool {
        Arc::ptr_eq(&self.unsettled().consumer, consumer)
    }

    /// Settles for a worker, which does not wait for the answer: `record` gets it. The batch that comes back, if any,
    /// must be run.
    pub(crate) fn settle_recorded(
        mut self,
        how: Settlement,
        detail: Option<Box<str>>,
        record: HandlingRecord,
    ) -> Option<BoxedRun> {
        let unsettled = self.unsettled.take()?;
        unsettled.consumer.clone().settle_recorded(unsettled, how, detail, record)
    }

    /// Settles; `detail` explains the dead letter that a release or retry becomes at the last attempt.
    pub(crate) async fn settle(mut self, how: Settlement, detail: Option<Box<str>>) -> Result<(), SettleError> {
        let Some(unsettled) = self.unsettled.take() else { return Ok(()) };
        let consumer = unsettled.consumer.clone();
        let settlement = consumer.settle(unsettled, how, detail);
        let outcome = consumer.await_settlement(settlement).await;
        outcome.map_err(|(e, unsettled)| SettleError::new(e, unsettled.map(Delivery::new)))
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(unsettled) = self.unsettled.take() {
            let (source, id) = (&unsettled.consumer.entity.name, &unsettled.message().envelope.id);
            tracing::debug!(%source, %id, "a delivery was dropped without being settled");
            unsettled.consumer.clone().settle_detached(unsettled, Settlement::Release);
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Delivery");
        if let Some(unsettled) = &self.unsettled {
            let message = unsettled.message();
            out.field("source", &unsettled.consumer.entity.name).field("attempt", &message.attempt);
            out.field("envelope", &message.envelope);
        }
        out.finish_non_exhaustive()
    }
}
