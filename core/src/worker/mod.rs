//! The consume loop: runs a handler for each message of a source, and settles what comes out of it.

mod context;
mod handler;
mod handling;
mod pool;
mod retry_policy;
mod runner;

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
use tower_service::Service;

pub use self::{
    context::HandlerContext,
    handler::{Handler, HandlerError, stateful},
    retry_policy::RetryPolicy,
    runner::HandlerRequest,
};

use crate::{
    bus::Bus,
    consume::Subscription,
    consume::settle::handling_record::HandlingCounts,
    error::{Error, ErrorKind, Result},
    runtime::duration,
    telemetry::HandleMetrics,
    topology::Source,
    worker::{
        context::WorkerInfo,
        handling::FailurePolicy,
        pool::HandlerPool,
        runner::{HandlerRunner, RunHandler, ServiceRunner},
    },
};

impl Bus {
    /// A worker: runs a handler for each message of `source`, many at once, and settles what comes out of it.
    ///
    /// ```no_run
    /// # async fn example(bus: polybus_core::Bus) -> polybus_core::Result<()> {
    /// use polybus_core::{Source, stateful};
    /// let stop = async { tokio::time::sleep(std::time::Duration::from_secs(60)).await };
    /// let report = bus
    ///     .worker(Source::queue("payments"))
    ///     .concurrency(32)
    ///     .handler_timeout(std::time::Duration::from_secs(30))
    ///     .with_graceful_shutdown(stop)
    ///     .run(stateful("state", async |state, cx, msg| {
    ///         println!("{state}: {} at attempt {}", msg.id, cx.attempt());
    ///         Ok(())
    ///     }))
    ///     .await?;
    /// println!("{report:?}");
    /// # Ok(())
    /// # }
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
            shutdown: pending(),
        }
    }
}

/// Settings of a worker that is about to run.
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
    shutdown: S,
}

/// What a worker did. Counts handler runs by what became of their messages, as the broker answered it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerReport {
    /// Handlers that answered Ok, and their messages were acknowledged.
    pub succeeded: u64,
    /// Failures that come again: released, retried after a delay, or held in place ahead of their key.
    pub retried: u64,
    /// Failures that were moved to the dead letters.
    pub dead_lettered: u64,
    /// The lock was lost before the message was settled: the broker hands it out again, whatever the handler answered.
    pub lock_lost: u64,
    /// The broker refused the settlement, or did not answer it: the message comes again, or is dead-lettered if that was its last attempt.
    pub unsettled: u64,
    /// Handlers dropped when the drain timeout ended: their messages were given back.
    pub dropped: u64,
}

impl WorkerReport {
    fn of(tally: &HandlingCounts) -> Self {
        let n = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Self {
            succeeded: n(&tally.succeeded),
            retried: n(&tally.retried),
            dead_lettered: n(&tally.dead_lettered),
            lock_lost: n(&tally.lock_lost),
            unsettled: n(&tally.unsettled),
            dropped: n(&tally.dropped),
        }
    }

    /// All handler runs.
    pub fn handled(&self) -> u64 {
        self.succeeded + self.retried + self.dead_lettered + self.lock_lost + self.unsettled + self.dropped
    }
}

impl<S> WorkerBuilder<S> {
    /// Most handlers at once. Default 16. Never exceeded.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers;
        self
    }

    /// Most unsettled messages at once, those that wait for a handler included. Default: twice the concurrency; on a broker where every
    /// hand-over counts as an attempt ([`Capabilities::receive_counts`](crate::driver::Capabilities::receive_counts)) only what handlers are free for,
    /// so that a message which is given back unhandled does not lose one. A value that is set here is taken as it is.
    pub fn prefetch(mut self, messages: usize) -> Self {
        self.prefetch = Some(messages);
        self
    }

    /// How long a handler may run; then it is dropped, which counts as a failure. Default: as long as it likes. Brokers
    /// whose hold cannot be renewed need one that is shorter than that hold.
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.handler_timeout = Some(timeout);
        self
    }

    /// How long handlers may go on once the shutdown has begun; then they are dropped and their messages released.
    /// Default 30 s.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Delays between attempts, instead of the source's own. The number of attempts stays the source's `max_deliveries`.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = Some(policy);
        self
    }

    /// How long the broker may refuse this worker's consumer without a success in between, see
    /// [`BusOptions::give_up_after`](crate::bus::BusOptions::give_up_after). Default: the bus'.
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up_after = Some(limit);
        self
    }

    /// Ends the worker gracefully once `signal` does: no more messages are taken, those that no handler has begun are given
    /// back, and handlers go on until the drain timeout. Without it the worker runs until its source ends or its future is
    /// dropped.
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
        let Self { bus, source, concurrency, prefetch, handler_timeout, drain_timeout, retry, give_up_after, .. } =
            self;
        WorkerBuilder {
            bus,
            source,
            concurrency,
            prefetch,
            handler_timeout,
            drain_timeout,
            retry,
            give_up_after,
            shutdown: signal,
        }
    }
}

impl<S: Future<Output = ()> + Send> WorkerBuilder<S> {
    /// Runs `handler` for each message until the [shutdown signal](Self::with_graceful_shutdown) ends.
    ///
    /// - Ok acknowledges; a failure (error, panic, timeout) is retried after the policy's delay, and dead-lettered with the
    ///   error's text as its detail at the last attempt. [`HandlerError`] names the other endings.
    /// - Locks are renewed while a handler runs. If one is lost all the same, [`HandlerContext::is_lock_lost`](crate::worker::HandlerContext)
    ///   says so, and the answer settles nothing: the message comes again.
    /// - Ordered sources hand out one message of a key at a time, and a failed one is held in place. A delay above the
    ///   source's `max_hold` is cut to it.
    /// - On dead letters a failure is released after the policy's delay, which keeps its handler's place meanwhile.
    /// - Shutdown: no more messages are taken, those that no handler has begun are given back, handlers go on until the
    ///   drain timeout, then they are dropped and their messages released.
    ///
    /// Ok after a shutdown. An error if the source cannot be consumed, or no longer: `NotFound`, `PermissionDenied`,
    /// `Unauthenticated` once they have lasted for `give_up_after`, or `Closed`; the handlers that run then still finish within the drain timeout.
    ///
    /// Dropping the future is a shutdown without a drain: handlers are dropped, unsettled messages are given back, and no
    /// task is left once that is done.
    pub async fn run(self, handler: impl Handler) -> Result<WorkerReport> {
        self.start(HandlerRunner::new(handler)).await
    }

    /// Like [`WorkerBuilder::run`], with a tower service: any stack of layers fits. Each message calls a clone of it once it
    /// is ready; the response is ignored, an error is one of the handler.
    pub async fn serve<T>(self, service: T) -> Result<WorkerReport>
    where
        T: Service<HandlerRequest> + Clone + Send + 'static,
        T::Error: Into<HandlerError>,
        T::Future: Send,
    {
        self.start(ServiceRunner::new(service)).await
    }

    async fn start(self, runner: impl RunHandler) -> Result<WorkerReport> {
        let prefetch = self.prefetch.unwrap_or(self.concurrency.saturating_mul(2));
        for (name, n) in [("concurrency", self.concurrency), ("prefetch", prefetch)] {
            if n == 0 {
                return Err(Error::invalid(format!("worker: {name} must be at least 1")));
            }
        }
        if self.handler_timeout.is_some_and(|t| t.is_zero()) {
            return Err(Error::invalid("worker: handler_timeout must be more than 0"));
        }
        let settings = self.bus.topology().source(&self.source).settings;
        let policy = FailurePolicy::new(self.retry, &settings, self.bus.capabilities())?;
        let backend = self.bus.backend();
        let about = Arc::new(WorkerInfo {
            max_deliveries: (!self.source.is_dead_letters()).then_some(settings.max_deliveries),
            source: self.source.clone(),
            stopping: watch::Sender::new(None),
        });
        let metrics = HandleMetrics::new(backend, &self.source);
        let system = self.bus.connection().queue_system.clone();
        let pool =
            Arc::new(HandlerPool::new(about.clone(), system, policy, self.handler_timeout, metrics, self.concurrency));
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
            () = self.shutdown => None,
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

/// Hands deliveries to the pool until told to stop or the subscription ends, then drains.
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
        // An error means that the run future is gone: nothing is waited for.
        deadline = &mut stopped => (Ok(()), deadline.unwrap_or_else(|_| Instant::now())),
        error = pool.feed(&mut subscription, &mut runner, &mut tasks) => (Err(error), duration::after(Instant::now(), drain_timeout)),
    };
    pool.start(&mut runner, &mut tasks);
    pool.stop(deadline);
    let stopping = async {
        if let Err(e) = subscription.stop().await {
            tracing::warn!(target: "polybus", source = %subscription.source(), error = %e, "the consumer did not stop cleanly");
        }
    };
    tokio::join!(stopping, pool.drain(&mut tasks, deadline));
    // What handlers have ended is settled before the consumer closes, as far as the broker answers in time.
    let _ = timeout_at(deadline, subscription.consumer.settlements.until_idle()).await;
    if let Err(e) = subscription.close().await
        && result.is_ok()
        && e.kind() != ErrorKind::Closed
    {
        tracing::warn!(target: "polybus", source = %subscription.source(), error = %e, "the consumer did not close cleanly");
    }
    result
}
