//! A connection to the broker, and its consumers. Senders and consumers of one driver share it.

use std::sync::{
    Arc, OnceLock, Weak,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::Mutex;

use super::{
    BACKEND,
    broker::MemoryBroker,
    fail,
    message_store::ConsumerId,
    queue::{MemoryQueue, StoreKind},
};
use crate::{ErrorKind, Result, Source, runtime::clock::TokioClock, topology::Entity};

pub(super) struct MemoryConnection {
    pub(super) broker: Arc<MemoryBroker>,
    pub(super) clock: Arc<TokioClock>,
    closed: AtomicBool,
    consumers: Mutex<Vec<Weak<MemoryConsumer>>>,
}

/// A consumer, shared by its receiver and its settler.
pub(super) struct MemoryConsumer {
    pub(super) connection: Arc<MemoryConnection>,
    pub(super) queue: Arc<MemoryQueue>,
    pub(super) kind: StoreKind,
    pub(super) id: ConsumerId,
    /// The source as text, which is the origin of its dead letters.
    pub(super) origin: Box<str>,
    from: Entity<Source>,
    /// The consumer that took its place after its source was deleted and declared again.
    successor: OnceLock<Arc<MemoryConsumer>>,
}

impl MemoryConnection {
    pub(super) fn new(broker: Arc<MemoryBroker>) -> Self {
        let clock = Arc::new(TokioClock::new());
        Self { broker, clock, closed: AtomicBool::new(false), consumers: Mutex::default() }
    }

    pub(super) fn check_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(fail(ErrorKind::Closed, "the connection was closed")),
            false => Ok(()),
        }
    }

    pub(super) fn find(&self, source: &Entity<Source>) -> Result<Arc<MemoryQueue>> {
        self.check_open()?;
        self.broker.source(source).ok_or_else(|| missing(source))
    }

    pub(super) fn consume(self: &Arc<Self>, from: &Entity<Source>) -> Result<Arc<MemoryConsumer>> {
        let queue = self.find(from)?;
        let kind = store_kind(&from.name);
        let id = queue.enter(kind, from.prefetch, from.settings.lock).ok_or_else(|| missing(from))?;
        let consumer = Arc::new(MemoryConsumer {
            connection: self.clone(),
            queue,
            kind,
            id,
            origin: from.name.to_string().into(),
            from: from.clone(),
            successor: OnceLock::new(),
        });
        let mut consumers = self.consumers.lock();
        consumers.retain(|c| c.strong_count() > 0);
        consumers.push(Arc::downgrade(&consumer));
        drop(consumers);
        // After the push: a `close` that ran before it has missed this consumer.
        self.check_open().inspect_err(|_| consumer.leave())?;
        Ok(consumer)
    }

    /// Ends the connection. Everything that its consumers hold is given back, as after a lost connection.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let consumers = std::mem::take(&mut *self.consumers.lock());
        consumers.iter().filter_map(Weak::upgrade).for_each(|c| c.leave());
    }
}

impl MemoryConsumer {
    /// Gives back everything that is unsettled. Idempotent.
    pub(super) fn leave(&self) {
        self.queue.leave(self.kind, self.id);
        if let Some(successor) = self.successor.get() {
            successor.leave();
        }
    }

    /// Opens a consumer in its place, after its source was deleted. The messages that this one held are gone.
    pub(super) fn replace(&self) -> Result<Arc<MemoryConsumer>> {
        let successor = self.connection.consume(&self.from)?;
        Ok(self.successor.get_or_init(|| successor).clone())
    }

    /// The consumer that is in its place now, or itself.
    pub(super) fn current(&self) -> &MemoryConsumer {
        self.successor.get().map_or(self, |successor| successor.current())
    }

    /// Whether the id is this consumer's, or that of one that took its place.
    pub(super) fn was(&self, id: ConsumerId) -> bool {
        self.id == id || self.successor.get().is_some_and(|successor| successor.was(id))
    }
}

pub(super) fn store_kind(source: &Source) -> StoreKind {
    if source.is_dead_letters() { StoreKind::Dead } else { StoreKind::Live }
}

fn missing(source: &Entity<Source>) -> crate::error::Error {
    fail(
        ErrorKind::NotFound,
        "the source does not exist: name it in the topology and call Bus::declare, or check its name",
    )
    .with_context("source", &source.name)
    .with_backend(BACKEND)
}
