//! Consuming one source.
//!
//! The way of a message, from the driver to the application and back. Read the files in this order:
//!
//! 1. [`SubscriptionBuilder::open`] (this file) opens a `Consumer` (`consumer.rs`), which a [`Subscription`] and its
//!    deliveries share. `consumers.rs` lists the consumers of a bus, so that closing the bus closes them.
//! 2. [`Subscription::next`] polls one future (`next_future.rs`). That future asks the driver's
//!    [`Receiver`](crate::driver::Receiver) for as many messages as `prefetch_window.rs` has room for. No task receives
//!    in the background.
//! 3. Received messages wait in `key_lanes.rs`. From then on `lock_renewal.rs` renews their locks.
//! 4. `hand_out.rs` decides what is handed out: an expired message, for example, is settled instead.
//! 5. The application gets a [`Delivery`] (`delivery.rs`). `unsettled.rs` gives back what it holds when it ends.
//! 6. A settlement goes through `settle/` to the driver's [`Settler`](crate::driver::Settler). If it fails,
//!    `settle_error.rs` gives the delivery back.
//!
//! Beside that way stand `lifecycle.rs` (open, stopping, finished), `broker_refusals.rs` (when a broker's refusal ends
//! a subscription), `blocked_keys.rs` (the warning about blocked keys) and `handlings_by_message.rs` (how often a
//! message was handled here).

pub(crate) mod blocked_keys;
pub(crate) mod broker_refusals;
pub(crate) mod consumer;
pub(crate) mod consumers;
mod delivery;
pub(crate) mod hand_out;
pub(crate) mod handlings_by_message;
pub(crate) mod key_lanes;
pub(crate) mod lifecycle;
pub(crate) mod lock_renewal;
pub(crate) mod next_future;
pub(crate) mod prefetch_window;
pub(crate) mod settle;
mod settle_error;
pub(crate) mod unsettled;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::time::Instant;

pub use self::{delivery::Delivery, settle_error::SettleError};

use crate::{
    Error, Result, Source,
    connection::preflight,
    consume::{consumer::Consumer, consumers::Consumers},
};

/// The settings of a subscription that is about to be opened. [`Bus::subscribe`](crate::bus::Bus::subscribe) makes it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// # use polybus_core::{Bus, BusOptions, QueueSpec, Source, Topology, memory::MemoryDriver};
/// # let topology = Topology::new().queue("payments", QueueSpec::new());
/// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
/// # bus.declare().await?;
/// use std::time::Duration;
///
/// let mut payments = bus
///     .subscribe(Source::queue("payments"))
///     .prefetch(16)
///     .renew_locks(true)
///     .give_up_after(Duration::from_secs(60))
///     .open()
///     .await?;
/// # payments.close().await?;
/// # Ok(()) }
/// ```
#[must_use = "call open"]
pub struct SubscriptionBuilder {
    consumers: Arc<Consumers>,
    source: Source,
    prefetch: usize,
    renew: bool,
    give_up_after: Duration,
}

impl SubscriptionBuilder {
    pub(crate) fn new(consumers: Arc<Consumers>, source: Source) -> Self {
        let give_up_after = consumers.give_up_after;
        Self { consumers, source, prefetch: 64, renew: true, give_up_after }
    }

    /// Sets how many deliveries may be unsettled at once: those handed out, and those that wait to be. Default 64.
    ///
    /// With 0, [`open`](Self::open) fails with `InvalidArgument`. Deliveries that wait hold their locks, so a large
    /// prefetch keeps messages from other consumers.
    ///
    /// ```
    /// # async fn run(bus: polybus_core::Bus) -> polybus_core::Result<()> {
    /// # use polybus_core::Source;
    /// let mut one_at_a_time = bus.subscribe(Source::queue("payments")).prefetch(1).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn prefetch(mut self, n: usize) -> Self {
        self.prefetch = n;
        self
    }

    /// Sets whether the locks of unsettled deliveries are renewed, from receipt until they are settled. Default true.
    ///
    /// Without renewal a delivery must be settled within the source's
    /// [`lock`](crate::topology::QueueSpec::lock) (30 s by default), the time that it waits to be handed out included.
    ///
    /// ```
    /// # async fn run(bus: polybus_core::Bus) -> polybus_core::Result<()> {
    /// # use polybus_core::Source;
    /// let mut payments = bus.subscribe(Source::queue("payments")).renew_locks(false).open().await?;
    /// # Ok(()) }
    /// ```
    pub fn renew_locks(mut self, yes: bool) -> Self {
        self.renew = yes;
        self
    }

    /// Sets how long the broker may refuse this consumer without a success in between, before the subscription ends:
    /// see [`BusOptions::give_up_after`](crate::bus::BusOptions::give_up_after). Default: that of the bus.
    ///
    /// ```
    /// # async fn run(bus: polybus_core::Bus) -> polybus_core::Result<()> {
    /// # use polybus_core::Source;
    /// // A source that is deleted and made anew now and then never ends this subscription.
    /// let patient = bus.subscribe(Source::queue("payments")).give_up_after(std::time::Duration::MAX);
    /// # let _ = patient.open().await?;
    /// # Ok(()) }
    /// ```
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up_after = limit;
        self
    }

    /// Starts to consume. While the broker cannot be reached, opening waits up to the publish timeout of the bus.
    ///
    /// # Errors
    /// - `InvalidArgument`: the prefetch is 0.
    /// - `Unsupported`: this broker has no topics, dead letters, order per key, or locks of this length.
    /// - `NotFound`: the source does not exist. Some brokers tell it only when they are asked for messages; then it
    ///   ends the subscription once it has lasted for [`give_up_after`](Self::give_up_after).
    /// - `PermissionDenied`, `Unauthenticated`: as the broker answers.
    /// - `Closed`: the bus was closed.
    /// - `Unavailable`, `Timeout`, `Throttled`: the broker was not ready within the publish timeout.
    ///
    /// # Cancel safety
    /// Dropping the future opens nothing.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, ErrorKind, Source, memory::MemoryDriver};
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::default())?;
    /// match bus.subscribe(Source::queue("missing")).open().await {
    ///     Ok(_) => println!("it exists"),
    ///     Err(e) => assert_eq!(e.kind(), ErrorKind::NotFound),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn open(self) -> Result<Subscription> {
        let Self { consumers, source, prefetch, renew, give_up_after } = self;
        let connection = &consumers.connection;
        let opened = async {
            connection.ensure_open("subscribe")?;
            if prefetch == 0 {
                return Err(Error::invalid("prefetch must be at least 1"));
            }
            let mut entity = connection.topology.source(&source);
            preflight::source(&*connection.driver, &entity)?;
            entity.prefetch = prefetch;
            entity.renew_locks = renew;
            let deadline = connection.deadline(Instant::now());
            let (receiver, settler) =
                connection.retry_opening(deadline, || connection.driver.open_receiver(&entity)).await?;
            let consumer = Arc::new(Consumer::new(consumers.clone(), entity, receiver, settler, give_up_after));
            if let Err(e) = consumers.register(&consumer) {
                return Err(consumer.finish().await.err().unwrap_or(e));
            }
            Ok(Subscription { consumer })
        };
        opened.await.map_err(|e| connection.located(e, "subscribe").with_place("source", &source))
    }
}

/// A consumer of one source. It yields deliveries, by [`next`](Self::next) or as a [`Stream`].
///
/// **Errors.** It yields an error only as its last item, then `None`. Transient errors do not end it: they are logged,
/// and it reconnects. `NotFound`, `PermissionDenied` and `Unauthenticated` end it once they have lasted for
/// [`give_up_after`](SubscriptionBuilder::give_up_after); `Closed` ends it at once.
///
/// **Dropping it** stops receiving and gives back what was not handed out. Deliveries that were handed out can still be
/// settled. Call [`close`](Self::close) to wait until that is done.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
/// # let topology = Topology::new().queue("payments", QueueSpec::new());
/// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
/// # bus.declare().await?;
/// let source = Source::queue("payments");
/// let mut payments = bus.subscribe(&source).open().await?;
/// bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
/// while let Some(delivery) = payments.next().await {
///     let delivery = delivery?;
///     println!("{}", delivery.envelope().id);
///     delivery.ack().await?;
/// #   break;
/// }
/// payments.close().await?;
/// # Ok(()) }
/// ```
#[doc(alias = "Consumer")]
pub struct Subscription {
    pub(crate) consumer: Arc<Consumer>,
}

impl Subscription {
    /// Waits for the next delivery. `None` once the subscription has ended.
    ///
    /// # Errors
    /// An error is the last item: `NotFound`, `PermissionDenied` or `Unauthenticated` that have lasted for
    /// [`give_up_after`](SubscriptionBuilder::give_up_after), with that time as context `refused_for`; or `Closed`, if
    /// the bus was closed.
    ///
    /// # Cancel safety
    /// Dropping the future loses no message: what was received meanwhile is kept for the next call.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// # let mut payments = bus.subscribe(Source::queue("payments")).open().await?;
    /// // Being cancel safe, it can wait with a time limit, or in a `select!`.
    /// let within = std::time::Duration::from_secs(5);
    /// match tokio::time::timeout(within, payments.next()).await {
    ///     Ok(Some(delivery)) => delivery?.ack().await?,
    ///     Ok(None) => println!("the subscription has ended"),
    ///     Err(_) => println!("no message for five seconds"),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        // With a full buffer, or a driver that answers at once, a loop of calls would never yield.
        tokio::task::coop::consume_budget().await;
        if let Some(delivery) = self.consumer.take_buffered() {
            return Some(Ok(delivery));
        }
        let waiting = CancelOnDrop(&self.consumer);
        poll_fn(|cx| waiting.0.poll_next(cx)).await
    }

    /// The source that it consumes.
    ///
    /// ```
    /// # async fn run(bus: polybus_core::Bus) -> polybus_core::Result<()> {
    /// # use polybus_core::Source;
    /// let payments = bus.subscribe(Source::queue("payments")).open().await?;
    /// assert_eq!(payments.source().to_string(), "queue:payments");
    /// # Ok(()) }
    /// ```
    pub fn source(&self) -> &Source {
        &self.consumer.entity.name
    }

    /// The error of the last call to the broker. `None` if that call brought messages, or still waits for some.
    pub(crate) fn receive_error(&self) -> Option<crate::error::Error> {
        self.consumer.receive_error().clone()
    }

    /// Stops receiving and gives back what was not handed out. Deliveries that were handed out can still be settled;
    /// [`next`](Self::next) yields no more of them. Idempotent.
    ///
    /// # Errors
    /// The broker's, if its consumer could not be closed. The subscription is stopped all the same. A broker that does
    /// not answer is waited for about 5 s, which is no error.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the subscription stopped; another call goes on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// let mut payments = bus.subscribe(&source).open().await?;
    /// if let Some(delivery) = payments.next().await {
    ///     payments.stop().await?;
    ///     delivery?.ack().await?; // handed out before, so it can be settled
    /// }
    /// assert!(payments.next().await.is_none());
    /// # Ok(()) }
    /// ```
    pub async fn stop(&mut self) -> Result<()> {
        self.consumer.stop().await
    }

    /// Stops, finishes the settlements under way, and gives back every unsettled delivery. Settling one of those later
    /// fails with `LockLost`. Idempotent.
    ///
    /// # Errors
    /// Those of [`stop`](Self::stop). Settlements that the broker does not answer are waited for about 5 s, then their
    /// callers get `Unavailable`.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the subscription stopped; another call goes on.
    ///
    /// ```
    /// # async fn run(bus: polybus_core::Bus) -> polybus_core::Result<()> {
    /// # use polybus_core::Source;
    /// let mut payments = bus.subscribe(Source::queue("payments")).open().await?;
    /// payments.close().await?;
    /// # Ok(()) }
    /// ```
    pub async fn close(&mut self) -> Result<()> {
        self.consumer.finish().await
    }
}

/// Ends the receiving when the future of [`Subscription::next`] is dropped. Otherwise the broker could wake this
/// consumer for the next message although nobody waits here, and another consumer would not get it.
struct CancelOnDrop<'a>(&'a Arc<Consumer>);

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        self.0.next_future.cancel();
    }
}

impl Stream for Subscription {
    type Item = Result<Delivery>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.consumer.poll_next(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.consumer.next_future.cancel_and_wake();
        self.consumer.close_after_drop();
    }
}
