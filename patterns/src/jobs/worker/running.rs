//! The run of a worker of jobs: a worker of core for each queue, and what all of them need beside it.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use polybus_core::{
    Bus, BusOptions, Error, ErrorKind, QueueSpec, Result, Source, Topology,
    worker::{WorkerBuilder, WorkerReport},
};
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
};
use uuid::Uuid;

use super::{
    builder::{JobOrigin, JobSettings, JobWorker},
    driver::{JobDriver, JobsShared},
    report::{JobCounts, JobReport},
    service::JobService,
    upkeep::{self, OldJobs},
};
use crate::{
    catch_panic::panic_text,
    cron::runner::CronRunner,
    store::calls,
    sweeper::{self, Sweep},
};

/// How many jobs may be claimed ahead of their handlers at most. What is claimed follows the rate of the last second.
const MAX_AHEAD: usize = 2000;

/// How often finished jobs that are too old are looked for.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;
type WorkerRun = Pin<Box<dyn Future<Output = Result<WorkerReport>> + Send>>;

impl<S> JobWorker<S> {
    pub(super) async fn run_each(
        self,
        shutdown: impl Future<Output = ()>,
        run: impl Fn(WorkerBuilder<Shutdown>, JobService) -> WorkerRun,
    ) -> Result<JobReport> {
        self.check()?;
        self.types.check()?;
        let Self { origin, queues, types, routes, transactions, make_transactions, settings, crons, .. } = self;
        if let Some(make) = make_transactions {
            let _ = transactions.set(make(&settings));
        }
        let mut shutdown = std::pin::pin!(shutdown);
        let service = JobService::new(types, routes);
        let (mut helpers, alive) = (JoinSet::new(), watch::Sender::new(()));
        let (bus, shared) = match origin {
            JobOrigin::Broker(bus) => (bus, None),
            JobOrigin::Table { table, schedules, control } => {
                let verified = tokio::select! {
                    verified = calls::verify(&*control, &["lease", "job"]) => Some(verified),
                    () = &mut shutdown => None,
                };
                match verified {
                    None => return Ok(JobReport::default()),
                    Some(verified) => verified?,
                }
                let crons = CronRunner::new(crons, schedules, control.clone())?;
                let shared = Arc::new(JobsShared {
                    table,
                    control,
                    worker: *Uuid::now_v7().as_bytes(),
                    lease: settings.lease,
                    poll: settings.poll,
                    counts: JobCounts::default(),
                });
                start_upkeep(&mut helpers, &shared, &settings, &alive, crons);
                (table_bus(&shared, &queues, &settings)?, Some(shared))
            }
        };
        let (stop, stopping) = watch::channel(false);
        let mut workers = JoinSet::new();
        for (queue, concurrency) in &queues {
            let mut stopping = stopping.clone();
            let stopped: Shutdown = Box::pin(async move {
                let _ = stopping.wait_for(|stopping| *stopping).await;
            });
            let mut worker = bus.worker(Source::queue(queue.as_str())).concurrency(*concurrency);
            worker = worker.drain_timeout(settings.drain_timeout);
            if shared.is_some() {
                worker = worker.retry(settings.retry.clone()).prefetch(concurrency.saturating_add(MAX_AHEAD));
            }
            if let Some(timeout) = settings.handler_timeout {
                worker = worker.handler_timeout(timeout);
            }
            workers.spawn(run(worker.with_graceful_shutdown(stopped), service.clone()));
        }
        let mut ended = Ended::default();
        // Without a queue there are schedules alone.
        let mut is_stopping = false;
        while !(workers.is_empty() && (is_stopping || !queues.is_empty())) {
            tokio::select! {
                () = &mut shutdown, if !is_stopping => is_stopping = true,
                Some(worker) = workers.join_next() => is_stopping |= ended.worker(worker),
                Some(helper) = helpers.join_next() => {
                    ended.helper(helper);
                    is_stopping = true;
                }
            }
            if is_stopping {
                stop.send_replace(true);
            }
        }
        helpers.shutdown().await;
        if shared.is_some() {
            let _ = bus.close().await;
        }
        let of_core = ended.result()?;
        let counted = shared.map_or_else(|| of_broker_report(&of_core), |shared| shared.counts.report());
        Ok(JobReport { lost: of_core.lock_lost, ..counted })
    }
}

/// How the parts of a worker ended.
#[derive(Default)]
struct Ended {
    report: WorkerReport,
    error: Option<Error>,
}

impl Ended {
    /// Answers whether the others must stop.
    fn worker(&mut self, ended: Result<Result<WorkerReport>, JoinError>) -> bool {
        match ended {
            Ok(Ok(report)) => {
                self.report.succeeded += report.succeeded;
                self.report.retried += report.retried;
                self.report.dead_lettered += report.dead_lettered;
                self.report.lock_lost += report.lock_lost;
                false
            }
            Ok(Err(error)) => {
                self.error.get_or_insert(error);
                true
            }
            Err(ended) => {
                self.helper(Err(ended));
                true
            }
        }
    }

    /// A part that runs as long as the worker has ended.
    fn helper(&mut self, ended: Result<Error, JoinError>) {
        let error = match ended.map_err(JoinError::try_into_panic) {
            Ok(error) => error,
            Err(Ok(panic)) => {
                let text = format!("a part of the job worker panicked, start it again: {}", panic_text(&*panic));
                Error::new(ErrorKind::Unexpected, text)
            }
            Err(Err(_)) => Error::new(ErrorKind::Unexpected, "a part of the job worker ended early"),
        };
        self.error.get_or_insert(error);
    }

    fn result(self) -> Result<WorkerReport> {
        self.error.map_or(Ok(self.report), Err)
    }
}

fn of_broker_report(report: &WorkerReport) -> JobReport {
    let mut jobs = JobReport::default();
    (jobs.completed, jobs.retried) = (report.succeeded, report.retried);
    jobs.discarded = report.dead_lettered;
    jobs
}

/// The bus whose queues are those of the table.
fn table_bus(shared: &Arc<JobsShared>, queues: &[(String, usize)], settings: &JobSettings) -> Result<Bus> {
    let mut topology = Topology::new();
    for (queue, _) in queues {
        topology = topology.queue(queue, QueueSpec::new().lock(settings.lease));
    }
    // What refuses here is a database, which is waited for.
    let options = BusOptions::topology(topology).give_up_after(Duration::MAX);
    Bus::new(Arc::new(JobDriver::new(shared.clone(), queues)), options)
}

/// Starts what a worker does for all.
fn start_upkeep(
    helpers: &mut JoinSet<Error>,
    shared: &Arc<JobsShared>,
    settings: &JobSettings,
    alive: &watch::Sender<()>,
    crons: CronRunner,
) {
    let early = || Error::new(ErrorKind::Unexpected, "a part of the job worker ended early");
    let (a, b, c, d) = (shared.clone(), shared.clone(), shared.clone(), shared.clone());
    helpers.spawn(async move {
        upkeep::promote(&a).await;
        early()
    });
    helpers.spawn(async move {
        upkeep::rescue(&b).await;
        early()
    });
    helpers.spawn(async move {
        upkeep::count(&c).await;
        early()
    });
    if settings.listen {
        helpers.spawn(async move {
            calls::listen(&d.control).await;
            early()
        });
    }
    if !crons.is_empty() {
        helpers.spawn(async move {
            crons.run().await;
            early()
        });
    }
    let (completed, others) = (settings.keep_completed, settings.keep_others);
    let old = Arc::new(OldJobs { table: shared.table.clone(), completed, others });
    let sweep = Sweep::new("job-sweep", "finished jobs", old).every(PRUNE_INTERVAL);
    sweeper::start(sweep, shared.control.clone(), alive.subscribe());
}
