//! Between a bus and its driver: what every publisher and consumer needs of the connection, what is refused before any call
//! to a broker, and how long a broker that is not ready is waited for.

pub(crate) mod patience;
pub(crate) mod preflight;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

use crate::{
    driver::{Driver, MessagingSystem},
    error::{Error, ErrorKind, Result, RetrySafety},
    message::Outgoing,
    runtime::{clock::Clock, duration},
    topology::{Address, Entity, Topology},
};

/// One connection to a broker, as publishers and consumers share it. It knows neither of them.
pub(crate) struct Connection {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) topology: Topology,
    /// CloudEvents `source` of envelopes that name none.
    pub(crate) event_source: Box<str>,
    /// Of queues and subscriptions, for spans.
    pub(crate) queue_system: Arc<MessagingSystem>,
    /// Of topics, for spans.
    pub(crate) topic_system: Arc<MessagingSystem>,
    /// The bytes that may wait to be published, all addresses together. Closed with the connection.
    pub(crate) pending_bytes: Arc<Semaphore>,
    pub(crate) max_pending_bytes: usize,
    pub(crate) publish_timeout: Duration,
    pub(crate) closed: AtomicBool,
}

impl Connection {
    /// `Closed` once the bus was closed.
    pub(crate) fn ensure_open(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(self.located(Error::new(ErrorKind::Closed, "the bus was closed"), operation));
        }
        Ok(())
    }

    /// When a publish that started then must be over.
    pub(crate) fn deadline(&self, started: Instant) -> Instant {
        duration::after(started, self.publish_timeout)
    }

    /// A message's share of the bytes that may wait. One that is larger than all of them takes all.
    pub(crate) fn share(&self, size: usize) -> u32 {
        size.clamp(1, self.max_pending_bytes) as u32
    }

    /// Everything that is checked before a message is encoded.
    pub(crate) fn admit(&self, to: &Entity<Address>, message: Outgoing) -> Result<Outgoing> {
        preflight::outgoing(self.driver.capabilities(), &*self.clock, to, message, &self.event_source)
    }

    /// Calls again with backoff while the broker cannot be reached, until the deadline.
    pub(crate) async fn patiently<T, F>(&self, deadline: Instant, mut call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let passing = |e: &Error| e.is_transient() && e.retry() != RetrySafety::Never;
        self.again(deadline, "connect", passing, || patience::until(deadline, call())).await
    }

    /// Calls again with backoff after errors that pass, as long as there is time before the deadline and the bus is open.
    pub(crate) async fn again<T, F>(
        &self,
        deadline: Instant,
        operation: &'static str,
        passes: impl Fn(&Error) -> bool,
        call: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        patience::again(deadline, operation, passes, || self.ensure_open(operation), call).await
    }

    /// Adds where it happened.
    pub(crate) fn located(&self, e: Error, operation: &'static str) -> Error {
        let e = if e.operation().is_empty() { e.with_operation(operation) } else { e };
        if e.backend().is_empty() { e.with_backend(self.driver.backend()) } else { e }
    }
}
