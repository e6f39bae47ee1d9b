//! Runs a handler in the transaction in which its job is finished: effect and completion commit together.

use std::{future::Future, sync::Arc, time::Duration};

use polybus_core::{Error, ErrorKind, HandlerError, Result, RetrySafety};
use tokio::{sync::Semaphore, time::Instant};

use super::{
    context::JobContext,
    run::{JobRun, RunEnding, TransactionStage},
};
use crate::{
    patience,
    reruns::Reruns,
    store::{
        JobFilter, JobOutcome, JobState, JobStore, StoreControl, StoreTrouble, TransactionLimits,
        calls::{ROWS, in_time, rows_limit},
        in_run,
    },
};

/// How long the first statement of the transaction may wait for a lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How long a database that is away may be waited for in one attempt. The lease ends the wait sooner.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why a job is finished though its transaction did not come to its end.
pub(super) const COMMITTED_EARLY: &str = "a statement of its handler committed the transaction before its end, such as COMMIT, or DDL on MySQL and MariaDB: \
     effects and completion were not one. Such statements belong into a handler without a transaction";

/// The connections that are left for the handlers' other statements.
const SPARE_CONNECTIONS: u32 = 1;

/// What all handlers with a transaction share.
pub(super) struct JobTransactions<S> {
    store: S,
    control: Arc<dyn StoreControl>,
    /// One for each connection that a handler may have.
    places: Semaphore,
    handler_timeout: Option<Duration>,
}

impl<S: JobStore> JobTransactions<S> {
    pub(super) fn new(store: &S, handler_timeout: Option<Duration>) -> Self {
        let control = store.control();
        let connections = control.max_connections().filter(|_| !control.single_writer());
        let places =
            connections.map_or(Semaphore::MAX_PERMITS, |n| n.saturating_sub(SPARE_CONNECTIONS).max(1) as usize);
        Self { store: store.clone(), control, places: Semaphore::new(places), handler_timeout }
    }

    /// Runs the handler, anew where its transaction lost against another one or its connection was lost.
    pub(super) async fn run<F, Fut>(&self, cx: &JobContext, handler: F) -> Result<(), HandlerError>
    where
        F: Fn(S::Tx) -> Fut + Send + Sync,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send,
    {
        let Some(run) = cx.run() else {
            return Err(Error::unsupported("a job from a broker has no transaction: use on() or an Inbox").into());
        };
        let _place = self.places.acquire().await;
        let mut reruns = Reruns::default();
        loop {
            patience::wait_while_away(&self.control, Some(PATIENCE)).await?;
            let began = Instant::now();
            let error = match in_run(self.try_once(run, &handler)).await {
                Ok(()) => {
                    run.end_by(RunEnding::InTransaction);
                    return Ok(());
                }
                Err(error) => error,
            };
            run.renew_after(began.elapsed(), rows_limit(&*self.control)).await;
            if error.is_permanent() || cx.is_lock_lost() {
                return Err(error);
            }
            if may_be_committed(&error) && self.is_committed(run).await {
                run.end_by(RunEnding::InTransaction);
                return Ok(());
            }
            let trouble = self.store.judge(error.error());
            if !reruns.again(trouble, error.error(), &self.control, Some(PATIENCE)).await {
                return Err(error);
            }
        }
    }

    async fn try_once<F, Fut>(&self, run: &JobRun, handler: &F) -> Result<(), HandlerError>
    where
        F: Fn(S::Tx) -> Fut + Send + Sync,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send,
    {
        let claim = &run.claim;
        let limits = TransactionLimits::new(LOCK_WAIT, self.handler_timeout);
        // With one writer at a time it may wait long for its turn, and that is no fault.
        let begin = self.store.begin_finished(claim, &limits);
        let begun = if self.control.single_writer() { begin.await } else { in_time(ROWS, begin).await };
        let Some(tx) = begun? else {
            run.set_lost();
            return Err(Error::new(ErrorKind::LockLost, "the job's lease was lost: another worker may run it").into());
        };
        run.set_stage(TransactionStage::Handler);
        let mut tx = handler(tx).await?;
        if let Some(result) = run.result() {
            in_time(ROWS, self.store.keep_result(&mut tx, claim, &result)).await?;
        }
        // PostgreSQL answers the COMMIT of a transaction that has failed with Ok.
        if !S::commit_proves_finish(&tx) {
            match in_time(ROWS, self.store.is_finished(&mut tx, claim)).await {
                Ok(true) => {}
                Ok(false) => return Err(self.lost(run, None).into()),
                Err(error) => return Err(self.lost(run, Some(error)).into()),
            }
        }
        run.set_stage(TransactionStage::Commit);
        match in_time(ROWS, S::commit(tx)).await {
            Err(e) if e.context("transaction") == Some("lost") => {
                run.set_stage(TransactionStage::Handler);
                Err(self.lost(run, Some(e)).into())
            }
            committed => Ok(committed?),
        }
    }

    /// Whether a commit whose answer was lost has happened.
    async fn is_committed(&self, run: &JobRun) -> bool {
        let (filter, after) = (JobFilter::ids([run.claim.id]), run.claim.id.saturating_sub(1));
        let found = in_time(ROWS, run.table.list(&filter, after, 1)).await.unwrap_or_default();
        let completed = JobState::Finished(JobOutcome::Completed);
        found.iter().any(|job| job.state == completed && job.attempt == run.claim.attempt)
    }

    fn lost(&self, run: &JobRun, error: Option<Error>) -> Error {
        // The connection may be gone, which is nobody's fault: the error as it is says so.
        if let Some(error) = &error
            && self.store.judge(error) != StoreTrouble::None
        {
            return error.clone();
        }
        tracing::error!(
            target: "polybus", job = run.claim.id, error = error.as_ref().map(tracing::field::display),
            "the handler went on after an error that ended its transaction; nothing was written, and the job runs again"
        );
        let text = "the handler went on after an error that ended its transaction: use a savepoint where an error is \
                    expected, and give back the transaction that came";
        let lost = Error::new(ErrorKind::Unexpected, text).with_operation("commit").safe();
        match error {
            Some(error) => lost.with_source(error),
            None => lost,
        }
    }
}

fn may_be_committed(error: &HandlerError) -> bool {
    let error: &(dyn std::error::Error + 'static) = error.error();
    error.downcast_ref::<Error>().is_some_and(|e| e.retry() == RetrySafety::MayDuplicate)
}
