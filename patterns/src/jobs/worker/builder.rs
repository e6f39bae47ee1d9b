//! The settings of a worker of jobs.

use std::{
    any::Any,
    collections::HashMap,
    future::Future,
    marker::PhantomData,
    sync::{Arc, OnceLock},
    time::Duration,
};

use polybus_core::{Bus, HandlerError, Result, RetryPolicy, driver::kit::names::check_name};

use super::{context::JobContext, report::JobReport, service::Route, transaction::JobTransactions};
use crate::{
    cron::Cron,
    jobs::Job,
    store::{JobStore, JobTable, ScheduleTable, StoreControl},
    types::Types,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

type Shared = Box<dyn Any + Send + Sync>;
type MakeShared = Box<dyn FnOnce(&JobSettings) -> Shared + Send + Sync>;

/// The place of a store in a worker whose jobs come from a broker.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct NoStore;

/// Where jobs come from.
pub(super) enum JobOrigin {
    Table { table: Arc<dyn JobTable>, schedules: Arc<dyn ScheduleTable>, control: Arc<dyn StoreControl> },
    Broker(Bus),
}

pub(super) struct JobSettings {
    pub(super) lease: Duration,
    pub(super) poll: Duration,
    pub(super) listen: bool,
    pub(super) retry: RetryPolicy,
    pub(super) handler_timeout: Option<Duration>,
    pub(super) drain_timeout: Duration,
    pub(super) keep_completed: Duration,
    pub(super) keep_others: Duration,
}

/// Runs jobs: claims those of its queues, and hands each to the handler of its kind. Any number of processes may run
/// one on the same tables.
///
/// | the handler answers | the job |
/// |---|---|
/// | `Ok` | is completed |
/// | `Err`, a panic, a timeout | runs again after the next delay of [`retry`](Self::retry); at the last attempt it is discarded |
/// | [`HandlerError::retry_after`] | runs again after that delay; at the last attempt it is discarded |
/// | [`JobContext::snooze`] | runs again after that delay, and the attempt does not count |
/// | [`HandlerError::permanent`], [`HandlerError::dead_letter`] | is discarded at once, with the reason |
/// | any error, after somebody has cancelled the job | is cancelled |
///
/// | the job | becomes |
/// |---|---|
/// | its process is killed | after the rest of its lease it runs again; the attempt has counted |
/// | its kind or version is not known here | put off for 30 s, without counting: another version of the program may know it |
/// | its arguments cannot be read | discarded with the reason; retry it by hand after a fix |
///
/// Discarded jobs are kept, listed, and can be retried: see [`JobAdmin`](crate::jobs::JobAdmin).
///
/// ```no_run
/// # use polybus_core::Event;
/// # use polybus_patterns::{jobs::{Job, JobWorker}, store::JobStore};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
/// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
/// # impl Job for SendInvoice {}
/// # async fn example<S: JobStore>(db: S) -> polybus_core::Result<()> {
/// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// let report = JobWorker::new(&db)
///     .queue("mail", 20)
///     .queue("default", 50)
///     .on("smtp.example.com", async |server, cx, job: SendInvoice| {
///         println!("order {} by {server}, attempt {}", job.order, cx.attempt());
///         Ok(())
///     })
///     .run(stop)
///     .await?;
/// println!("{} completed", report.completed);
/// # Ok(()) }
/// ```
#[must_use = "call run"]
pub struct JobWorker<S> {
    pub(super) origin: JobOrigin,
    store: PhantomData<fn() -> S>,
    pub(super) queues: Vec<(String, usize)>,
    pub(super) types: Types,
    pub(super) routes: HashMap<&'static str, Route>,
    /// What handlers with a transaction share. It is made once the worker runs, by the other one.
    pub(super) transactions: Arc<OnceLock<Shared>>,
    pub(super) make_transactions: Option<MakeShared>,
    pub(super) crons: Vec<Cron>,
    problems: Vec<String>,
    pub(super) settings: JobSettings,
}

impl<S: JobStore> JobWorker<S> {
    /// A worker on the jobs of this store. No I/O.
    ///
    /// ```no_run
    /// # fn example<S: polybus_patterns::store::JobStore>(db: S) {
    /// let worker = polybus_patterns::jobs::JobWorker::new(&db).queue("mail", 20);
    /// # }
    /// ```
    pub fn new(store: &S) -> Self {
        let (table, schedules, control) = (store.jobs(), store.schedules(), store.control());
        let mut worker = Self::of(JobOrigin::Table { table, schedules, control });
        let store = store.clone();
        worker.make_transactions =
            Some(Box::new(move |settings| Box::new(JobTransactions::new(&store, settings.handler_timeout))));
        worker
    }

    /// Handles the jobs of a kind with the transaction in which the job is finished. The handler gives it back, and
    /// effect and completion commit together: once, whatever is killed in between.
    ///
    /// The transaction holds one connection of the application's pool while the handler runs; with fewer connections
    /// than handlers, the others wait. It keeps rows locked and old rows from being removed, so slow work belongs into
    /// [`on`](Self::on), or into a job before. On SQLite handlers with a transaction run one after the other.
    ///
    /// The transaction may be rolled back and the handler run again, with the same attempt, where it loses against
    /// another transaction, or while the database is away. A handler that expects an error of the database uses a
    /// savepoint: an error ends the whole transaction on PostgreSQL. That is found before the commit, and the job runs
    /// again.
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{jobs::{Job, JobWorker}, store::JobStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// # fn example<S: JobStore>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.on_tx((), async |(), tx, _cx, job: SendInvoice| {
    ///     // … the application's own statements on `tx` …
    ///     println!("{}", job.order);
    ///     Ok(tx)
    /// })
    /// # }
    /// ```
    pub fn on_tx<J, T, F, Fut>(self, state: T, handler: F) -> Self
    where
        J: Job + Send + 'static,
        T: Clone + Send + Sync + 'static,
        F: Fn(T, S::Tx, JobContext, J) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send + 'static,
    {
        let transactions = self.transactions.clone();
        let handler = Arc::new(handler);
        self.route::<J>(Box::new(move |types, cx| {
            types.decode::<J>(cx.message())?;
            let (transactions, handler, state, types) =
                (transactions.clone(), handler.clone(), state.clone(), types.clone());
            Ok(Box::pin(async move {
                let shared = transactions.get().and_then(|shared| shared.downcast_ref::<JobTransactions<S>>());
                let Some(shared) = shared else { return Err(HandlerError::new("the worker does not run")) };
                let run = |tx| {
                    // It was read before, so it can be read again.
                    let job = types.decode::<J>(cx.message());
                    let running = job.map(|job| handler(state.clone(), tx, cx.clone(), job));
                    async move {
                        match running {
                            Ok(running) => running.await,
                            Err(failure) => Err(failure.dead_letter()),
                        }
                    }
                };
                shared.run(&cx, run).await
            }))
        }))
    }

    /// Adds a schedule, which writes jobs at its times. The worker that has a schedule need not have a handler of its
    /// jobs, nor their queue.
    ///
    /// Any number of processes may have the same schedule: each time fires once. See [`cron`](crate::cron).
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{cron::Cron, jobs::{Job, JobWorker}, store::JobStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Nightly {}
    /// # impl Event for Nightly { const TYPE: &'static str = "report.nightly"; const VERSION: u32 = 1; }
    /// # impl Job for Nightly {}
    /// # fn example<S: JobStore>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.cron(Cron::new("nightly", "30 2 * * *", "Europe/Berlin", Nightly {}))
    /// # }
    /// ```
    pub fn cron(mut self, cron: Cron) -> Self {
        self.crons.push(cron);
        self
    }

    /// Sets the term of the leases: how long the jobs of a process that was killed stand still at most. They are renewed
    /// at half of it. Default 60 s, at least 1 s.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::JobWorker, store::JobStore};
    /// # fn example<S: JobStore>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.lease(std::time::Duration::from_secs(20))
    /// # }
    /// ```
    pub fn lease(mut self, term: Duration) -> Self {
        self.settings.lease = term;
        self
    }

    /// Sets how often it looks for jobs without having been told. Default 200 ms.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::JobWorker, store::JobStore};
    /// # fn example<S: JobStore>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.poll(std::time::Duration::from_secs(1))
    /// # }
    /// ```
    pub fn poll(mut self, interval: Duration) -> Self {
        self.settings.poll = interval;
        self
    }

    /// Listens for [`Jobs::notify`](crate::jobs::Jobs::notify) of other processes, where the database can. Default: no.
    ///
    /// It takes one connection, which must not go through a pooler in transaction mode; that is tested at the start,
    /// and the log says where it does not work. Jobs are found by polling then.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::JobWorker, store::JobStore};
    /// # fn example<S: JobStore>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.listen(true)
    /// # }
    /// ```
    pub fn listen(mut self, on: bool) -> Self {
        self.settings.listen = on;
        self
    }

    /// Sets for how long finished jobs are kept: completed ones, and those that were discarded or cancelled. Default:
    /// one day and seven days. With several processes the shortest counts.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::JobWorker, store::JobStore};
    /// # use std::time::Duration;
    /// # fn example<S: JobStore>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.keep(Duration::from_secs(3600), Duration::from_secs(30 * 24 * 3600))
    /// # }
    /// ```
    pub fn keep(mut self, completed: Duration, others: Duration) -> Self {
        (self.settings.keep_completed, self.settings.keep_others) = (completed, others);
        self
    }
}

impl JobWorker<NoStore> {
    /// A worker on jobs that [`BrokerJobs`](crate::jobs::BrokerJobs) puts into queues of a broker. The queues are those
    /// of the bus' topology, with its delays, limits and dead letters. No I/O.
    ///
    /// Handlers are the same, but that progress, results and cancelling are `Unsupported`, and that a job of a kind that
    /// is not known here becomes a dead letter.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::jobs::{Job, JobWorker};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// # async fn example(bus: polybus_core::Bus, stop: tokio::time::Sleep) -> polybus_core::Result<()> {
    /// JobWorker::on_broker(&bus)
    ///     .queue("mail", 20)
    ///     .on((), async |(), _cx, job: SendInvoice| {
    ///         println!("{}", job.order);
    ///         Ok(())
    ///     })
    ///     .run(stop)
    ///     .await?;
    /// # Ok(()) }
    /// ```
    pub fn on_broker(bus: &Bus) -> Self {
        Self::of(JobOrigin::Broker(bus.clone()))
    }
}

impl<S> JobWorker<S> {
    fn of(origin: JobOrigin) -> Self {
        let settings = JobSettings {
            lease: Duration::from_secs(60),
            poll: Duration::from_millis(200),
            listen: false,
            retry: RetryPolicy::new([5, 30, 120, 600, 3600].map(Duration::from_secs)),
            handler_timeout: None,
            drain_timeout: Duration::from_secs(30),
            keep_completed: DAY,
            keep_others: 7 * DAY,
        };
        Self {
            origin,
            store: PhantomData,
            queues: Vec::new(),
            types: Types::new(),
            routes: HashMap::new(),
            transactions: Arc::default(),
            make_transactions: None,
            crons: Vec::new(),
            problems: Vec::new(),
            settings,
        }
    }

    /// Adds a queue, and how many of its jobs run at once in this process at most. Each queue has handlers of its own,
    /// so a queue of slow jobs keeps no other one waiting.
    ///
    /// ```no_run
    /// # use polybus_patterns::jobs::JobWorker;
    /// # fn example<S>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.queue("mail", 20).queue("reports", 2)
    /// # }
    /// ```
    pub fn queue(mut self, queue: impl Into<String>, concurrency: usize) -> Self {
        self.queues.push((queue.into(), concurrency));
        self
    }

    /// Handles the jobs of a kind; the handler says by its argument which. Each job gets a clone of the state.
    ///
    /// The closure must not capture anything: the state holds what it needs.
    ///
    /// # Cancel safety
    /// The handler's future is dropped at its timeout, when the drain timeout ends, and when the worker's future is
    /// dropped.
    ///
    /// ```no_run
    /// # use polybus_core::{Event, HandlerError};
    /// # use polybus_patterns::jobs::{Job, JobWorker};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// # fn example<S>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.on("smtp", async |server, cx, job: SendInvoice| {
    ///     if job.order < 0 {
    ///         return Err(HandlerError::permanent("there is no such order"));
    ///     }
    ///     cx.progress(50, "rendered").await?;
    ///     println!("{} by {server}", job.order);
    ///     Ok(())
    /// })
    /// # }
    /// ```
    pub fn on<J, T, F, Fut>(self, state: T, handler: F) -> Self
    where
        J: Job + 'static,
        T: Clone + Send + Sync + 'static,
        F: Fn(T, JobContext, J) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.route::<J>(Box::new(move |types, cx| {
            let job = types.decode::<J>(cx.message())?;
            Ok(Box::pin(handler(state.clone(), cx, job)))
        }))
    }

    fn route<J: Job + 'static>(mut self, route: Route) -> Self {
        self.types = self.types.event::<J>();
        if self.routes.insert(J::TYPE, route).is_some() {
            self.problems.push(format!("{}: two handlers: keep one", J::TYPE));
        }
        self
    }

    /// Sets how older versions of arguments are read: see [`types`](crate::types). Call it before the handlers are
    /// added; their kinds need not be registered in it.
    ///
    /// A version that is newer than this program's is put off, not discarded: a newer process runs it.
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{jobs::{Job, JobWorker}, types::Types};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64, copy: bool }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 2; }
    /// # impl Job for SendInvoice {}
    /// # fn example<S>(worker: JobWorker<S>) -> JobWorker<S> {
    /// let types = Types::new().event::<SendInvoice>().upcast::<SendInvoice>(1, |mut json, _| {
    ///     json["copy"] = false.into();
    ///     Ok(json)
    /// });
    /// worker.types(types)
    /// # }
    /// ```
    pub fn types(mut self, types: Types) -> Self {
        if !self.routes.is_empty() {
            self.problems.push("types() comes after handlers: call it before them".into());
        }
        self.types = types;
        self
    }

    /// Sets the delays between attempts. Default: 5 s, 30 s, 2 min, 10 min, then 1 h, each lengthened by up to 10 %.
    ///
    /// ```no_run
    /// # use polybus_core::RetryPolicy;
    /// # use polybus_patterns::jobs::JobWorker;
    /// # use std::time::Duration;
    /// # fn example<S>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.retry(RetryPolicy::exponential(Duration::from_secs(10), 3.0, Duration::from_secs(3600)))
    /// # }
    /// ```
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry = policy;
        self
    }

    /// Sets how long a handler may run before it is dropped and counts as failed. Default: without a limit, since the
    /// lease is renewed as long as the process lives.
    ///
    /// ```no_run
    /// # use polybus_patterns::jobs::JobWorker;
    /// # fn example<S>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.handler_timeout(std::time::Duration::from_secs(600))
    /// # }
    /// ```
    pub fn handler_timeout(mut self, timeout: Duration) -> Self {
        self.settings.handler_timeout = Some(timeout);
        self
    }

    /// Sets how long handlers may go on once the shutdown has begun. Then they are dropped, and their jobs run again
    /// elsewhere at once; the attempt has counted, and at the last one the job is discarded. Default 30 s.
    ///
    /// ```no_run
    /// # use polybus_patterns::jobs::JobWorker;
    /// # fn example<S>(worker: JobWorker<S>) -> JobWorker<S> {
    /// worker.drain_timeout(std::time::Duration::from_secs(10))
    /// # }
    /// ```
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.drain_timeout = timeout;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let mut problems = self.problems.clone();
        if self.queues.is_empty() && self.crons.is_empty() {
            problems.push("no queue: add one with .queue(name, concurrency)".into());
        }
        if self.routes.is_empty() && !self.queues.is_empty() {
            problems.push("no handler: add one with .on(state, handler)".into());
        }
        for (n, (queue, concurrency)) in self.queues.iter().enumerate() {
            if let Err(e) = check_name("job queue", queue) {
                problems.push(e.message().to_owned());
            }
            if *concurrency == 0 {
                problems.push(format!("queue {queue}: the concurrency must be at least 1"));
            }
            if self.queues[..n].iter().any(|(other, _)| other == queue) {
                problems.push(format!("queue {queue}: it is there twice"));
            }
        }
        for (n, cron) in self.crons.iter().enumerate() {
            if self.crons[..n].iter().any(|other| other.name() == cron.name()) {
                problems.push(format!("schedule {}: it is there twice", cron.name()));
            }
        }
        let settings = &self.settings;
        if settings.lease < Duration::from_secs(1) || settings.poll.is_zero() {
            problems.push("use a lease of at least 1 s, and a polling interval above 0".into());
        }
        crate::types::refuse("job worker", problems)
    }
}

impl<S> JobWorker<S> {
    /// Runs jobs until `shutdown` has ended. Then it claims nothing more, waits for handlers up to the
    /// [drain timeout](Self::drain_timeout), and gives back what was not begun.
    ///
    /// A database that is away is waited for, at the start as well.
    ///
    /// # Errors
    /// - `InvalidArgument`: no queue or handler, two handlers for one kind, a queue or a schedule that is there twice,
    ///   a lease below 1 s, types that [`Types::check`] refuses, a retry policy that is none.
    /// - `ConfigInvalid`: the tables are missing, or of a version that this code does not know.
    /// - `Closed`: the store's pool, or the bus, was closed.
    ///
    /// # Cancel safety
    /// Dropping the future drops all handlers at once. Their jobs run again, some after their leases.
    ///
    /// ```no_run
    /// # use polybus_patterns::jobs::JobWorker;
    /// # async fn example<S>(worker: JobWorker<S>) -> polybus_core::Result<()> {
    /// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    /// println!("{:?}", worker.run(stop).await?);
    /// # Ok(()) }
    /// ```
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<JobReport> {
        self.run_each(shutdown, |worker, service| Box::pin(worker.run(service))).await
    }

    /// [`run`](Self::run), with layers of tower around the handlers: `wrap` gets the service that runs jobs, once for
    /// each queue.
    ///
    /// Layers see the job as a [`HandlerRequest`](polybus_core::worker::HandlerRequest), as those around any worker's
    /// service do; [`JobContext`] is made below them.
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    ///
    /// # Cancel safety
    /// That of [`run`](Self::run).
    ///
    /// ```no_run
    /// # use polybus_patterns::jobs::{JobService, JobWorker};
    /// # async fn example<S>(worker: JobWorker<S>) -> polybus_core::Result<()> {
    /// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
    /// // Such as |jobs| tower::ServiceBuilder::new().layer(layer).service(jobs).
    /// worker.run_with(stop, |jobs: JobService| jobs).await?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "tower")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
    pub async fn run_with<W, T>(self, shutdown: impl Future<Output = ()>, wrap: W) -> Result<JobReport>
    where
        W: Fn(super::service::JobService) -> T,
        T: tower_service::Service<polybus_core::worker::HandlerRequest> + Clone + Send + 'static,
        T::Error: Into<HandlerError>,
        T::Future: Send,
    {
        self.run_each(shutdown, |worker, service| Box::pin(worker.serve(wrap(service)))).await
    }
}
