//! The connection to a broker as publishers and consumers share it.
//!
//! It stands between a bus and its driver, and knows neither publishers nor consumers. Its files, in the order to read:
//!
//! | file | |
//! |---|---|
//! | `preflight.rs` | what core refuses before any call to a broker |
//! | `retry_until.rs` | retries with backoff, up to a deadline, while the broker is not ready |
//! | `close_timeout.rs` | how long closing waits for a broker that does not answer |

pub(crate) mod close_timeout;
pub(crate) mod preflight;
pub(crate) mod retry_until;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

use crate::{
    Address, Error, ErrorKind, Outgoing, Result, RetrySafety, Topology,
    driver::{Driver, MessagingSystem},
    runtime::{clock::Clock, duration},
    topology::Entity,
};

/// One connection to a broker, with the settings that publishers and consumers need.
pub(crate) struct BusConnection {
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) topology: Topology,
    /// The CloudEvents `source` of envelopes that name none.
    pub(crate) event_source: Box<str>,
    /// What spans call the system of queues and subscriptions.
    pub(crate) queue_system: Arc<MessagingSystem>,
    /// What spans call the system of topics.
    pub(crate) topic_system: Arc<MessagingSystem>,
    /// A permit for each byte that may wait to be published, all addresses together. Closed with the bus.
    pub(crate) pending_bytes: Arc<Semaphore>,
    pub(crate) max_pending_bytes: usize,
    pub(crate) publish_timeout: Duration,
    pub(crate) closed: AtomicBool,
}

impl BusConnection {
    /// Fails with `Closed` once the bus was closed.
    pub(crate) fn ensure_open(&self, operation: &'static str) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(self.located(Error::new(ErrorKind::Closed, "the bus was closed"), operation));
        }
        Ok(())
    }

    /// The end of the publish timeout for an operation that began at `started`.
    pub(crate) fn deadline(&self, started: Instant) -> Instant {
        duration::after(started, self.publish_timeout)
    }

    /// How many permits of [`pending_bytes`](Self::pending_bytes) a message of this size needs. One that is larger than
    /// all of them needs all.
    pub(crate) fn permits_for(&self, size: usize) -> u32 {
        size.clamp(1, self.max_pending_bytes) as u32
    }

    /// Checks a message before it is encoded, and fills in what the bus knows.
    pub(crate) fn check_outgoing(&self, to: &Entity<Address>, message: Outgoing) -> Result<Outgoing> {
        preflight::outgoing(self.driver.capabilities(), &*self.clock, to, message, &self.event_source)
    }

    /// Opens a sender or a receiver: calls again with backoff while the broker cannot be reached, until the deadline.
    pub(crate) async fn retry_opening<T, F>(&self, deadline: Instant, mut call: impl FnMut() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let may_retry = |e: &Error| e.is_transient() && e.retry() != RetrySafety::Never;
        self.retry_until(deadline, "connect", may_retry, || retry_until::attempt_until(deadline, call())).await
    }

    /// Calls again with backoff after errors that `may_retry` accepts, until the deadline, and while the bus is open.
    pub(crate) async fn retry_until<T, F>(
        &self,
        deadline: Instant,
        operation: &'static str,
        may_retry: impl Fn(&Error) -> bool,
        call: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        retry_until::retry_until(deadline, operation, may_retry, || self.ensure_open(operation), call).await
    }

    /// Adds the operation and the backend to an error that does not name them yet.
    pub(crate) fn located(&self, e: Error, operation: &'static str) -> Error {
        let e = if e.operation().is_empty() { e.with_operation(operation) } else { e };
        if e.backend().is_empty() { e.with_backend(self.driver.backend()) } else { e }
    }
}
