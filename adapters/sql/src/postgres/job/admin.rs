//! What people do to jobs.
//!
//! Each is done twice where rows are held by others: first to those that are free, and then, waiting, to the rest. One
//! job whose handler has a long transaction would else keep the others locked, or from being done at all.

use polybus_core::Result;
use polybus_patterns::store::JobFilter;
use sqlx::SqlStr;

use super::{
    super::{Postgres, reading},
    extend::limit_waits,
    kept,
    list::FilterColumns,
};
use crate::{
    job_filter::{completed_only, retries_completed},
    text::stored_text,
};

/// Rows of the table of jobs that a filter names. The states are 0 to 2, and −1 for one that no row here has.
macro_rules! job_filter {
    () => {
        "($1::bigint[] IS NULL OR j.id = ANY ($1)) AND ($2::text IS NULL OR j.queue = $2)
                AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.schedule = $4)
                AND ($5::text IS NULL OR starts_with(j.last_error, $5)) AND ($6::smallint IS NULL OR j.state = $6)"
    };
}

/// Rows of the table of finished jobs that a filter names. An outcome of a newer polybus counts as discarded.
macro_rules! done_filter {
    () => {
        "($1::bigint[] IS NULL OR j.id = ANY ($1)) AND ($2::text IS NULL OR j.queue = $2)
                AND ($3::text IS NULL OR j.kind = $3) AND ($4::text IS NULL OR j.schedule = $4)
                AND ($5::text IS NULL OR starts_with(j.last_error, $5))
                AND ($6::smallint IS NULL OR CASE j.outcome WHEN 0 THEN 0 WHEN 2 THEN 2 ELSE 1 END = $6)"
    };
}
pub(super) use {done_filter, job_filter};

/// The columns that a job has again when it is retried.
macro_rules! kept_but_time {
    () => {
        "id, queue, kind, priority, max_attempts, unique_key, unique_until, schedule, created_at, head, data"
    };
}

/// A statement that leaves rows alone that others hold, and the same one waiting for them.
macro_rules! both {
    ($name:ident { $($field:ident, $waiting:ident = [$($before:expr),*] lock [$($after:expr),*];)* }) => {
        statements! {
            $name { $(
                $field = concat!($($before,)* "FOR UPDATE OF j SKIP LOCKED", $($after),*);
                $waiting = concat!($($before,)* "FOR UPDATE OF j", $($after),*);
            )* }
        }
    };
}

both! {
    AdminSql {
        now, now_waiting = ["WITH picked AS MATERIALIZED (
                SELECT j.id FROM {job} j WHERE j.state = 1 AND ", job_filter!(), " ORDER BY j.id "] lock [")
            UPDATE {job} j SET state = 0, run_at = {now} FROM picked p WHERE j.id = p.id"];
        // A row leaves the finished ones only where its key was free. Keys are locked in their order.
        again, again_waiting = ["WITH picked AS MATERIALIZED (
                SELECT j.* FROM {job_done} j
                WHERE ($7::bool OR j.outcome <> 0) AND ", done_filter!(), " ORDER BY j.id "] lock ["),
            made AS (
                INSERT INTO {job} (", kept_but_time!(), ", last_error, state, run_at) OVERRIDING SYSTEM VALUE
                SELECT ", kept_but_time!(), ", last_error, 0, {now} FROM picked
                ORDER BY unique_key NULLS FIRST, id ON CONFLICT (unique_key) DO NOTHING RETURNING id)
            DELETE FROM {job_done} j USING made m WHERE j.id = m.id"];
        cancel, cancel_waiting = ["WITH picked AS MATERIALIZED (
                SELECT j.id, j.state FROM {job} j
                WHERE j.cancelled = 0 AND ", job_filter!(), " ORDER BY j.id "] lock ["),
            gone AS (DELETE FROM {job} j USING picked p WHERE j.id = p.id AND p.state <> 2 RETURNING j.*),
            done AS (
                INSERT INTO {job_done} (", kept!(), ", attempt, progress, note, outcome, last_error, finished_at)
                SELECT ", kept!(), ", attempt, progress, note, 2, last_error, {now} FROM gone RETURNING 1),
            told AS (UPDATE {job} j SET cancelled = 1 FROM picked p WHERE j.id = p.id AND p.state = 2 RETURNING 1)
            SELECT 1 FROM done UNION ALL SELECT 1 FROM told"];
        discard, discard_waiting = ["WITH picked AS MATERIALIZED (
                SELECT j.id FROM {job} j WHERE j.state <> 2 AND ", job_filter!(), " ORDER BY j.id "] lock ["),
            gone AS (DELETE FROM {job} j USING picked p WHERE j.id = p.id RETURNING j.*)
            INSERT INTO {job_done} (", kept!(), ", attempt, progress, note, outcome, last_error, finished_at)
            SELECT ", kept!(), ", attempt, progress, note, 1, $7::text, {now} FROM gone"];
        undo, undo_waiting = ["WITH picked AS MATERIALIZED (
                SELECT j.id FROM {job_done} j WHERE j.outcome = 0 AND ", done_filter!(), " ORDER BY j.id "] lock [")
            UPDATE {job_done} j SET outcome = 1, last_error = $7::text FROM picked p WHERE j.id = p.id"];
        delete, delete_waiting = ["WITH picked AS MATERIALIZED (
                SELECT j.id FROM {job_done} j WHERE ", done_filter!(), " ORDER BY j.id "] lock [")
            DELETE FROM {job_done} j USING picked p WHERE j.id = p.id"];
    }
}

/// Which table's state the filter's is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Waiting,
    Finished,
}

/// A value beside those of the filter.
#[derive(Clone, Copy)]
enum Extra<'a> {
    None,
    Flag(bool),
    Text(&'a str),
}

/// Runs a statement on the rows that are free, and then on the others. Answers how many there were.
async fn twice(
    store: &Postgres,
    operation: &'static str,
    [free, waiting]: [&SqlStr; 2],
    filter: &JobFilter,
    table: Table,
    extra: Extra<'_>,
) -> Result<u64> {
    let columns = FilterColumns::of(filter);
    let nothing = if table == Table::Waiting { columns.job_state } else { columns.outcome } == Some(-1);
    if nothing {
        return Ok(0);
    }
    let bind = |statement: &SqlStr| {
        let query = columns.bind(statement, table == Table::Finished);
        match extra {
            Extra::None => query,
            Extra::Flag(flag) => query.bind(flag),
            Extra::Text(text) => query.bind(text.to_owned()),
        }
    };
    let mut conn = store.control_conn(operation).await?;
    let done = bind(free).execute(&mut *conn).await.map_err(conn.committing())?;
    drop(conn);
    let (mut tx, _place) = store.control_begin(operation).await?;
    limit_waits(&mut tx).await.map_err(reading(operation))?;
    let rest = bind(waiting).execute(&mut *tx).await.map_err(reading(operation))?;
    tx.commit().await?;
    Ok(done.rows_affected() + rest.rows_affected())
}

pub(super) async fn retry(store: &Postgres, filter: &JobFilter) -> Result<u64> {
    const OPERATION: &str = "job.retry";
    let sql = store.statements().await?;
    let (admin, completed) = (&sql.job.admin, Extra::Flag(retries_completed(filter)));
    let waiting = [&admin.now, &admin.now_waiting];
    let retried = twice(store, OPERATION, waiting, filter, Table::Waiting, Extra::None).await?;
    let finished = [&admin.again, &admin.again_waiting];
    Ok(retried + twice(store, OPERATION, finished, filter, Table::Finished, completed).await?)
}

pub(super) async fn cancel(store: &Postgres, filter: &JobFilter) -> Result<u64> {
    let sql = store.statements().await?;
    let statements = [&sql.job.admin.cancel, &sql.job.admin.cancel_waiting];
    twice(store, "job.cancel", statements, filter, Table::Waiting, Extra::None).await
}

pub(super) async fn discard(store: &Postgres, filter: &JobFilter, error: &str) -> Result<u64> {
    let sql = store.statements().await?;
    let error = stored_text(error);
    if completed_only(filter).is_some() {
        let statements = [&sql.job.admin.undo, &sql.job.admin.undo_waiting];
        return twice(store, "job.discard", statements, filter, Table::Finished, Extra::Text(&error)).await;
    }
    let statements = [&sql.job.admin.discard, &sql.job.admin.discard_waiting];
    twice(store, "job.discard", statements, filter, Table::Waiting, Extra::Text(&error)).await
}

pub(super) async fn delete(store: &Postgres, filter: &JobFilter) -> Result<u64> {
    let sql = store.statements().await?;
    let statements = [&sql.job.admin.delete, &sql.job.admin.delete_waiting];
    twice(store, "job.delete", statements, filter, Table::Finished, Extra::None).await
}
