//! Claims jobs of one queue.

use std::{sync::Arc, time::Duration};

use polybus_core::{
    Envelope, Result,
    driver::{DriverToken, ReceivedMessage, Receiver, async_trait, lock_margin},
};
use tokio::{task::JoinHandle, time::Instant};

use super::{driver::JobsShared, gate::QueueGate, run::JobRun};
use crate::{
    store::{
        ChangeListener, ClaimedJob, JobClaim, JobEnd, JobEnding, LookTimes,
        calls::{in_time, rows_limit},
    },
    stored_head::decode_head,
};

/// The most jobs of one claim: they are locked one by one.
const MAX_CLAIM: usize = 500;

pub(super) struct JobReceiver {
    shared: Arc<JobsShared>,
    queue: String,
    gate: Arc<QueueGate>,
    looks: LookTimes,
    changes: ChangeListener,
    /// The last claim brought all that it asked for, so there may be more.
    may_have_more: bool,
    /// A claim under way. It lives here and not in the future of a call: dropped, it would leave jobs claimed that
    /// nobody runs.
    claiming: Option<Claiming>,
}

struct Claiming {
    asked: usize,
    /// Leases are counted from before the request.
    since: Instant,
    jobs: JoinHandle<Result<Vec<ClaimedJob>>>,
}

impl JobReceiver {
    pub(super) fn new(shared: Arc<JobsShared>, queue: String, gate: Arc<QueueGate>) -> Self {
        let (looks, changes) = (LookTimes::new(shared.poll), shared.control.changes().listen());
        Self { shared, queue, gate, looks, changes, may_have_more: false, claiming: None }
    }

    fn claim(&mut self, asked: usize) -> Claiming {
        let (shared, queue) = (self.shared.clone(), self.queue.clone());
        let limit = u32::try_from(asked).unwrap_or(u32::MAX);
        let claim = async move {
            let claim = shared.table.claim(&queue, shared.worker, shared.lease, limit);
            in_time(rows_limit(&*shared.control), claim).await
        };
        Claiming { asked, since: Instant::now(), jobs: tokio::spawn(claim) }
    }

    /// Waits until it is time to look, and answers how many jobs to ask for.
    async fn until_look(&mut self, max: usize) -> usize {
        loop {
            let room = self.gate.room().min(max).min(MAX_CLAIM);
            if room == 0 {
                self.gate.freed().await;
                continue;
            }
            if self.may_have_more || self.looks.is_due() {
                self.looks.looking();
                return room;
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.looks.next()) => {}
                committed = self.changes.changed() => match committed {
                    true => self.may_have_more = true,
                    false => self.looks.written(),
                },
            }
        }
    }

    fn received(&self, job: ClaimedJob, since: Instant) -> ReceivedMessage {
        let shared = &self.shared;
        let ClaimedJob { id, kind, attempt, max_attempts, head, data, schedule, .. } = job;
        let claim = JobClaim { id, attempt, worker: shared.worker };
        let run = Arc::new(JobRun::new(claim, schedule, shared.table.clone(), shared.lease, self.gate.clone()));
        let token = DriverToken::new(run);
        let (envelope, malformed) = match decode_head(&head, data.clone()) {
            Ok(envelope) => (envelope, None),
            Err(error) => (Envelope::bare(kind, data).id(format!("job-{id}")), Some(error.message().into())),
        };
        let mut received = ReceivedMessage::new(token.clone(), envelope, attempt);
        received.locked_until = Some(since + shared.lease - lock_margin(shared.lease));
        received.malformed = malformed;
        received.max_deliveries = Some(max_attempts);
        received.known_by = Some(id.to_string().into());
        received.native = Some(token);
        received
    }
}

#[async_trait]
impl Receiver for JobReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        if self.claiming.is_none() {
            let asked = self.until_look(max).await;
            self.claiming = Some(self.claim(asked));
        }
        let Some(claiming) = &mut self.claiming else { return Ok(Vec::new()) };
        let answer = (&mut claiming.jobs).await;
        let (asked, since) = (claiming.asked, claiming.since);
        self.claiming = None;
        let jobs = answer.unwrap_or_else(|ended| Err(super::driver::task_ended(&ended)))?;
        self.may_have_more = jobs.len() >= asked;
        Ok(jobs.into_iter().map(|job| self.received(job, since)).collect())
    }

    async fn close(&mut self) -> Result<()> {
        let Some(claiming) = self.claiming.take() else { return Ok(()) };
        // Jobs that it brings are given back as if they had not been claimed.
        let Ok(Ok(jobs)) = claiming.jobs.await else { return Ok(()) };
        let again = || JobEnd::Again { delay: Duration::ZERO, counts: false, error: None };
        let given_back: Vec<JobEnding> =
            jobs.into_iter().map(|job| JobEnding { id: job.id, attempt: job.attempt, how: again() }).collect();
        if given_back.is_empty() {
            return Ok(());
        }
        let settle = self.shared.table.settle(self.shared.worker, &given_back);
        in_time(rows_limit(&*self.shared.control), settle).await.map(drop)
    }
}
