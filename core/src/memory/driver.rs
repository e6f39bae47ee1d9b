//! The driver: a connection to the in-process broker.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde::Deserialize;

use super::{
    BACKEND,
    broker::MemoryBroker,
    connection::{MemoryConnection, store_kind},
    receiver::MemoryReceiver,
    sender::MemorySender,
    settler::MemorySettler,
};
use crate::{
    Address, Envelope, Result, Source,
    driver::{AttemptDurability, Capabilities, Driver, KeyHolder, KeyOrder, Receiver, Sender, Settler},
    runtime::clock::Clock,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

/// The largest message in bytes, unless it is set.
const MAX_MESSAGE_SIZE: usize = 256 << 20;

/// A connection to the in-process broker.
///
/// It stores envelopes as they are, without encoding them. It keeps every promise of the contract exactly: an `ack`
/// that is Ok is final, attempts and order survive the end of any consumer, counts are never approximate.
///
/// A test publishes and consumes through a bus, and looks at what was published:
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// use std::sync::Arc;
///
/// use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Topology, memory::MemoryDriver};
///
/// let driver = Arc::new(MemoryDriver::new());
/// driver.record(true);
/// let topology = Topology::new().queue("payments", QueueSpec::new());
/// let bus = Bus::new(driver.clone(), BusOptions::topology(topology))?;
/// bus.declare().await?;
/// let publisher = bus.publisher(Address::queue("payments")).await?;
/// publisher.publish(Envelope::new("payment.made", "12")).await?;
/// assert_eq!(&*driver.published(&Address::queue("payments"))[0].event_type, "payment.made");
/// # Ok(()) }
/// ```
pub struct MemoryDriver {
    pub(super) connection: Arc<MemoryConnection>,
    capabilities: Capabilities,
    recording: Arc<AtomicBool>,
}

/// The table `options.memory`: there are no options.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NoOptions {}

impl MemoryDriver {
    /// A connection to a new broker, as `memory://` makes.
    pub fn new() -> Self {
        Self::over(Arc::default())
    }

    /// A connection to the broker that the whole process shares under this name, as `memory://name` makes. The broker
    /// and its messages stay until the process ends.
    ///
    /// ```
    /// # use polybus_core::{driver::Driver, memory::MemoryDriver};
    /// let (one, other) = (MemoryDriver::named("shop"), MemoryDriver::named("shop"));
    /// // What `one` declares and publishes, `other` consumes.
    /// # assert_eq!(one.backend(), other.backend());
    /// ```
    pub fn named(name: &str) -> Self {
        Self::over(MemoryBroker::named(name))
    }

    /// Another connection to the same broker, with the same size limit and the same choice of `fifo_dead_letters`.
    /// Closing one does not close the other.
    ///
    /// ```
    /// # use polybus_core::memory::MemoryDriver;
    /// let driver = MemoryDriver::new();
    /// let consumers = driver.again();
    /// # drop(consumers);
    /// ```
    pub fn again(&self) -> Self {
        let mut again = Self::over(self.connection.broker.clone()).max_message_size(self.limit());
        again.capabilities.kept_letters_block = self.capabilities.kept_letters_block;
        again
    }

    fn over(broker: Arc<MemoryBroker>) -> Self {
        let capabilities = Capabilities {
            topics: true,
            ordered: Some(KeyOrder::new(KeyHolder::Broker, AttemptDurability::Durable, true)),
            confirmed_settlement: true,
            locks: true,
            lock_range: None,
            dead_letters: true,
            redrive: true,
            max_retry_delay: Some(Duration::MAX),
            max_queue_delay: Some(Duration::MAX),
            max_topic_delay: Some(Duration::MAX),
            max_queue_payload: Some(MAX_MESSAGE_SIZE),
            max_topic_payload: Some(MAX_MESSAGE_SIZE),
            attempts_across_crash: true,
            stats: true,
            purge: true,
            receive_counts: false,
            kept_letters_block: false,
            declare: true,
        };
        Self { connection: Arc::new(MemoryConnection::new(broker)), capabilities, recording: Arc::default() }
    }

    /// Sets the largest message in bytes: payload, attributes and headers together. Larger ones are
    /// `PayloadTooLarge`. The default is 256 MiB.
    ///
    /// ```
    /// # use polybus_core::{driver::Driver, memory::MemoryDriver};
    /// let driver = MemoryDriver::new().max_message_size(64 << 10);
    /// assert_eq!(driver.capabilities().max_queue_payload, Some(65_536));
    /// ```
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.capabilities.max_queue_payload = Some(bytes);
        self.capabilities.max_topic_payload = Some(bytes);
        self
    }

    /// Makes the dead letters of ordered sources keep the order per key, as FIFO queues do: a letter that is held
    /// hides the later ones of its key. It holds for sources that this connection declares from now on. For tests of
    /// programs that handle dead letters.
    ///
    /// ```
    /// # use polybus_core::{driver::Driver, memory::MemoryDriver};
    /// assert!(MemoryDriver::new().fifo_dead_letters().capabilities().kept_letters_block);
    /// ```
    pub fn fifo_dead_letters(mut self) -> Self {
        self.capabilities.kept_letters_block = true;
        self
    }

    fn limit(&self) -> usize {
        self.capabilities.max_queue_payload.unwrap_or(MAX_MESSAGE_SIZE)
    }

    /// Switches recording on or off. While it is on, the broker keeps a copy of every message that is published over
    /// this connection, for [`published`](Self::published). It is off at first, since the copies are never removed.
    /// Switching it off drops them.
    ///
    /// ```
    /// # use polybus_core::{Address, memory::MemoryDriver};
    /// let driver = MemoryDriver::new();
    /// driver.record(true);
    /// assert!(driver.published(&Address::queue("payments")).is_empty());
    /// ```
    pub fn record(&self, yes: bool) {
        self.connection.broker.record(yes);
        self.recording.store(yes, Ordering::Release);
    }

    /// The messages that were published to this logical address while [`record`](Self::record) was on, oldest first.
    pub fn published(&self, to: &Address) -> Vec<Envelope> {
        self.connection.broker.published(to)
    }
}

impl Default for MemoryDriver {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Driver for MemoryDriver {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn version(&self) -> Option<String> {
        Some(concat!("polybus memory ", env!("CARGO_PKG_VERSION")).into())
    }

    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        let topics = plan.topics.iter().map(|t| (format!("topic {}", t.physical), t.name.to_string()));
        let sources = plan.sources.iter().map(|s| match &s.parent {
            Some(topic) => (format!("subscription {topic}/{}", s.physical), s.name.to_string()),
            None => (format!("queue {}", s.physical), s.name.to_string()),
        });
        topics.chain(sources).collect()
    }

    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        for topic in &plan.topics {
            topic.options::<NoOptions>(BACKEND)?;
        }
        for source in &plan.sources {
            source.options::<NoOptions>(BACKEND)?;
        }
        Ok(())
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        self.connection.check_open()?;
        Ok(self.connection.broker.declare(plan, mode, self.capabilities.kept_letters_block))
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.connection.check_open()?;
        let recording = self.recording.clone();
        Ok(Arc::new(MemorySender::new(self.connection.clone(), to.clone(), self.limit(), recording)))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let consumer = self.connection.consume(from)?;
        Ok((Box::new(MemoryReceiver::new(consumer.clone())), Arc::new(MemorySettler::new(consumer, self.limit()))))
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        Ok(self.connection.find(of)?.stats(store_kind(&of.name)))
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        Ok(self.connection.find(from)?.purge(store_kind(&from.name)))
    }

    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        self.connection.check_open()?;
        self.connection.broker.delete(plan);
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        self.connection.close();
        Ok(())
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        Some(self.connection.clock.clone())
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        Some(self)
    }
}
