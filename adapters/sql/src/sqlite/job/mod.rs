//! Jobs and schedules.

mod admin;
mod claim;
mod counts;
mod finish;
mod insert;
mod moved;
mod schedules;
mod settle;
mod upkeep;

use std::{sync::Arc, time::Duration};

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{
    ClaimedJob, DueRows, JobClaim, JobCount, JobEnding, JobExtended, JobFilter, JobInserted, JobSettled, JobStore,
    JobTable, NewJobRow, RescuedJobs, ScheduleTable, StoredJob, StoredQueue, TransactionLimits,
};
use sqlx::SqliteConnection;

use super::{Sqlite, SqliteTx};
use crate::names::Names;

/// The statements of jobs and schedules.
#[derive(Debug)]
pub(super) struct JobSql {
    insert: insert::InsertSql,
    claim: claim::ClaimSql,
    moved: moved::MovedSql,
    settle: settle::SettleSql,
    finish: finish::FinishSql,
    upkeep: upkeep::UpkeepSql,
    admin: admin::AdminSql,
    counts: counts::CountsSql,
    schedules: schedules::SchedulesSql,
}

impl JobSql {
    pub(super) fn new(names: &Names) -> Self {
        Self {
            insert: insert::InsertSql::new(names),
            claim: claim::ClaimSql::new(names),
            moved: moved::MovedSql::new(names),
            settle: settle::SettleSql::new(names),
            finish: finish::FinishSql::new(names),
            upkeep: upkeep::UpkeepSql::new(names),
            admin: admin::AdminSql::new(names),
            counts: counts::CountsSql::new(names),
            schedules: schedules::SchedulesSql::new(names),
        }
    }
}

impl JobStore for Sqlite {
    async fn insert_jobs(&self, conn: &mut SqliteConnection, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
        let inserted = insert::insert(self, conn, jobs).await?;
        self.0.changes.written();
        Ok(inserted)
    }

    async fn begin_finished(&self, claim: &JobClaim, _limits: &TransactionLimits) -> Result<Option<SqliteTx>> {
        finish::begin(self, claim).await
    }

    async fn keep_result(&self, conn: &mut SqliteConnection, claim: &JobClaim, result: &str) -> Result<()> {
        finish::keep_result(self, conn, claim, result).await
    }

    async fn is_finished(&self, conn: &mut SqliteConnection, claim: &JobClaim) -> Result<bool> {
        finish::is_finished(self, conn, claim).await
    }

    fn jobs(&self) -> Arc<dyn JobTable> {
        Arc::new(Jobs(self.clone()))
    }

    fn schedules(&self) -> Arc<dyn ScheduleTable> {
        Arc::new(schedules::ScheduleRows(self.clone()))
    }
}

struct Jobs(Sqlite);

#[async_trait]
impl JobTable for Jobs {
    async fn claim(&self, queue: &str, worker: [u8; 16], lease: Duration, limit: u32) -> Result<Vec<ClaimedJob>> {
        claim::claim(&self.0, queue, worker, lease, limit).await
    }

    async fn settle(&self, worker: [u8; 16], endings: &[JobEnding]) -> Result<Vec<JobSettled>> {
        settle::settle(&self.0, worker, endings).await
    }

    async fn extend(&self, worker: [u8; 16], lease: Duration, runs: &[(i64, u32)]) -> Result<Vec<JobExtended>> {
        settle::extend(&self.0, worker, lease, runs).await
    }

    async fn progress(&self, claim: &JobClaim, percent: Option<i16>, note: Option<&str>) -> Result<bool> {
        settle::progress(&self.0, claim, percent, note).await
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
        admin::list(&self.0, filter, after, limit).await
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
}
