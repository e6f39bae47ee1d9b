//! What the senders and consumers of one driver share.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};

use super::{
    BACKEND,
    broker::Broker,
    fail,
    message_store::ConsumerId,
    queue::{Queue, Side},
};
use crate::{
    error::{ErrorKind, Result},
    runtime::clock::TokioClock,
    topology::{Entity, Source},
};

pub(super) struct Connection {
    pub(super) broker: Arc<Broker>,
    pub(super) clock: Arc<TokioClock>,
    closed: AtomicBool,
    consumers: Mutex<Vec<Weak<Consumer>>>,
}

/// A consumer, as its receiver and its settler know it.
pub(super) struct Consumer {
    pub(super) connection: Arc<Connection>,
    pub(super) queue: Arc<Queue>,
    pub(super) side: Side,
    pub(super) id: ConsumerId,
    /// The source as text: the origin of its dead letters.
    pub(super) origin: Box<str>,
    from: Entity<Source>,
    /// Who took its place, after its source was deleted and made anew.
    successor: OnceLock<Arc<Consumer>>,
}

impl Connection {
    pub(super) fn new(broker: Arc<Broker>) -> Self {
        let clock = Arc::new(TokioClock::new());
        Self { broker, clock, closed: AtomicBool::new(false), consumers: Mutex::default() }
    }

    pub(super) fn check_open(&self) -> Result<()> {
        match self.closed.load(Ordering::Acquire) {
            true => Err(fail(ErrorKind::Closed, "the connection was closed")),
            false => Ok(()),
        }
    }

    pub(super) fn find(&self, source: &Entity<Source>) -> Result<Arc<Queue>> {
        self.check_open()?;
        self.broker.source(source).ok_or_else(|| missing(source))
    }

    pub(super) fn consume(self: &Arc<Self>, from: &Entity<Source>) -> Result<Arc<Consumer>> {
        let queue = self.find(from)?;
        let side = side(&from.name);
        let id = queue.enter(side, from.prefetch, from.settings.lock).ok_or_else(|| missing(from))?;
        let consumer = Arc::new(Consumer {
            connection: self.clone(),
            queue,
            side,
            id,
            origin: from.name.to_string().into(),
            from: from.clone(),
            successor: OnceLock::new(),
        });
        let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        consumers.retain(|c| c.strong_count() > 0);
        consumers.push(Arc::downgrade(&consumer));
        drop(consumers);
        // `close` may have come before the push and have missed this one.
        self.check_open().inspect_err(|_| consumer.leave())?;
        Ok(consumer)
    }

    /// Ends the connection as its loss would: what its consumers hold goes back.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let consumers = std::mem::take(&mut *self.consumers.lock().unwrap_or_else(PoisonError::into_inner));
        consumers.iter().filter_map(Weak::upgrade).for_each(|c| c.leave());
    }
}

impl Consumer {
    /// Gives back everything that is unsettled. Idempotent.
    pub(super) fn leave(&self) {
        self.queue.leave(self.side, self.id);
        if let Some(successor) = self.successor.get() {
            successor.leave();
        }
    }

    /// Attaches anew: its source was deleted. What the old one held is gone with it.
    pub(super) fn succeed(&self) -> Result<Arc<Consumer>> {
        let successor = self.connection.consume(&self.from)?;
        Ok(self.successor.get_or_init(|| successor).clone())
    }

    /// This consumer, or who took its place.
    pub(super) fn current(&self) -> &Consumer {
        self.successor.get().map_or(self, |successor| successor.current())
    }

    /// Whether this is the id of this consumer or of one that took its place.
    pub(super) fn was(&self, id: ConsumerId) -> bool {
        self.id == id || self.successor.get().is_some_and(|successor| successor.was(id))
    }
}

pub(super) fn side(source: &Source) -> Side {
    if source.is_dead_letters() { Side::Dead } else { Side::Live }
}

fn missing(source: &Entity<Source>) -> crate::error::Error {
    fail(ErrorKind::NotFound, "no such source: declare it first")
        .with_context("source", &source.name)
        .with_backend(BACKEND)
}
