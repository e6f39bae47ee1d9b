//! Jobs as people see them.

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{JobFilter, JobOutcome, JobState, StoredJob};
use sqlx::{Row, SqlStr, postgres::PgArguments, postgres::PgRow, query::Query};

use super::{
    super::Postgres,
    admin::{done_filter, job_filter},
};
use crate::job_filter::{StateValue, state_of};

statements! {
    ListSql {
        waiting = concat!("SELECT id, queue, kind, state, priority, attempt, max_attempts, head, data, schedule, progress,
                note, cancelled, last_error, NULL::text AS result, created_at, run_at, locked_until,
                NULL::bigint AS finished_at
            FROM {job} j WHERE ", job_filter!(), " AND id > $7 ORDER BY id LIMIT $8::bigint");
        done = concat!("SELECT id, queue, kind, outcome, priority, attempt, max_attempts, head, data, schedule, progress,
                note, 0::smallint AS cancelled, last_error, result, created_at, run_at, NULL::bigint AS locked_until,
                finished_at
            FROM {job_done} j WHERE ", done_filter!(), " AND id > $7 ORDER BY id LIMIT $8::bigint");
    }
}

/// A filter as values of a statement.
#[derive(Clone, Copy)]
pub(super) struct FilterColumns<'a> {
    filter: &'a JobFilter,
    /// The state of jobs that are not finished; −1 for none of them.
    pub(super) job_state: Option<i16>,
    /// The outcome of finished jobs; −1 for none of them.
    pub(super) outcome: Option<i16>,
}

impl<'a> FilterColumns<'a> {
    pub(super) fn of(filter: &'a JobFilter) -> Self {
        let column = |state: StateValue| state.value().unwrap_or(Some(-1));
        let (waiting, finished) = (StateValue::of_waiting(filter), StateValue::of_finished(filter));
        Self { filter, job_state: column(waiting), outcome: column(finished) }
    }

    /// A statement with the conditions bound, on jobs that are not finished or on finished ones.
    pub(super) fn bind(&self, sql: &SqlStr, finished: bool) -> Query<'a, sqlx::Postgres, PgArguments> {
        sqlx::query(sql.clone())
            .bind(self.filter.ids.as_deref())
            .bind(self.filter.queue.as_deref())
            .bind(self.filter.kind.as_deref())
            .bind(self.filter.schedule.as_deref())
            .bind(self.filter.error.as_deref())
            .bind(if finished { self.outcome } else { self.job_state })
    }
}

fn stored(row: &PgRow, state: impl Fn(i16) -> JobState) -> Result<StoredJob, sqlx::Error> {
    Ok(StoredJob {
        id: row.try_get(0)?,
        queue: row.try_get(1)?,
        kind: row.try_get(2)?,
        state: state(row.try_get(3)?),
        priority: row.try_get(4)?,
        attempt: row.try_get::<i32, _>(5)?.unsigned_abs(),
        max_attempts: row.try_get::<i32, _>(6)?.unsigned_abs(),
        head: row.try_get(7)?,
        data: Bytes::from(row.try_get::<Vec<u8>, _>(8)?),
        schedule: row.try_get(9)?,
        progress: row.try_get(10)?,
        note: row.try_get(11)?,
        cancelled: row.try_get::<i16, _>(12)? != 0,
        last_error: row.try_get(13)?,
        result: row.try_get(14)?,
        created_at: row.try_get(15)?,
        run_at: row.try_get(16)?,
        locked_until: row.try_get(17)?,
        finished_at: row.try_get(18)?,
    })
}

pub(super) async fn list(store: &Postgres, filter: &JobFilter, after: i64, limit: u32) -> Result<Vec<StoredJob>> {
    const OPERATION: &str = "job.list";
    let (sql, columns) = (store.statements().await?, FilterColumns::of(filter));
    let mut conn = store.control_conn(OPERATION).await?;
    let mut jobs: Vec<StoredJob> = Vec::new();
    // The waiting ones first: one that is finished in between is then there twice, and not missed.
    for (statement, finished) in [(&sql.job.list.waiting, false), (&sql.job.list.done, true)] {
        let nothing = if finished { columns.outcome } else { columns.job_state } == Some(-1);
        if nothing {
            continue;
        }
        let list = columns.bind(statement, finished).bind(after).bind(i64::from(limit));
        let rows = list.fetch_all(&mut *conn).await.map_err(conn.reading())?;
        let state =
            |number| if finished { JobState::Finished(JobOutcome::of_number(number)) } else { state_of(number) };
        let found = rows.iter().map(|row| stored(row, state)).collect::<Result<Vec<_>, _>>();
        jobs.extend(found.map_err(conn.reading())?);
    }
    // Of one that is there twice, the finished one is the truth.
    jobs.sort_by_key(|job| (job.id, job.finished_at.is_none()));
    jobs.dedup_by_key(|job| job.id);
    jobs.truncate(limit as usize);
    Ok(jobs)
}
