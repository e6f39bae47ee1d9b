//! The bus: the handle that an application holds.
//!
//! | what the application calls | where it goes |
//! |---|---|
//! | [`Bus::publish`], [`Bus::publish_all`], [`Bus::publish_reply`], [`Bus::publisher`] | `publish/` |
//! | [`Bus::subscribe`] | `consume/` |
//! | [`Bus::worker`] | `worker/` |
//! | [`Bus::redrive`], [`Bus::redrive_each`] | `redrive/` |
//! | [`Bus::declare`], [`Bus::verify`], [`Bus::stats`], [`Bus::purge`], [`Bus::delete`] | `admin.rs`, and the driver |
//! | [`Bus::close`] | this file: it closes consumers, publishers and the connection |
//!
//! `options.rs` has the settings.

mod admin;
mod options;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use time::OffsetDateTime;
use tokio::{sync::Semaphore, time::Instant};

pub use self::options::BusOptions;

use crate::{
    Address, Outgoing, Publisher, Result, Source, Topology,
    connection::{
        BusConnection,
        close_timeout::{CLOSE_TIMEOUT, close_until},
        preflight,
    },
    consume::{SubscriptionBuilder, consumers::Consumers},
    driver::{Capabilities, Driver},
    message::ReplyTo,
    publish::{Publishing, PublishingAll, publishers::Publishers, with_caller_context},
    runtime::clock::SystemClock,
    topology::DeclareMode,
};

/// A connection to a broker. It is cheap to clone, and all clones share it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Registry, Source, Topology};
///
/// let topology = Topology::new().queue("payments", QueueSpec::new());
/// let driver = Registry::new().connect("memory://").await?;
/// let bus = Bus::new(driver, BusOptions::topology(topology))?;
/// bus.declare().await?;
///
/// let source = Source::queue("payments");
/// bus.publish(source.address(), Envelope::new("payment.made", r#"{"amount":7}"#)).await?;
/// let mut payments = bus.subscribe(&source).open().await?;
/// if let Some(delivery) = payments.next().await {
///     delivery?.ack().await?;
/// }
/// bus.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Bus {
    shared: Arc<SharedBus>,
}

/// The state that all clones of a bus share.
struct SharedBus {
    connection: Arc<BusConnection>,
    consumers: Arc<Consumers>,
    publishers: Publishers,
    declare: DeclareMode,
    /// Whether closing has ended. Its lock is held while the bus closes, so that further callers of `close` wait for
    /// the end.
    closed: tokio::sync::Mutex<bool>,
}

impl Bus {
    /// A bus over a driver. No I/O, and nothing is created at the broker before [`declare`](Self::declare).
    ///
    /// Applications get a bus by URL, from `polybus::connect`. This is for drivers that are made in another way.
    ///
    /// # Errors
    /// `ConfigInvalid` if the topology is wrong, `Unsupported` if this broker cannot keep it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// use polybus_core::{Bus, BusOptions, memory::MemoryDriver};
    /// use std::sync::Arc;
    ///
    /// let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::new())?;
    /// assert_eq!(bus.backend(), "memory");
    /// # Ok(()) }
    /// ```
    pub fn new(driver: Arc<dyn Driver>, options: BusOptions) -> Result<Self> {
        preflight::topology(&*driver, &options.topology)?;
        let max_pending = options.max_pending_bytes.clamp(1, u32::MAX as usize);
        let clock = options.clock.or_else(|| driver.clock()).unwrap_or_else(|| Arc::new(SystemClock));
        let (queue_system, topic_system) = driver.messaging_systems();
        let connection = Arc::new(BusConnection {
            driver,
            clock,
            topology: options.topology,
            event_source: options.event_source.into(),
            queue_system: Arc::new(queue_system),
            topic_system: Arc::new(topic_system),
            pending_bytes: Arc::new(Semaphore::new(max_pending)),
            max_pending_bytes: max_pending,
            publish_timeout: options.publish_timeout,
            closed: AtomicBool::new(false),
        });
        Ok(Self {
            shared: Arc::new(SharedBus {
                consumers: Arc::new(Consumers::new(connection.clone(), options.give_up_after)),
                publishers: Publishers::new(connection.clone()),
                connection,
                declare: options.declare,
                closed: tokio::sync::Mutex::new(false),
            }),
        })
    }

    /// A publisher to one address. The bus opens one for each address and keeps it; later calls get a clone.
    ///
    /// While the broker cannot be reached, opening waits up to the publish timeout.
    ///
    /// # Errors
    /// - `Unsupported`: this broker has no topics, or keeps no order per key.
    /// - `NotFound`, where the broker checks the address at this point; others answer it to each publish.
    /// - `Closed`; and the broker's error once the publish timeout has passed.
    ///
    /// # Cancel safety
    /// Dropping the future opens nothing.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let payments = bus.publisher(Address::queue("payments")).await?;
    /// payments.publish(Envelope::new("payment.made", "{}")).await?;
    /// # Ok(()) }
    /// ```
    pub async fn publisher(&self, to: impl Into<Address>) -> Result<Publisher> {
        self.shared.publishers.open(&to.into(), self.connection().deadline(Instant::now())).await
    }

    /// Publishes one message, by the [`publisher`](Self::publisher) of its address. `Ok` means that the broker has
    /// taken durable responsibility for it.
    ///
    /// A message on a topic that no subscription wants is dropped, and `publish` is Ok.
    ///
    /// # Errors
    /// Those of [`publisher`](Self::publisher) and of [`Publisher::publish`].
    ///
    /// # Cancel safety
    /// That of [`Publisher::publish`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let message = Envelope::new("payment.made", r#"{"amount":7}"#).key("account-3");
    /// bus.publish(Address::queue("payments"), message).await?;
    /// # Ok(()) }
    /// ```
    pub fn publish(&self, to: impl Into<Address>, message: impl Into<Outgoing>) -> Publishing {
        let (this, to, message) = (self.clone(), to.into(), with_caller_context(message.into()));
        Publishing(Box::pin(async move {
            let started = Instant::now();
            let publisher = this.shared.publishers.open(&to, this.connection().deadline(started)).await?;
            publisher.publish_one(message, started).await
        }))
    }

    /// Publishes many messages, by the [`publisher`](Self::publisher) of their address. Answers with one result for
    /// each, in their order.
    ///
    /// # Errors
    /// Those of [`Publisher::publish_all`], for each message.
    ///
    /// # Cancel safety
    /// That of [`Publisher::publish`], for each message.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let messages = (0..100).map(|n| Envelope::new("payment.made", n.to_string()));
    /// for result in bus.publish_all(Address::queue("payments"), messages).await {
    ///     result?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn publish_all<M: Into<Outgoing>>(
        &self,
        to: impl Into<Address>,
        messages: impl IntoIterator<Item = M>,
    ) -> PublishingAll {
        let messages: Vec<Outgoing> = messages.into_iter().map(|m| with_caller_context(m.into())).collect();
        let (this, to) = (self.clone(), to.into());
        PublishingAll(Box::pin(async move {
            let started = Instant::now();
            match this.shared.publishers.open(&to, this.connection().deadline(started)).await {
                Ok(publisher) => publisher.publish_many(messages, started).await,
                Err(e) => e.for_each_of(messages.len()),
            }
        }))
    }

    /// Publishes the answer to a message into the queue in which its sender waits for it. On Service Bus it goes into the
    /// [session](ReplyTo::session) that the sender named.
    ///
    /// A queue that no address names keeps a publisher only while it is one of the last 64 of them, since other
    /// programs make a queue for each of their processes. Its metrics have the address `queue:reply-to`.
    ///
    /// # Errors
    /// Those of [`publish`](Self::publish). `NotFound`: whoever asked has left, and its queue with it.
    ///
    /// # Cancel safety
    /// That of [`Publisher::publish`].
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("quotes", QueueSpec::new()).queue("replies", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// use polybus_core::message::ReplyTo;
    ///
    /// let request = Envelope::new("quote.wanted", "{}").reply_to("replies");
    /// if let Some(to) = ReplyTo::of(&request) {
    ///     bus.publish_reply(&to, Envelope::new("quote.made", "{}").caused_by(&request)).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn publish_reply(&self, to: &ReplyTo, message: impl Into<Outgoing>) -> Publishing {
        let (this, to) = (self.clone(), to.clone());
        let mut message = with_caller_context(message.into());
        if let Some(session) = to.session() {
            message.envelope = message.envelope.key(session);
        }
        Publishing(Box::pin(async move {
            let started = Instant::now();
            let publisher = this.shared.publishers.open_reply(&to, this.connection().deadline(started)).await?;
            publisher.publish_one(message, started).await
        }))
    }

    /// Begins to describe a subscription of a source. No I/O before [`open`](SubscriptionBuilder::open).
    ///
    /// Consumers of the same source compete: each message goes to one of them.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let mut payments = bus.subscribe(Source::queue("payments")).prefetch(16).open().await?;
    /// # bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}")).await?;
    /// if let Some(delivery) = payments.next().await {
    ///     delivery?.ack().await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn subscribe(&self, source: impl Into<Source>) -> SubscriptionBuilder {
        SubscriptionBuilder::new(self.shared.consumers.clone(), source.into())
    }

    /// What the broker can do. It never changes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// if bus.capabilities().topics {
    ///     println!("{} has topics", bus.backend());
    /// }
    /// # Ok(()) }
    /// ```
    pub fn capabilities(&self) -> &Capabilities {
        self.connection().driver.capabilities()
    }

    /// Product and version of the server. `None` where it does not tell, or cannot be reached.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// assert!(bus.version().await.is_some_and(|version| version.starts_with("polybus memory")));
    /// # Ok(()) }
    /// ```
    pub async fn version(&self) -> Option<String> {
        self.connection().driver.version().await
    }

    /// The broker family, such as `rabbitmq`. Errors, logs and metrics name it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// assert_eq!(bus.backend(), "memory");
    /// # Ok(()) }
    /// ```
    pub fn backend(&self) -> &'static str {
        self.connection().driver.backend()
    }

    /// The topology that the bus was made with.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// for queue in bus.topology().queues.keys() {
    ///     println!("{queue}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn topology(&self) -> &Topology {
        &self.connection().topology
    }

    /// The wall time by the clock of this bus: see [`BusOptions::clock`](BusOptions#structfield.clock).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// use std::time::Duration;
    ///
    /// let in_an_hour = bus.now() + Duration::from_secs(3600);
    /// let offer = Envelope::new("offer.made", "{}").expires_at(in_an_hour);
    /// bus.publish(Address::queue("payments"), offer).await?;
    /// # Ok(()) }
    /// ```
    pub fn now(&self) -> OffsetDateTime {
        self.connection().clock.now()
    }

    /// The driver's native client, for what no method here can do. `None` if the driver hands out another type than
    /// `T`, or none.
    ///
    /// Each adapter's README names its type under "Native access".
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// let driver = bus.native::<MemoryDriver>().expect("the in-process broker hands itself out");
    /// driver.record(true);
    /// # Ok(()) }
    /// ```
    pub fn native<T: 'static>(&self) -> Option<&T> {
        self.connection().driver.native()?.downcast_ref()
    }

    /// Closes the bus: consumers with their settlements, then publishers, then the connection. What is under way is
    /// finished first.
    ///
    /// | step | a broker that does not answer is waited for |
    /// |---|---|
    /// | settlements under way | about 5 s, then their callers get `Unavailable` |
    /// | publishes under way | up to the publish timeout |
    /// | closing senders, closing the connection | about 5 s each, then they are left to themselves |
    ///
    /// Deliveries that are still unsettled go back to the broker. Idempotent; several calls at once all wait for the
    /// end.
    ///
    /// # Errors
    /// The first error of a consumer, a publisher or the connection. The bus is closed all the same.
    ///
    /// # Cancel safety
    /// If the future is dropped, the bus accepts no more calls, and another call of `close` goes on.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// use polybus_core::ErrorKind;
    ///
    /// bus.close().await?;
    /// let e = bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}")).await.unwrap_err();
    /// assert_eq!(e.kind(), ErrorKind::Closed);
    /// # Ok(()) }
    /// ```
    pub async fn close(&self) -> Result<()> {
        let (shared, connection) = (&self.shared, self.connection());
        // Marked before anything is closed: a consumer that registers from now on fails, or is in the list that is
        // closed below.
        connection.closed.store(true, Ordering::Release);
        let mut closed = shared.closed.lock().await;
        if *closed {
            return Ok(());
        }
        let consumers = shared.consumers.close(Instant::now() + CLOSE_TIMEOUT).await;
        // Publishes that still wait for room fail from here on. Those that have it are finished.
        connection.pending_bytes.close();
        let publishers = shared.publishers.close().await;
        let driver = close_until(Instant::now() + CLOSE_TIMEOUT, connection.driver.close(), || {
            tracing::warn!(
                backend = connection.driver.backend(),
                "the connection to the broker did not end in time, and is left to itself"
            );
        })
        .await;
        *closed = true;
        shared.consumers.clear();
        shared.publishers.clear();
        consumers.and(publishers).and(driver).map_err(|e| connection.located(e, "close"))
    }

    pub(crate) fn connection(&self) -> &BusConnection {
        &self.shared.connection
    }
}
