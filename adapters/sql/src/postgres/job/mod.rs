//! Background jobs and schedules.
//!
//! `insert` writes jobs in the caller's transaction, and `unique_span` those whose key is taken for a time. `claim`,
//! `settle` and `extend` are the life of a run, and `finish` is its end in the handler's own transaction. `upkeep`
//! rescues, promotes and prunes. `admin`, `list`, `counts` and `snapshot` are for people, and `schedules` is the table
//! of schedules.
//!
//! Nothing here waits for a row that somebody else holds but what says so: where others would wait, rows are locked by
//! SKIP LOCKED first, and only what was locked is written.

mod admin;
mod claim;
mod counts;
mod extend;
mod finish;
mod insert;
mod list;
mod schedules;
mod settle;
mod snapshot;
mod unique_span;
mod upkeep;

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{
    ClaimedJob, DueRows, JobClaim, JobCount, JobEnding, JobExtended, JobFilter, JobInserted, JobSettled, JobStore,
    JobTable, NewJobRow, RescuedJobs, ScheduleTable, StoredJob, StoredQueue, TransactionLimits,
};
use sqlx::PgConnection;

use super::{Postgres, PostgresTx};
use crate::names::Names;

/// The columns that a job keeps when it is finished, and when it is retried.
macro_rules! kept {
    () => {
        "id, queue, kind, priority, run_at, max_attempts, unique_key, unique_until, schedule, created_at, head, data"
    };
}
use kept;

/// The statements of all files.
#[derive(Debug)]
pub(super) struct JobSql {
    insert: insert::InsertSql,
    unique_span: unique_span::UniqueSpanSql,
    claim: claim::ClaimSql,
    settle: settle::SettleSql,
    extend: extend::ExtendSql,
    finish: finish::FinishSql,
    upkeep: upkeep::UpkeepSql,
    admin: admin::AdminSql,
    list: list::ListSql,
    counts: counts::CountsSql,
    schedules: schedules::SchedulesSql,
}

impl JobSql {
    pub(super) fn new(names: &Names) -> Self {
        Self {
            insert: insert::InsertSql::new(names),
            unique_span: unique_span::UniqueSpanSql::new(names),
            claim: claim::ClaimSql::new(names),
            settle: settle::SettleSql::new(names),
            extend: extend::ExtendSql::new(names),
            finish: finish::FinishSql::new(names),
            upkeep: upkeep::UpkeepSql::new(names),
            admin: admin::AdminSql::new(names),
            list: list::ListSql::new(names),
            counts: counts::CountsSql::new(names),
            schedules: schedules::SchedulesSql::new(names),
        }
    }
}

impl JobStore for Postgres {
    async fn insert_jobs(&self, conn: &mut PgConnection, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
        insert::insert(self, conn, jobs).await
    }

    /// Two round trips: BEGIN with the limits, and the move.
    async fn begin_finished(&self, claim: &JobClaim, limits: &TransactionLimits) -> Result<Option<PostgresTx>> {
        finish::begin(self, claim, limits).await
    }

    async fn keep_result(&self, conn: &mut PgConnection, claim: &JobClaim, result: &str) -> Result<()> {
        finish::keep_result(self, conn, claim, result).await
    }

    async fn is_finished(&self, conn: &mut PgConnection, claim: &JobClaim) -> Result<bool> {
        finish::is_finished(self, conn, claim).await
    }

    fn jobs(&self) -> Arc<dyn JobTable> {
        Arc::new(Jobs(self.clone()))
    }

    fn schedules(&self) -> Arc<dyn ScheduleTable> {
        Arc::new(schedules::ScheduleRows(self.clone()))
    }
}

struct Jobs(Postgres);

#[async_trait]
impl JobTable for Jobs {
    async fn claim(&self, queue: &str, worker: [u8; 16], lease: Duration, limit: u32) -> Result<Vec<ClaimedJob>> {
        claim::claim(&self.0, queue, worker, lease, limit).await
    }

    async fn settle(&self, worker: [u8; 16], endings: &[JobEnding]) -> Result<Vec<JobSettled>> {
        settle::settle(&self.0, worker, endings).await
    }

    async fn extend(&self, worker: [u8; 16], lease: Duration, runs: &[(i64, u32)]) -> Result<Vec<JobExtended>> {
        extend::extend(&self.0, worker, lease, runs).await
    }

    async fn progress(&self, claim: &JobClaim, percent: Option<i16>, note: Option<&str>) -> Result<bool> {
        extend::progress(&self.0, claim, percent, note).await
    }

    async fn rescue(&self, error: &str, limit: u32) -> Result<RescuedJobs> {
        upkeep::rescue(&self.0, error, limit).await
    }

    async fn promote(&self, limit: u32) -> Result<DueRows> {
        upkeep::promote(&self.0, limit).await
    }

    async fn prune(&self, completed: Duration, others: Duration, limit: u32) -> Result<u64> {
        upkeep::prune(&self.0, completed, others, limit).await
    }

    async fn list(&self, filter: &JobFilter, after: i64, limit: u32) -> Result<Vec<StoredJob>> {
        list::list(&self.0, filter, after, limit).await
    }

    async fn retry(&self, filter: &JobFilter) -> Result<u64> {
        admin::retry(&self.0, filter).await
    }

    async fn cancel(&self, filter: &JobFilter) -> Result<u64> {
        admin::cancel(&self.0, filter).await
    }

    async fn discard(&self, filter: &JobFilter, error: &str) -> Result<u64> {
        admin::discard(&self.0, filter, error).await
    }

    async fn delete(&self, filter: &JobFilter) -> Result<u64> {
        admin::delete(&self.0, filter).await
    }

    async fn counts(&self, cap: u32) -> Result<Vec<JobCount>> {
        counts::counts(&self.0, cap, true).await
    }

    async fn counts_unfinished(&self, cap: u32) -> Result<Vec<JobCount>> {
        counts::counts(&self.0, cap, false).await
    }

    async fn queues(&self) -> Result<Vec<StoredQueue>> {
        counts::queues(&self.0).await
    }

    async fn set_paused(&self, queue: &str, paused: bool) -> Result<()> {
        counts::set_paused(&self.0, queue, paused).await
    }

    async fn oldest_snapshot(&self) -> Result<Option<(Duration, String)>> {
        snapshot::oldest(&self.0).await
    }
}

/// The attempt as its column holds it. A number that is none there belongs to no run.
fn attempt_column(attempt: u32) -> i32 {
    i32::try_from(attempt).unwrap_or(-1)
}
