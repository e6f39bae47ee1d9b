//! Publishing.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use async_trait::async_trait;

use super::{connection::Connection, fail, message::Message, message_store::Wakers, queue::Queue, topic::Topic};
use crate::{
    driver::{Batching, PreparedMessage, Sender},
    error::{Error, ErrorKind, Result},
    message::{Envelope, Outgoing, Receipt},
    topology::{Address, Entity},
};

pub(super) struct MemorySender {
    connection: Arc<Connection>,
    to: Entity<Address>,
    max_message_size: usize,
    recording: Arc<AtomicBool>,
    /// The entity as it was when it was first found; one that was deleted and declared again is looked up each time.
    first: OnceLock<Target>,
    closed: AtomicBool,
}

#[derive(Clone)]
enum Target {
    Queue(Arc<Queue>),
    Topic(Arc<Topic>),
}

impl MemorySender {
    pub(super) fn new(
        connection: Arc<Connection>,
        to: Entity<Address>,
        max_message_size: usize,
        recording: Arc<AtomicBool>,
    ) -> Self {
        let closed = AtomicBool::new(false);
        Self { connection, to, max_message_size, recording, first: OnceLock::new(), closed }
    }

    fn find(&self) -> Option<Target> {
        let broker = &self.connection.broker;
        match &self.to.name {
            Address::Queue(_) => broker.queue(&self.to.physical).map(Target::Queue),
            Address::Topic(_) => broker.topic(&self.to.physical).map(Target::Topic),
        }
    }

    fn publish(&self, batch: &[PreparedMessage]) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(fail(ErrorKind::Closed, "the sender was closed"));
        }
        self.connection.check_open()?;
        let mut wakers = Wakers::default();
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
            self.connection.broker.recorded(&self.to.name, messages);
        }
        wakers.wake();
        Ok(())
    }

    fn missing(&self) -> Error {
        fail(ErrorKind::NotFound, "no such queue or topic: declare it first").with_context("address", &self.to.name)
    }
}

/// The size of a message that is not larger than the limit.
pub(super) fn fits(message: &Envelope, limit: usize) -> Result<usize> {
    let size = message.data.len() + message.metadata_size();
    if size > limit {
        let text = format!("message of {size} bytes: at most {limit} are allowed");
        return Err(fail(ErrorKind::PayloadTooLarge, text).with_context("id", &message.id));
    }
    Ok(size)
}

impl Target {
    fn publish(&self, batch: &[PreparedMessage], wakers: &mut Wakers) -> bool {
        let messages = batch.iter().map(|p| (Message::new(p.message.envelope.clone()), p.message.delay));
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
        let size = fits(&message.envelope, self.max_message_size)?;
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
