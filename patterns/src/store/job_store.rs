//! The tables of background jobs.

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use polybus_core::{Result, driver::async_trait};

use super::{DueRows, ScheduleTable, Store, TransactionLimits};

/// A store with background jobs.
pub trait JobStore: Store {
    /// Writes jobs in the caller's transaction, or alone where the connection is in none. Answers one by one, in their
    /// order. The ids of jobs without a unique key rise in their order; those of others have none, since a database may
    /// have to write them in the order of their keys.
    ///
    /// Of two jobs with the same unique key one is written, whatever the transactions that write them do: while
    /// another one that has not committed holds the key, this waits for its end, and takes the key if that rolls back.
    /// Keys are locked in ascending order, so that two transactions do not lock each other out.
    ///
    /// A job that holds its key until its start, and is found waiting, is not claimed before the transaction that has
    /// found it ends: it is to see what that transaction writes.
    fn insert_jobs(
        &self,
        conn: &mut Self::Conn,
        jobs: &[NewJobRow],
    ) -> impl Future<Output = Result<Vec<JobInserted>>> + Send;

    /// Begins a transaction and moves a running job to the finished ones in it, as completed. The row stays locked
    /// until the transaction ends, which counts as a sign of life. `None` where the claim was lost; nothing is open
    /// then.
    fn begin_finished(
        &self,
        claim: &JobClaim,
        limits: &TransactionLimits,
    ) -> impl Future<Output = Result<Option<Self::Tx>>> + Send;

    /// Keeps what the job of [`begin_finished`](Self::begin_finished) has brought, in its transaction.
    fn keep_result(
        &self,
        conn: &mut Self::Conn,
        claim: &JobClaim,
        result: &str,
    ) -> impl Future<Output = Result<()>> + Send;

    /// Whether the job is among the finished ones, read in the transaction of [`begin_finished`](Self::begin_finished).
    /// An error or false says that the transaction was lost.
    fn is_finished(&self, conn: &mut Self::Conn, claim: &JobClaim) -> impl Future<Output = Result<bool>> + Send;

    /// Whether [`commit`](Store::commit) of this transaction fails where it was lost, so that nobody needs to read the
    /// row back. The error has the context `transaction=lost` then. Default: no.
    fn commit_proves_finish(tx: &Self::Tx) -> bool {
        let _ = tx;
        false
    }

    /// The tables without a transaction of the caller's.
    fn jobs(&self) -> Arc<dyn JobTable>;

    /// The schedules.
    fn schedules(&self) -> Arc<dyn ScheduleTable>;
}

/// A job to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJobRow {
    /// The queue that it waits in.
    pub queue: String,
    /// Its kind: the event type of its arguments.
    pub kind: String,
    /// Lower runs first.
    pub priority: i16,
    /// When it may run.
    pub due: JobDue,
    /// How often it is tried at most; at least 1.
    pub max_attempts: u32,
    /// Attributes and headers, as JSON.
    pub head: String,
    /// The arguments.
    pub data: Bytes,
    /// What it shares with no other job, if anything.
    pub unique: Option<UniqueJob>,
    /// The schedule that it comes from.
    pub schedule: Option<String>,
}

/// When a job may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobDue {
    /// So long after now, by the database's clock; zero is at once.
    After(Duration),
    /// At this time, in microseconds since 1970 by the database's clock. A time in the past is now.
    At(i64),
}

/// What makes a job the only one of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UniqueJob {
    /// The first 16 bytes of a SHA-256 over what must not be there twice.
    pub key: [u8; 16],
    /// How long the key is taken.
    pub until: UniqueUntil,
}

/// How long a unique key is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UniqueUntil {
    /// Until the job is claimed for the first time.
    Started,
    /// Until the job is completed, discarded or cancelled.
    Done,
    /// For this long, whatever becomes of the job.
    For(Duration),
}

/// What became of a job that was to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobInserted {
    /// Its id, or that of the job that has its unique key. With [`UniqueUntil::For`] that one may be gone.
    pub id: i64,
    /// It was written; false if another job has its unique key.
    pub is_new: bool,
}

/// One run of a job by one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct JobClaim {
    /// The job.
    pub id: i64,
    /// The attempt that this run is, beginning with 1.
    pub attempt: u32,
    /// The worker: a UUID for each start of a process.
    pub worker: [u8; 16],
}

/// A job that was claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimedJob {
    /// The job.
    pub id: i64,
    /// Its kind.
    pub kind: String,
    /// The attempt that this claim is, beginning with 1.
    pub attempt: u32,
    /// How often it is tried at most.
    pub max_attempts: u32,
    /// Attributes and headers, as JSON.
    pub head: String,
    /// The arguments.
    pub data: Bytes,
    /// The schedule that it comes from.
    pub schedule: Option<String>,
    /// For how long it could have been claimed, by the database's clock.
    pub waited: Duration,
}

/// The end of a run, to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobEnding {
    /// The job.
    pub id: i64,
    /// The attempt that the run was.
    pub attempt: u32,
    /// How it ended.
    pub how: JobEnd,
}

/// How a run of a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// The job leaves its queue.
    Finished {
        /// What became of it.
        outcome: JobOutcome,
        /// What it has brought, as JSON.
        result: Option<String>,
        /// Why it failed.
        error: Option<String>,
    },
    /// The job runs again. One that somebody has cancelled meanwhile is finished as cancelled.
    Again {
        /// After this much time; zero is at once, at its old place in the queue ([`run_at`](StoredJob::run_at) stays).
        delay: Duration,
        /// Whether the attempt counts. If not, the next one has its number.
        counts: bool,
        /// Why it failed; `None` leaves the last error as it is.
        error: Option<String>,
    },
}

/// What became of a finished job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobOutcome {
    /// Its handler ended well. 0 in the tables.
    Completed,
    /// It was given up. 1 in the tables.
    Discarded,
    /// Somebody cancelled it. 2 in the tables.
    Cancelled,
}

impl JobOutcome {
    /// The number that the tables hold.
    pub fn number(self) -> i16 {
        match self {
            Self::Completed => 0,
            Self::Discarded => 1,
            Self::Cancelled => 2,
        }
    }

    /// The outcome of a number in the tables. One that is not known is that of a newer polybus, and counts as
    /// discarded.
    pub fn of_number(number: i16) -> Self {
        match number {
            0 => Self::Completed,
            2 => Self::Cancelled,
            _ => Self::Discarded,
        }
    }
}

/// The answer to a [`JobEnding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobSettled {
    /// It is written.
    Written,
    /// The claim was lost, and nothing was written.
    Lost,
    /// Another transaction holds the row at this moment, and nothing was written.
    Busy,
}

/// The answer to a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobExtended {
    /// The lease is renewed.
    Held {
        /// Somebody wants the job cancelled.
        cancelled: bool,
    },
    /// Another transaction holds the row at this moment, such as that of the job's own handler. It is this worker's,
    /// and nobody takes it away meanwhile.
    Locked,
    /// The claim was lost.
    Lost,
}

/// Jobs whose worker was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RescuedJobs {
    /// They run again.
    pub again: u64,
    /// They were discarded, since that was their last attempt.
    pub discarded: u64,
    /// They were cancelled meanwhile.
    pub cancelled: u64,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobState {
    /// It may be claimed. 0 in the table.
    Available,
    /// Its time has not come. 1 in the table.
    Scheduled,
    /// It is claimed. 2 in the table.
    Running,
    /// It is finished.
    Finished(JobOutcome),
}

/// Which jobs. Every condition that is there must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct JobFilter {
    /// Those with these ids.
    pub ids: Option<Vec<i64>>,
    /// Those of this queue.
    pub queue: Option<String>,
    /// Those of this kind.
    pub kind: Option<String>,
    /// Those of this schedule.
    pub schedule: Option<String>,
    /// Those whose last error begins with this text.
    pub error: Option<String>,
    /// Those in this state.
    pub state: Option<JobState>,
}

/// A job as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredJob {
    /// Its id, which it keeps when it is finished and when it is retried.
    pub id: i64,
    /// Its queue.
    pub queue: String,
    /// Its kind.
    pub kind: String,
    /// Where it stands.
    pub state: JobState,
    /// Lower runs first.
    pub priority: i16,
    /// How often it was claimed.
    pub attempt: u32,
    /// How often it is tried at most.
    pub max_attempts: u32,
    /// Attributes and headers, as JSON.
    pub head: String,
    /// The arguments.
    pub data: Bytes,
    /// The schedule that it comes from.
    pub schedule: Option<String>,
    /// How far its handler said that it has come, in percent.
    pub progress: Option<i16>,
    /// What its handler said beside that.
    pub note: Option<String>,
    /// Somebody wants it cancelled.
    pub cancelled: bool,
    /// Why its last run failed.
    pub last_error: Option<String>,
    /// What it has brought, as JSON.
    pub result: Option<String>,
    /// When it was written, in microseconds since 1970 by the database's clock, as all times here.
    pub created_at: i64,
    /// When it may run, or could; of a finished job: when it could run last.
    pub run_at: i64,
    /// Until when its worker has it, while it runs.
    pub locked_until: Option<i64>,
    /// When it was finished.
    pub finished_at: Option<i64>,
}

/// How many jobs of a queue are in a state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobCount {
    /// The queue.
    pub queue: String,
    /// The state.
    pub state: JobState,
    /// How many, counted up to the cap.
    pub jobs: u64,
    /// Of available ones: for how long the oldest could have run. Priorities are not looked at.
    pub oldest: Option<Duration>,
}

/// A queue of jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredQueue {
    /// Its name.
    pub name: String,
    /// Nothing of it is claimed.
    pub paused: bool,
}

/// The tables of jobs as workers and the administration see them. Every call is a transaction of its own, and none
/// waits for a row that somebody else holds, unless it says so.
#[async_trait]
pub trait JobTable: Send + Sync {
    /// Claims up to `limit` available jobs of a queue: the lowest priority first, then the earliest
    /// [`run_at`](StoredJob::run_at), then the lowest id. A claim counts as an attempt. A paused queue has none.
    ///
    /// Unique keys that are taken until a job is [started](UniqueUntil::Started) are free from then on.
    async fn claim(&self, queue: &str, worker: [u8; 16], lease: Duration, limit: u32) -> Result<Vec<ClaimedJob>>;

    /// Writes the ends of runs of this worker. Answers one by one. A claim that was lost, by id or by attempt, is left
    /// alone.
    async fn settle(&self, worker: [u8; 16], endings: &[JobEnding]) -> Result<Vec<JobSettled>>;

    /// Renews the leases of running jobs of this worker, told by id and attempt. Answers one by one.
    async fn extend(&self, worker: [u8; 16], lease: Duration, runs: &[(i64, u32)]) -> Result<Vec<JobExtended>>;

    /// Writes how far a running job has come; `None` leaves that as it is. False where the claim was lost. It may wait
    /// for the row.
    async fn progress(&self, claim: &JobClaim, percent: Option<i16>, note: Option<&str>) -> Result<bool>;

    /// Frees up to `limit` running jobs whose lease has run out, or ends so far ahead (more than its own term from
    /// now) that only a clock that was set back explains it. The attempt has counted. At the last attempt a job is
    /// discarded. `error` becomes the last error.
    async fn rescue(&self, error: &str, limit: u32) -> Result<RescuedJobs>;

    /// Makes up to `limit` scheduled jobs available whose time has come, the earliest first.
    async fn promote(&self, limit: u32) -> Result<DueRows>;

    /// Deletes up to `limit` completed jobs that were finished longer ago than the first span, up to `limit` others
    /// that were longer ago than the second one, and up to `limit` unique keys whose time is over. Answers how many
    /// rows in all.
    async fn prune(&self, completed: Duration, others: Duration, limit: u32) -> Result<u64>;

    /// Jobs with ids above `after`, in the order of their ids.
    async fn list(&self, filter: &JobFilter, after: i64, limit: u32) -> Result<Vec<StoredJob>>;

    /// Makes jobs run at once: scheduled ones, and finished ones, which keep their id and begin with attempt 1 again.
    /// A finished job whose unique key is taken is left alone. Without a state in the filter completed ones are left
    /// alone, unless their id is named. Answers how many. It may wait for rows, as the next three may.
    async fn retry(&self, filter: &JobFilter) -> Result<u64>;

    /// Cancels jobs: available and scheduled ones are finished as cancelled, and running ones are told. Answers how
    /// many.
    async fn cancel(&self, filter: &JobFilter) -> Result<u64>;

    /// Discards available and scheduled jobs, with this error; completed ones where that is the filter's state. Answers
    /// how many.
    async fn discard(&self, filter: &JobFilter, error: &str) -> Result<u64>;

    /// Deletes finished jobs. Answers how many.
    async fn delete(&self, filter: &JobFilter) -> Result<u64>;

    /// Counts the jobs of each queue and state, each number up to `cap`, so that a large backlog costs no scan. A state
    /// without jobs may be left out.
    async fn counts(&self, cap: u32) -> Result<Vec<JobCount>>;

    /// The same without finished jobs, for who counts often. Default: the counts of all, without those.
    async fn counts_unfinished(&self, cap: u32) -> Result<Vec<JobCount>> {
        let mut counts = self.counts(cap).await?;
        counts.retain(|count| !matches!(count.state, JobState::Finished(_)));
        Ok(counts)
    }

    /// The queues that have jobs that are not finished, or that are paused, by name.
    async fn queues(&self) -> Result<Vec<StoredQueue>>;

    /// Stops or resumes the claims of a queue.
    async fn set_paused(&self, queue: &str, paused: bool) -> Result<()>;

    /// How old the oldest snapshot is that keeps the database from removing rows that are deleted, and who has it, for
    /// people. `None` where there is none, or no such thing. Default: none.
    async fn oldest_snapshot(&self) -> Result<Option<(Duration, String)>> {
        Ok(None)
    }
}
