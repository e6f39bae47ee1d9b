//! What a handler is told beside the message.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::Span;

use crate::{consume::Delivery, driver::DeadLetter, topology::Source};

/// How often [`HandlerContext::lock_lost`] looks.
const LOOK: Duration = Duration::from_secs(1);

/// The delivery a handler works on. Cheap to clone.
#[derive(Clone)]
pub struct HandlerContext(Arc<ContextInner>);

struct ContextInner {
    worker: Arc<WorkerInfo>,
    attempt: u32,
    dead_letter: Option<DeadLetter>,
    malformed: Option<Box<str>>,
    span: Span,
    delivery: Mutex<Option<Delivery>>,
}

/// What is the same for all deliveries of a worker.
pub(crate) struct WorkerInfo {
    pub(crate) source: Source,
    pub(crate) max_deliveries: Option<u32>,
    /// When the handlers that still run are dropped; set once the shutdown has begun.
    pub(crate) stopping: watch::Sender<Option<Instant>>,
}

impl HandlerContext {
    /// The context keeps the delivery while the handler runs, to ask it about its lock.
    pub(crate) fn new(worker: &Arc<WorkerInfo>, delivery: Delivery, span: Span) -> Self {
        Self(Arc::new(ContextInner {
            worker: worker.clone(),
            attempt: delivery.attempt(),
            dead_letter: delivery.dead_letter_info().cloned(),
            malformed: delivery.malformed().map(Into::into),
            span,
            delivery: Mutex::new(Some(delivery)),
        }))
    }

    /// Takes the delivery to settle it.
    pub(crate) fn take(&self) -> Option<Delivery> {
        self.delivery().take()
    }

    fn delivery(&self) -> MutexGuard<'_, Option<Delivery>> {
        self.0.delivery.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// 1-based count of deliveries of this message from this source.
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// Where the message came from.
    pub fn source(&self) -> &Source {
        &self.0.worker.source
    }

    /// How often the message is handed to handlers at most. `None` on dead letters, where there is no limit.
    pub fn max_deliveries(&self) -> Option<u32> {
        self.0.worker.max_deliveries
    }

    /// Whether a failure now sends the message to the dead letters.
    pub fn is_last_attempt(&self) -> bool {
        self.max_deliveries().is_some_and(|n| self.attempt() >= n)
    }

    /// On dead letters: how the message got there.
    pub fn dead_letter(&self) -> Option<&DeadLetter> {
        self.0.dead_letter.as_ref()
    }

    /// On dead letters: why the message could not be decoded. It is handed out raw then.
    pub fn malformed(&self) -> Option<&str> {
        self.0.malformed.as_deref()
    }

    /// Whether the message is no longer held, because its lock or the connection was lost: the broker will hand it out
    /// again, or has, and whatever the handler answers is not settled.
    pub fn is_lock_lost(&self) -> bool {
        self.delivery().as_ref().is_some_and(|delivery| !delivery.is_held())
    }

    /// Waits until [`HandlerContext::is_lock_lost`], and notices it within a second. Never ends once the handler has.
    pub async fn lock_lost(&self) {
        while !self.is_lock_lost() {
            if self.delivery().is_none() {
                return std::future::pending().await;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until the worker begins to shut down. The handler may then go on until [`HandlerContext::deadline`].
    pub async fn cancelled(&self) {
        let mut stopping = self.0.worker.stopping.subscribe();
        // It fails only if the worker is gone, and then so is the handler.
        let _ = stopping.wait_for(Option::is_some).await;
    }

    /// Whether the worker has begun to shut down.
    pub fn is_cancelled(&self) -> bool {
        self.0.worker.stopping.borrow().is_some()
    }

    /// Once the shutdown has begun: when handlers that still run are dropped and their messages released.
    pub fn deadline(&self) -> Option<Instant> {
        *self.0.worker.stopping.borrow()
    }

    /// The span of this handling.
    pub fn span(&self) -> &Span {
        &self.0.span
    }
}

impl fmt::Debug for HandlerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerContext")
            .field("source", &format_args!("{}", self.source()))
            .field("attempt", &self.attempt())
            .field("max_deliveries", &self.max_deliveries())
            .finish_non_exhaustive()
    }
}
