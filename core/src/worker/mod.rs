//! The worker: runs a handler for each message of a source, and settles the message by the handler's result.
//!
//! The way of a message, and the order in which to read the files:
//!
//! 1. [`WorkerBuilder::run`] (this file) subscribes, and ends the worker on a shutdown signal.
//! 2. `pool.rs` takes deliveries while tasks are free, and has the tasks that run handlers.
//! 3. `handling.rs` runs one handler, with its timeout and its panics, and decides the settlement. `retry_policy.rs`
//!    has the delays.
//! 4. `handler.rs` is what the application implements, and `context.rs` what it gets beside the message; `runner.rs`
//!    makes a handler and a tower service look alike.
//!
//! The settlement's answer does not come back here: `consume/settle/handling_record.rs` counts it for the
//! [`WorkerReport`].

mod context;
mod handler;
mod handling;
mod info;
mod pool;
mod retry_policy;
mod runner;
#[cfg(feature = "tower")]
mod service;

use std::{
    future::{Pending, pending},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use self::service::HandlerRequest;
pub use self::{
    context::HandlerContext,
    handler::{Handler, HandlerError, stateful},
    info::WorkerInfo,
    retry_policy::RetryPolicy,
};

use crate::{
    Bus, Error, ErrorKind, Result, Source, Subscription,
    connection::close_timeout::CLOSE_TIMEOUT,
    consume::settle::handling_record::WorkerCounts,
    runtime::duration,
    telemetry::HandleMetrics,
    worker::{
        context::WorkerState,
        handling::FailurePolicy,
        info::StartCheck,
        pool::HandlerPool,
        runner::{HandlerRunner, RunHandler},
    },
};

impl Bus {
    /// A worker on `source`: it runs a handler for each message, many at once, and settles the message by the handler's
    /// result.
    ///
    /// No I/O before [`run`](WorkerBuilder::run).
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// use polybus_core::{Source, stateful};
    /// use std::time::Duration;
    ///
    /// let source = Source::queue("payments");
    /// # bus.publish(source.address(), Envelope::new("payment.made", "{}")).await?;
    /// let report = bus
    ///     .worker(&source)
    ///     .concurrency(32)
    ///     .handler_timeout(Duration::from_secs(30))
    ///     .with_graceful_shutdown(tokio::time::sleep(Duration::from_secs(60)))
    ///     .run(stateful("state", async |state, cx, msg| {
    ///         println!("{state}: {} at attempt {}", msg.id, cx.attempt());
    ///         Ok(())
    ///     }))
    ///     .await?;
    /// assert_eq!(report.succeeded, 1);
    /// # Ok(()) }
    /// ```
    pub fn worker(&self, source: impl Into<Source>) -> WorkerBuilder {
        WorkerBuilder {
            bus: self.clone(),
            source: source.into(),
            concurrency: 16,
            prefetch: None,
            handler_timeout: None,
            drain_timeout: Duration::from_secs(30),
            retry: None,
            give_up_after: None,
            start_checks: Vec::new(),
            shutdown: pending(),
        }
    }
}

/// The settings of a worker that is about to run. [`Bus::worker`] makes it.
///
/// `S` is the future that ends the worker: see [`with_graceful_shutdown`](Self::with_graceful_shutdown).
#[derive(Clone)]
#[must_use = "call run or serve"]
pub struct WorkerBuilder<S = Pending<()>> {
    bus: Bus,
    source: Source,
    concurrency: usize,
    prefetch: Option<usize>,
    handler_timeout: Option<Duration>,
    drain_timeout: Duration,
    retry: Option<RetryPolicy>,
    give_up_after: Option<Duration>,
    start_checks: Vec<StartCheck>,
    shutdown: S,
}

/// The report of a worker: its handler runs, counted by what became of their messages according to the broker's
/// answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerReport {
    /// The handler answered `Ok`, and the message was acknowledged.
    pub succeeded: u64,
    /// The handler failed, and the message comes again: released, retried after a delay, or held in place ahead of its
    /// key.
    pub retried: u64,
    /// The handler failed, and the message was moved to the dead letters.
    pub dead_lettered: u64,
    /// The lock was lost before the message was settled. The broker hands it out again, whatever the handler answered.
    pub lock_lost: u64,
    /// The broker refused the settlement, or did not answer it. The message comes again, or is dead-lettered if that
    /// was its last attempt.
    pub unsettled: u64,
    /// The handler was dropped when the drain timeout ended, and its message released.
    pub dropped: u64,
}

impl WorkerReport {
    fn of(counts: &WorkerCounts) -> Self {
        let n = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Self {
            succeeded: n(&counts.succeeded),
            retried: n(&counts.retried),
            dead_lettered: n(&counts.dead_lettered),
            lock_lost: n(&counts.lock_lost),
            unsettled: n(&counts.unsettled),
            dropped: n(&counts.dropped),
        }
    }

    /// The number of all handler runs.
    ///
    /// ```
    /// assert_eq!(polybus_core::worker::WorkerReport::default().handled(), 0);
    /// ```
    pub fn handled(&self) -> u64 {
        self.succeeded + self.retried + self.dead_lettered + self.lock_lost + self.unsettled + self.dropped
    }
}

impl<S> WorkerBuilder<S> {
    /// Sets how many handlers run at once at most. Default 16. With 0, [`run`](WorkerBuilder::run) fails with
    /// `InvalidArgument`.
    ///
    /// ```
    /// # fn run(bus: polybus_core::Bus) {
    /// # use polybus_core::Source;
    /// let worker = bus.worker(Source::queue("payments")).concurrency(32);
    /// # }
    /// ```
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers;
        self
    }

    /// Sets how many messages may be unsettled at once, those that wait for a handler included. Default: twice the
    /// concurrency.
    ///
    /// Some brokers count every hand-over as an attempt
    /// ([`Capabilities::receive_counts`](crate::driver::Capabilities::receive_counts)). There the default is to fetch
    /// only what handlers are free for, so that a message which is given back unhandled loses no attempt. A value that
    /// is set here holds on these brokers as well. With 0, [`run`](WorkerBuilder::run) fails with `InvalidArgument`.
    ///
    /// ```
    /// # fn run(bus: polybus_core::Bus) {
    /// # use polybus_core::Source;
    /// let worker = bus.worker(Source::queue("payments")).concurrency(8).prefetch(64);
    /// # }
    /// ```
    pub fn prefetch(mut self, messages: usize) -> Self {
        self.prefetch = Some(messages);
        self
    }

    /// Sets how long a handler may run. Then it is dropped, which counts as a failure. Default: no limit. With 0,
    /// [`run`](WorkerBuilder::run) fails with `InvalidArgument`.
    ///
    /// A broker whose hold on a message cannot be renewed needs a timeout that is shorter than that hold.
    ///
    /// ```
    /// # fn run(bus: polybus_core::Bus) {
    /// # use polybus_core::Source;
    /// use std::time::Duration;
    /// let worker = bus.worker(Source::queue("payments")).handler_timeout(Duration::from_secs(30));
    /// # }
    /// ```
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.handler_timeout = Some(timeout);
        self
    }

    /// Sets how long handlers may go on once the shutdown has begun. Then they are dropped and their messages released.
    /// Default 30 s.
    ///
    /// ```
    /// # fn run(bus: polybus_core::Bus) {
    /// # use polybus_core::Source;
    /// use std::time::Duration;
    /// let worker = bus.worker(Source::queue("payments")).drain_timeout(Duration::from_secs(10));
    /// # }
    /// ```
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Sets the delays between attempts, instead of the source's own. The number of attempts stays the source's
    /// `max_deliveries`.
    ///
    /// ```
    /// # fn run(bus: polybus_core::Bus) {
    /// # use polybus_core::Source;
    /// use polybus_core::RetryPolicy;
    /// use std::time::Duration;
    /// let worker = bus.worker(Source::queue("payments")).retry(RetryPolicy::fixed(Duration::from_secs(5)));
    /// # }
    /// ```
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// Sets how long the broker may refuse this worker's consumer without a success in between, before the worker ends:
    /// see [`BusOptions::give_up_after`](crate::bus::BusOptions::give_up_after). Default: that of the bus.
    ///
    /// ```
    /// # fn run(bus: polybus_core::Bus) {
    /// # use polybus_core::Source;
    /// use std::time::Duration;
    /// let worker = bus.worker(Source::queue("payments")).give_up_after(Duration::MAX);
    /// # }
    /// ```
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up_after = Some(limit);
        self
    }

    /// Adds a check of the worker's settings, made before the worker subscribes. It is
    /// [`Handler::starting`] for what is no handler, such as a layer around a tower service.
    ///
    /// ```
    /// # fn run(bus: polybus_core::Bus) {
    /// # use polybus_core::Source;
    /// use polybus_core::{Error, worker::WorkerInfo};
    ///
    /// let worker = bus.worker(Source::queue("payments")).check_at_start(async |worker: WorkerInfo| {
    ///     match worker.concurrency {
    ///         n if n <= 8 => Ok(()),
    ///         n => Err(Error::invalid(format!("concurrency {n}: the bank takes 8 calls at once"))),
    ///     }
    /// });
    /// # }
    /// ```
    pub fn check_at_start<Fut>(mut self, check: impl Fn(WorkerInfo) -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = Result<()>> + Send + 'static,
    {
        self.start_checks.push(StartCheck::new(check));
        self
    }

    fn info(&self, prefetch: usize) -> WorkerInfo {
        let settings = self.bus.topology().source(&self.source).settings;
        WorkerInfo {
            source: self.source.clone(),
            retry: self.retry.as_ref().map_or_else(|| settings.retry.clone(), |retry| retry.delays().to_vec()),
            settings,
            concurrency: self.concurrency,
            prefetch,
            handler_timeout: self.handler_timeout,
            drain_timeout: self.drain_timeout,
            renews_locks: self.bus.capabilities().locks,
            backend: self.bus.backend(),
        }
    }

    /// Sets the signal that ends the worker gracefully. Without one the worker runs until its source ends or its future
    /// is dropped.
    ///
    /// Once `signal` has ended, no more messages are taken, those whose handler has not begun are given back, and
    /// running handlers go on until the [drain timeout](Self::drain_timeout).
    ///
    /// ```no_run
    /// # async fn example(bus: polybus_core::Bus) -> polybus_core::Result<()> {
    /// use polybus_core::{Envelope, HandlerContext, Source};
    ///
    /// bus.worker(Source::queue("payments"))
    ///     .with_graceful_shutdown(tokio::time::sleep(std::time::Duration::from_secs(60)))
    ///     .run(|_cx: HandlerContext, msg: Envelope| async move {
    ///         println!("{}", msg.id);
    ///         Ok(())
    ///     })
    ///     .await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_graceful_shutdown<F: Future<Output = ()> + Send>(self, signal: F) -> WorkerBuilder<F> {
        WorkerBuilder {
            bus: self.bus,
            source: self.source,
            concurrency: self.concurrency,
            prefetch: self.prefetch,
            handler_timeout: self.handler_timeout,
            drain_timeout: self.drain_timeout,
            retry: self.retry,
            give_up_after: self.give_up_after,
            start_checks: self.start_checks,
            shutdown: signal,
        }
    }
}

impl<S: Future<Output = ()> + Send> WorkerBuilder<S> {
    /// Runs `handler` for each message, until the [shutdown signal](Self::with_graceful_shutdown) ends.
    ///
    /// - **Results.** `Ok` acknowledges the message. A failure (an error, a panic, a timeout) is retried after the
    ///   policy's delay, and dead-lettered with the error's text as its detail at the last attempt. [`HandlerError`]
    ///   names the other endings.
    /// - **Locks** are renewed while a handler runs. If one is lost all the same,
    ///   [`HandlerContext::is_lock_lost`](crate::worker::HandlerContext::is_lock_lost) says so, and the handler's
    ///   result settles nothing: the message comes again.
    /// - **Order.** An ordered source hands out one message of a key at a time, and a failed one is held in place. A
    ///   delay above the source's `max_hold` is cut to it.
    /// - **Dead letters.** On a dead-letter source a failed message is released after the policy's delay. It keeps its
    ///   handler's place meanwhile.
    /// - **Shutdown.** No more messages are taken, those whose handler has not begun are given back, and running
    ///   handlers go on until the drain timeout. Then they are dropped and their messages released.
    ///
    /// Answers `Ok` after a shutdown.
    ///
    /// # Errors
    /// - `InvalidArgument`: a setting cannot work, such as a concurrency of 0.
    /// - Those of [`SubscriptionBuilder::open`](crate::consume::SubscriptionBuilder::open), if the source cannot be
    ///   consumed.
    /// - `NotFound`, `PermissionDenied`, `Unauthenticated` that have lasted for `give_up_after`, and `Closed`, while it
    ///   runs. The handlers that run then still finish within the drain timeout.
    ///
    /// # Cancel safety
    /// Dropping the future is a shutdown without a drain: handlers are dropped, and unsettled messages go back to the
    /// broker. No task is left once that is done.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, BusOptions, QueueSpec, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// use polybus_core::{Envelope, HandlerContext, HandlerError, Source};
    ///
    /// async fn handle(_cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
    ///     std::str::from_utf8(&msg.data)?.parse::<u32>()?;
    ///     Ok(())
    /// }
    ///
    /// let source = Source::queue("payments");
    /// bus.publish(source.address(), Envelope::new("payment.made", "seven")).await?;
    /// let stop = tokio::time::sleep(std::time::Duration::from_secs(600));
    /// let report = bus.worker(&source).with_graceful_shutdown(stop).run(handle).await?;
    /// // By default there are five attempts, within less than seven minutes.
    /// assert_eq!((report.retried, report.dead_lettered), (4, 1));
    /// # Ok(()) }
    /// ```
    pub async fn run(self, handler: impl Handler) -> Result<WorkerReport> {
        self.run_with(HandlerRunner::new(handler)).await
    }

    async fn run_with(self, runner: impl RunHandler) -> Result<WorkerReport> {
        let prefetch = self.prefetch.unwrap_or(self.concurrency.saturating_mul(2));
        for (name, n) in [("concurrency", self.concurrency), ("prefetch", prefetch)] {
            if n == 0 {
                return Err(Error::invalid(format!("worker: {name} must be at least 1")));
            }
        }
        if self.handler_timeout.is_some_and(|t| t.is_zero()) {
            return Err(Error::invalid("worker: handler_timeout must be more than 0"));
        }
        let info = self.info(prefetch);
        let mut shutdown = std::pin::pin!(self.shutdown);
        let started = runner.starting(&info);
        let starting = async {
            for check in &self.start_checks {
                check.run(&info).await?;
            }
            started.await
        };
        tokio::select! {
            biased;
            started = starting => started?,
            () = &mut shutdown => return Ok(WorkerReport::default()),
        }
        let settings = info.settings;
        let policy = FailurePolicy::new(self.retry, &settings, self.bus.capabilities())?;
        let backend = self.bus.backend();
        let state = Arc::new(WorkerState { source: self.source.clone(), stopping: watch::Sender::new(None) });
        let metrics = HandleMetrics::new(backend, &self.source);
        let system = self.bus.connection().queue_system.clone();
        let pool = Arc::new(HandlerPool::new(state, system, policy, self.handler_timeout, metrics, self.concurrency));
        let mut subscribe = self.bus.subscribe(self.source).prefetch(prefetch);
        if let Some(limit) = self.give_up_after {
            subscribe = subscribe.give_up_after(limit);
        }
        let subscription = subscribe.open().await?;
        if self.prefetch.is_none() && self.bus.capabilities().receive_counts {
            pool.fetch_for_free_handlers(subscription.consumer.clone());
        }

        let (stop, stopped) = oneshot::channel::<Instant>();
        let mut consuming = tokio::spawn(consume(subscription, pool.clone(), runner, stopped, self.drain_timeout));
        let ended = tokio::select! {
            ended = &mut consuming => Some(ended),
            () = &mut shutdown => None,
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                let _ = stop.send(duration::after(Instant::now(), self.drain_timeout));
                consuming.await
            }
        };
        let ended =
            ended.map_err(|e| Error::new(ErrorKind::Unexpected, "the worker's task ended early").with_source(e))?;
        ended.map(|()| pool.report())
    }
}

/// Hands deliveries to the pool until the shutdown or the subscription's end, then drains the pool.
async fn consume(
    mut subscription: Subscription,
    pool: Arc<HandlerPool>,
    mut runner: impl RunHandler,
    mut stopped: oneshot::Receiver<Instant>,
    drain_timeout: Duration,
) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    let (result, deadline) = tokio::select! {
        biased;
        // An error means that the future of `run` was dropped: nothing is waited for.
        deadline = &mut stopped => (Ok(()), deadline.unwrap_or_else(|_| Instant::now())),
        error = pool.take_deliveries(&mut subscription, &mut runner, &mut tasks) => (Err(error), duration::after(Instant::now(), drain_timeout)),
    };
    pool.start_tasks(&mut runner, &mut tasks);
    pool.stop(deadline);
    let stopping = async {
        if let Err(e) = subscription.stop().await {
            tracing::warn!(target: "polybus", source = %subscription.source(), error = %e, "the consumer did not stop cleanly");
        }
    };
    tokio::join!(stopping, pool.drain(&mut tasks, deadline));
    // The settlements of ended handlers are finished before the consumer closes, if the broker answers soon. The close
    // goes on waiting as long as answers come.
    let until = deadline.min(Instant::now() + CLOSE_TIMEOUT);
    let _ = timeout_at(until, subscription.consumer.settlements.until_idle()).await;
    if let Err(e) = subscription.close().await
        && result.is_ok()
        && e.kind() != ErrorKind::Closed
    {
        tracing::warn!(target: "polybus", source = %subscription.source(), error = %e, "the consumer did not close cleanly");
    }
    result
}
