//! Writes the ends of runs, and renews their leases.

use std::{sync::Arc, time::Duration};

use polybus_core::{
    Error, ErrorKind, Result, RetrySafety,
    driver::{Batching, DriverToken, SettleRequest, Settlement, Settler, async_trait, lock_margin},
};
use tokio::time::Instant;

use super::{
    driver::{JobsShared, task_ended},
    report::JobCounts,
    run::{JobRun, RunEnding, TransactionStage},
    transaction::COMMITTED_EARLY,
};
use crate::store::{
    JobEnd, JobEnding, JobExtended, JobFilter, JobOutcome, JobSettled, JobState,
    calls::{in_time, rows_limit},
};

/// The most ends of runs in one transaction.
const MAX_BATCH: usize = 200;

/// Batches under way at once. The others fill up meanwhile.
const IN_FLIGHT: usize = 2;

pub(super) struct JobSettler(pub(super) Arc<JobsShared>);

type Run = Arc<JobRun>;

fn lost() -> Error {
    Error::new(ErrorKind::LockLost, "the job's lease was lost: another worker may run it")
}

/// The end to write; `None` where it is written already.
fn end_of(run: &JobRun, request: &SettleRequest) -> Result<Option<JobEnd>> {
    let ending = run.ending();
    let finished = |outcome, error| JobEnd::Finished { outcome, result: run.result(), error };
    let failure = || request.failure.as_deref().map(str::to_owned);
    Ok(Some(match (&request.how, ending) {
        // Whatever was made of it afterwards.
        (_, Some(RunEnding::InTransaction)) => return Ok(None),
        (Settlement::Ack, Some(RunEnding::Snoozed { delay, why })) => {
            JobEnd::Again { delay, counts: false, error: why }
        }
        (Settlement::Ack, Some(RunEnding::Cancelled { error })) => finished(JobOutcome::Cancelled, Some(error)),
        (Settlement::Ack, None) => finished(JobOutcome::Completed, None),
        (Settlement::Release, _) => JobEnd::Again { delay: Duration::ZERO, counts: true, error: failure() },
        (Settlement::GiveBack, _) => JobEnd::Again { delay: Duration::ZERO, counts: false, error: None },
        (Settlement::RetryAfter(delay), _) => JobEnd::Again { delay: *delay, counts: true, error: failure() },
        (Settlement::DeadLetter { reason, detail }, _) => {
            finished(JobOutcome::Discarded, Some(format!("{reason}: {detail}")))
        }
        (other, _) => return Err(Error::unsupported(format!("{other:?} of a job"))),
    }))
}

impl JobSettler {
    async fn write(&self, endings: &[JobEnding]) -> Result<Vec<JobSettled>> {
        let (shared, endings) = (self.0.clone(), endings.to_vec());
        let wanted = endings.len();
        // In a task: core does not wait for it longer than 30 s, and with one writer at a time a call that leaves the
        // queue has lost its place.
        let write = tokio::spawn(async move {
            in_time(rows_limit(&*shared.control), shared.table.settle(shared.worker, &endings)).await
        });
        let settled = write.await.unwrap_or_else(|ended| Err(task_ended(&ended)))?;
        match settled.len() == wanted {
            true => Ok(settled),
            false => Err(Error::new(ErrorKind::Unexpected, "the store answered for another number of jobs")),
        }
    }

    /// Whether a run whose settlement was not answered is written all the same.
    async fn was_written(&self, ending: &JobEnding) -> bool {
        let JobEnd::Finished { outcome, .. } = ending.how else { return false };
        self.is_finished(ending, outcome).await
    }

    async fn is_finished(&self, ending: &JobEnding, outcome: JobOutcome) -> bool {
        let (filter, after) = (JobFilter::ids([ending.id]), ending.id.saturating_sub(1));
        let list = self.0.table.list(&filter, after, 1);
        let found = in_time(rows_limit(&*self.0.control), list).await.unwrap_or_default();
        found.iter().any(|job| job.attempt == ending.attempt && job.state == JobState::Finished(outcome))
    }

    /// A run that failed, and whose handler had committed its transaction before: the job counts as completed, and
    /// nobody would run it again. It is discarded in place of that, since each further run would write twice what this
    /// one has committed.
    async fn take_back(&self, ending: &JobEnding) -> Result<bool> {
        let completed = JobState::Finished(JobOutcome::Completed);
        if !self.is_finished(ending, JobOutcome::Completed).await {
            return Ok(false);
        }
        let why = match &ending.how {
            JobEnd::Finished { error, .. } | JobEnd::Again { error, .. } => {
                error.as_deref().unwrap_or("it was stopped")
            }
        };
        let error = format!("committed-early: {why} ({COMMITTED_EARLY})");
        tracing::error!(target: "polybus", job = ending.id, "a job is discarded: {error}");
        let filter = JobFilter { ids: Some(vec![ending.id]), state: Some(completed), ..JobFilter::default() };
        let discarded = in_time(rows_limit(&*self.0.control), self.0.table.discard(&filter, &error)).await?;
        Ok(discarded > 0)
    }

    /// A run that is not there any more to be ended.
    async fn answer_lost(&self, run: &Run, ending: &JobEnding) -> Result<()> {
        match run.stage() {
            TransactionStage::Handler if self.take_back(ending).await? => {
                self.0.counts.discarded();
                Ok(())
            }
            // It was dropped while its transaction was being committed, and that came to its end.
            TransactionStage::Commit if self.is_finished(ending, JobOutcome::Completed).await => {
                JobCounts::add(&self.0.counts.completed);
                Ok(())
            }
            _ => {
                run.set_lost();
                Err(lost())
            }
        }
    }

    async fn answer(
        &self,
        run: &Run,
        ending: &JobEnding,
        settled: &Result<Vec<JobSettled>>,
        (place, was_uncertain): (usize, bool),
    ) -> Result<()> {
        match settled {
            Ok(settled) => match settled[place] {
                JobSettled::Written => {
                    self.0.counts.count(&ending.how, run.ending().as_ref());
                    Ok(())
                }
                JobSettled::Busy => {
                    run.set_uncertain(was_uncertain);
                    let text = "another transaction holds the job's row";
                    Err(Error::new(ErrorKind::Unavailable, text).safe())
                }
                JobSettled::Lost if was_uncertain && self.was_written(ending).await => {
                    self.0.counts.count(&ending.how, run.ending().as_ref());
                    Ok(())
                }
                JobSettled::Lost => self.answer_lost(run, ending).await,
            },
            // Written twice it does nothing more, so it may be repeated as long as the lease lasts.
            Err(error) => {
                if error.retry() == RetrySafety::Safe {
                    run.set_uncertain(was_uncertain);
                }
                Err(error.clone().safe())
            }
        }
    }
}

#[async_trait]
impl Settler for JobSettler {
    fn batching(&self) -> Batching {
        // Each end is written once, by lease and attempt.
        Batching::new(MAX_BATCH, usize::MAX, IN_FLIGHT).repeatable()
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut endings = Vec::with_capacity(batch.len());
        // The place of each request's ending, or its answer.
        let mut places: Vec<Result<(Option<(usize, bool)>, Run)>> = Vec::with_capacity(batch.len());
        for request in batch {
            let place = request.token.get::<Run>().and_then(|run| {
                run.leave();
                let Some(how) = end_of(run, request)? else { return Ok((None, run.clone())) };
                let was_uncertain = run.set_uncertain(true);
                if was_uncertain && matches!(how, JobEnd::Again { counts: false, .. }) {
                    // If it is written, the job may have been claimed again, with the same attempt: written twice, it
                    // would end that run. If it is not, the lease runs out.
                    run.set_lost();
                    return Err(lost());
                }
                endings.push(JobEnding { id: run.claim.id, attempt: run.claim.attempt, how });
                Ok((Some((endings.len() - 1, was_uncertain)), run.clone()))
            });
            places.push(place);
        }
        let settled = if endings.is_empty() { Ok(Vec::new()) } else { self.write(&endings).await };
        let mut answers = Vec::with_capacity(batch.len());
        for place in places {
            answers.push(match place {
                Err(e) => Err(e),
                Ok((None, _)) => {
                    JobCounts::add(&self.0.counts.completed);
                    Ok(())
                }
                Ok((Some(place), run)) => self.answer(&run, &endings[place.0], &settled, place).await,
            });
        }
        answers
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        let runs = match tokens.iter().map(|token| token.get::<Run>().cloned()).collect::<Result<Vec<Run>>>() {
            Ok(runs) => runs,
            Err(e) => return e.for_each_of(tokens.len()),
        };
        let keys: Vec<(i64, u32)> = runs.iter().map(|run| (run.claim.id, run.claim.attempt)).collect();
        let since = Instant::now();
        // Core limits the call.
        let extended = match crate::store::calls::caught(self.0.table.extend(self.0.worker, by, &keys)).await {
            Ok(extended) if extended.len() == keys.len() => extended,
            Ok(_) => {
                let text = "the store answered for another number of leases";
                return Error::new(ErrorKind::Unexpected, text).for_each_of(keys.len());
            }
            Err(e) => return e.safe().for_each_of(keys.len()),
        };
        runs.iter()
            .zip(extended)
            .map(|(run, extended)| match extended {
                JobExtended::Held { cancelled } => {
                    if cancelled {
                        run.cancel();
                    }
                    Ok(since + by - lock_margin(by))
                }
                // Nobody takes it away as long as its row is locked. When that ends is not known, so it is asked again
                // soon.
                JobExtended::Locked => Ok(since + by / 4),
                JobExtended::Lost => {
                    run.set_lost();
                    Err(lost())
                }
            })
            .collect()
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<Run>().is_ok_and(|run| !run.is_lost())
    }

    fn forget(&self, token: &DriverToken) {
        if let Ok(run) = token.get::<Run>() {
            run.leave();
        }
    }

    /// Core has settled what it could. The leases of all else run out.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
