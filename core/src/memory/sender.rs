//! Publishing to a queue or topic.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;

use super::{
    connection::MemoryConnection, fail, message_store::WakeList, queue::MemoryQueue, stored_message::StoredMessage,
    topic::MemoryTopic,
};
use crate::{
    Address, Envelope, Error, ErrorKind, Outgoing, Receipt, Result,
    driver::{Batching, PreparedMessage, Sender},
    topology::Entity,
};

pub(super) struct MemorySender {
    connection: Arc<MemoryConnection>,
    to: Entity<Address>,
    max_message_size: usize,
    recording: Arc<AtomicBool>,
    /// The queue or topic that was found first. If it was deleted and declared again, each publish looks it up.
    first: OnceLock<PublishTarget>,
    closed: AtomicBool,
}

#[derive(Clone)]
enum PublishTarget {
    Queue(Arc<MemoryQueue>),
    Topic(Arc<MemoryTopic>),
}

impl MemorySender {
    pub(super) fn new(
        connection: Arc<MemoryConnection>,
        to: Entity<Address>,
        max_message_size: usize,
        recording: Arc<AtomicBool>,
    ) -> Self {
        let closed = AtomicBool::new(false);
        Self { connection, to, max_message_size, recording, first: OnceLock::new(), closed }
    }

    fn find(&self) -> Option<PublishTarget> {
        let broker = &self.connection.broker;
        match &self.to.name {
            Address::Queue(_) => broker.queue(&self.to.physical).map(PublishTarget::Queue),
            Address::Topic(_) => broker.topic(&self.to.physical).map(PublishTarget::Topic),
        }
    }

    fn publish(&self, batch: &[PreparedMessage]) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(fail(ErrorKind::Closed, "the sender was closed"));
        }
        self.connection.check_open()?;
        let mut wakers = WakeList::default();
        let known = match self.first.get() {
            Some(target) => target.publish(batch, &mut wakers),
            None => false,
        };
        if !known {
            let target = self.find().ok_or_else(|| self.missing())?;
            if !target.publish(batch, &mut wakers) {
                return Err(self.missing());
            }
            let _ = self.first.set(target);
        }
        if self.recording.load(Ordering::Relaxed) {
            let messages = batch.iter().map(|p| p.message.envelope.clone());
            self.connection.broker.add_published(&self.to.name, messages);
        }
        wakers.wake();
        Ok(())
    }

    fn missing(&self) -> Error {
        fail(
            ErrorKind::NotFound,
            "the queue or topic does not exist: name it in the topology and call Bus::declare, or check its name",
        )
        .with_context("address", &self.to.name)
    }
}

/// The size of a message in bytes; `PayloadTooLarge` above the limit.
pub(super) fn check_size(message: &Envelope, limit: usize) -> Result<usize> {
    let size = message.data.len() + message.metadata_size();
    if size > limit {
        let text = format!("message of {size} bytes: at most {limit} are allowed");
        return Err(fail(ErrorKind::PayloadTooLarge, text).with_context("id", &message.id));
    }
    Ok(size)
}

impl PublishTarget {
    /// False if the queue or topic was deleted.
    fn publish(&self, batch: &[PreparedMessage], wakers: &mut WakeList) -> bool {
        let messages = batch.iter().map(|p| (StoredMessage::new(p.message.envelope.clone()), p.message.delay));
        match self {
            Self::Queue(queue) => queue.publish(messages, wakers),
            Self::Topic(topic) => topic.publish(&messages.collect::<Vec<_>>(), wakers),
        }
    }
}

#[async_trait]
impl Sender for MemorySender {
    fn batching(&self) -> Batching {
        Batching::new(1024, usize::MAX, 4)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let size = check_size(&message.envelope, self.max_message_size)?;
        Ok(PreparedMessage::new(message, size))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        match self.publish(batch) {
            Ok(()) => batch.iter().map(|_| Ok(Receipt::default())).collect(),
            Err(e) => e.for_each_of(batch.len()),
        }
    }

    async fn close(&self) -> Result<()> {
        self.closed.store(true, Ordering::Release);
        Ok(())
    }
}
