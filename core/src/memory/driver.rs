//! A connection to the in-process broker.

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
    broker::Broker,
    connection::{Connection, side},
    receiver::MemoryReceiver,
    sender::MemorySender,
    settler::MemorySettler,
};
use crate::{
    driver::{AttemptDurability, Capabilities, Driver, KeyHolder, KeyOrder, Receiver, Sender, Settler},
    error::Result,
    message::Envelope,
    runtime::clock::Clock,
    topology::{Address, DeclareMode, DeclarePlan, DeclareReport, Entity, Source, SourceStats},
};

const MAX_MESSAGE_SIZE: usize = 256 << 20;

/// A connection to the in-process broker.
///
/// It moves envelopes as they are, without encoding them. Its promises are the contract's, and exact: an `ack` that is Ok
/// is final, attempts and order survive the end of any consumer, counts are never approximate.
pub struct MemoryDriver {
    pub(super) connection: Arc<Connection>,
    capabilities: Capabilities,
    recording: Arc<AtomicBool>,
}

/// The broker has no settings of its own.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NoOptions {}

impl MemoryDriver {
    /// A connection to a broker of its own, as `memory://`.
    pub fn new() -> Self {
        Self::over(Arc::default())
    }

    /// A connection to the broker that all in this process share under that name, as `memory://name`.
    pub fn named(name: &str) -> Self {
        Self::over(Broker::named(name))
    }

    /// Another connection to the same broker.
    pub fn again(&self) -> Self {
        let mut again = Self::over(self.connection.broker.clone()).max_message_size(self.limit());
        again.capabilities.kept_letters_block = self.capabilities.kept_letters_block;
        again
    }

    fn over(broker: Arc<Broker>) -> Self {
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
        Self { connection: Arc::new(Connection::new(broker)), capabilities, recording: Arc::default() }
    }

    /// Sets the largest message in bytes, payload, attributes and headers together.
    pub fn max_message_size(mut self, bytes: usize) -> Self {
        self.capabilities.max_queue_payload = Some(bytes);
        self.capabilities.max_topic_payload = Some(bytes);
        self
    }

    /// Makes the dead letters of ordered sources that this connection declares keep the order per key, as FIFO queues do: one that is held hides the
    /// later ones of its key. For tests of what goes through dead letters.
    pub fn fifo_dead_letters(mut self) -> Self {
        self.capabilities.kept_letters_block = true;
        self
    }

    fn limit(&self) -> usize {
        self.capabilities.max_queue_payload.unwrap_or(MAX_MESSAGE_SIZE)
    }

    /// Whether to keep a copy of every message that is published over this connection from now on. Off at first, since
    /// the list only grows; switched off, it is dropped.
    pub fn record(&self, yes: bool) {
        self.connection.broker.record(yes);
        self.recording.store(yes, Ordering::Release);
    }

    /// The messages published to this address while [`MemoryDriver::record`] was on, oldest first.
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
        Ok(self.connection.find(of)?.stats(side(&of.name)))
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        Ok(self.connection.find(from)?.purge(side(&from.name)))
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
