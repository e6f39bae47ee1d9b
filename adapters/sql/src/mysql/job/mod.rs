//! The tables of background jobs.
//!
//! | file | what lives there |
//! |---|---|
//! | `insert` | jobs that are written, in a transaction of the caller's or alone |
//! | `keys` | unique keys: whose turn it is, and who has one |
//! | `claim` | claiming |
//! | `settle` | the ends of runs |
//! | `extend` | signs of life, and how far a run has come |
//! | `finish` | the end of a run in its handler's transaction |
//! | `moved` | rows on their way to the finished ones |
//! | `upkeep` | jobs whose time has come, jobs whose worker was lost, old rows |
//! | `admin`, `counts` | what people see and do |
//! | `schedules` | schedules |
//!
//! A statement locks rows by SKIP LOCKED first, and then writes them by primary key, in the order of their ids: so none
//! waits for another one, and none locks more than it writes.

mod admin;
mod claim;
mod counts;
mod extend;
mod finish;
mod insert;
mod keys;
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
use sqlx::MySqlConnection;

pub(super) use self::keys::KnownTurns;
use super::{MySql, MySqlTx};
use crate::names::Names;

/// How many rows one statement names. From 1,000 on, MariaDB would make a table of such a list.
const AT_ONCE: usize = 500;

/// In front of statements that may wait for a row whose owner may be waiting for them: they give up soon.
const WAIT_BRIEFLY: &str = "SET @polybus_lock_wait = @@SESSION.innodb_lock_wait_timeout, \
    SESSION innodb_lock_wait_timeout = 2; \
    SET TRANSACTION ISOLATION LEVEL READ COMMITTED; START TRANSACTION READ WRITE; ";
const WAIT_AS_BEFORE: &str = "SET SESSION innodb_lock_wait_timeout = @polybus_lock_wait";

/// The statements of jobs.
#[derive(Debug)]
pub(super) struct JobSql {
    insert: insert::InsertSql,
    keys: keys::KeySql,
    claim: claim::ClaimSql,
    settle: settle::SettleSql,
    extend: extend::ExtendSql,
    moved: moved::MovedSql,
    schedules: schedules::SchedulesSql,
    counts: counts::CountsSql,
    admin: admin::AdminSql,
    upkeep: upkeep::UpkeepSql,
    finish: finish::FinishSql,
}

impl JobSql {
    pub(super) fn new(names: &Names) -> Self {
        Self {
            insert: insert::InsertSql::new(names),
            keys: keys::KeySql::new(names),
            claim: claim::ClaimSql::new(names),
            settle: settle::SettleSql::new(names),
            extend: extend::ExtendSql::new(names),
            moved: moved::MovedSql::new(names),
            schedules: schedules::SchedulesSql::new(names),
            counts: counts::CountsSql::new(names),
            admin: admin::AdminSql::new(names),
            upkeep: upkeep::UpkeepSql::new(names),
            finish: finish::FinishSql::new(names),
        }
    }
}

impl JobStore for MySql {
    async fn insert_jobs(&self, conn: &mut MySqlConnection, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
        insert::insert_jobs(self, conn, jobs).await
    }

    /// Two round trips: BEGIN, and the move with the limits.
    async fn begin_finished(&self, claim: &JobClaim, limits: &TransactionLimits) -> Result<Option<MySqlTx>> {
        finish::begin(self, claim, limits).await
    }

    async fn keep_result(&self, conn: &mut MySqlConnection, claim: &JobClaim, result: &str) -> Result<()> {
        finish::keep_result(self, conn, claim, result).await
    }

    async fn is_finished(&self, conn: &mut MySqlConnection, claim: &JobClaim) -> Result<bool> {
        finish::is_finished(self, conn, claim).await
    }

    /// The savepoint in front of it is gone with the transaction.
    fn commit_proves_finish(_tx: &MySqlTx) -> bool {
        true
    }

    fn jobs(&self) -> Arc<dyn JobTable> {
        Arc::new(Jobs(self.clone()))
    }

    fn schedules(&self) -> Arc<dyn ScheduleTable> {
        Arc::new(schedules::ScheduleRows(self.clone()))
    }
}

struct Jobs(MySql);

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
