//! What a handler is told of its worker before the first message.

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use crate::{Bus, Result, Source, topology::EntitySettings};

/// The settings of a worker that is about to start, for [`Handler::starting`](crate::Handler::starting).
///
/// ```
/// use polybus_core::{Error, Result, worker::WorkerInfo};
/// use std::time::Duration;
///
/// async fn starting(worker: &WorkerInfo) -> Result<()> {
///     match worker.handler_timeout {
///         Some(timeout) if timeout >= Duration::from_secs(10) => Ok(()),
///         _ => Err(Error::invalid(format!("{}: set handler_timeout to 10 s or more", worker.source))),
///     }
/// }
/// # let _ = starting;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkerInfo {
    /// Where the messages come from.
    pub source: Source,
    /// The settings of that source: order, number of attempts, lock, delays between attempts.
    pub settings: EntitySettings,
    /// The delays between attempts: the worker's own, or else the source's. The last one repeats.
    pub retry: Vec<Duration>,
    /// How many handlers run at once at most.
    pub concurrency: usize,
    /// How many messages may be unsettled at once.
    pub prefetch: usize,
    /// How long a handler may run; `None` without a limit.
    pub handler_timeout: Option<Duration>,
    /// How long handlers may go on once the shutdown has begun.
    pub drain_timeout: Duration,
    /// Whether the lock of a message is renewed while its handler runs. Where it is not, a broker may limit how long a
    /// message is held: RabbitMQ's `consumer_timeout`, 30 minutes by default.
    pub renews_locks: bool,
    /// The name of the broker's adapter, such as `rabbitmq`.
    pub backend: &'static str,
}

impl WorkerInfo {
    /// The settings of a worker with the defaults of [`Bus::worker`], for tests of a handler's own checks.
    ///
    /// ```
    /// # use polybus_core::{Bus, BusOptions, QueueSpec, Source, Topology, memory::MemoryDriver, worker::WorkerInfo};
    /// # fn main() -> polybus_core::Result<()> {
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// let info = WorkerInfo::of(&bus, Source::queue("payments"));
    /// assert_eq!((info.concurrency, info.settings.max_deliveries), (16, 5));
    /// # Ok(()) }
    /// ```
    pub fn of(bus: &Bus, source: impl Into<Source>) -> Self {
        bus.worker(source).info(32)
    }
}

/// A check before the start that is no handler's own: see
/// [`WorkerBuilder::check_at_start`](crate::worker::WorkerBuilder::check_at_start).
#[derive(Clone)]
pub(crate) struct StartCheck(Arc<CheckFn>);

type CheckFn = dyn Fn(WorkerInfo) -> Checking + Send + Sync;
type Checking = Pin<Box<dyn Future<Output = Result<()>> + Send>>;

impl StartCheck {
    pub(crate) fn new<Fut>(check: impl Fn(WorkerInfo) -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        Self(Arc::new(move |worker| Box::pin(check(worker))))
    }

    pub(crate) fn run(&self, worker: &WorkerInfo) -> Checking {
        (self.0)(worker.clone())
    }
}

impl fmt::Debug for StartCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StartCheck")
    }
}
