//! Jobs as the administration sees them.

use bytes::Bytes;
use polybus_core::Result;
use polybus_patterns::store::{JobFilter, JobOutcome, JobState, StoredJob};
use sqlx::{
    Row, SqlStr, Sqlite as Client, SqliteConnection,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::{
    super::{Sqlite, outbox_read::json_numbers, reading, write_queue::Turn},
    moved::move_done,
};
use crate::{
    job_filter::{StateValue, completed_only, retries_completed, state_of},
    text::stored_text,
};

statements! {
    AdminSql {
        list_jobs = "SELECT id, queue, kind, state, priority, attempt, max_attempts, head, data, schedule, progress, note,
                cancelled, last_error, NULL AS result, created_at, run_at, locked_until, NULL AS finished_at
            FROM {job}
            WHERE (?1 IS NULL OR id IN (SELECT value FROM json_each(?1))) AND (?2 IS NULL OR queue = ?2)
                AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR schedule = ?4)
                AND (?5 IS NULL OR substr(last_error, 1, length(?5)) = ?5) AND (?6 IS NULL OR state = ?6)
                AND id > ?7
            ORDER BY id LIMIT ?8";
        list_done = "SELECT id, queue, kind, outcome, priority, attempt, max_attempts, head, data, schedule, progress,
                note, 0 AS cancelled, last_error, result, created_at, run_at, NULL AS locked_until, finished_at
            FROM {job_done}
            WHERE (?1 IS NULL OR id IN (SELECT value FROM json_each(?1))) AND (?2 IS NULL OR queue = ?2)
                AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR schedule = ?4)
                AND (?5 IS NULL OR substr(last_error, 1, length(?5)) = ?5) AND (?6 IS NULL OR outcome = ?6)
                AND id > ?7
            ORDER BY id LIMIT ?8";
        ids_in_states = "SELECT id FROM {job}
            WHERE (?1 IS NULL OR id IN (SELECT value FROM json_each(?1))) AND (?2 IS NULL OR queue = ?2)
                AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR schedule = ?4)
                AND (?5 IS NULL OR substr(last_error, 1, length(?5)) = ?5) AND (?6 IS NULL OR state = ?6)
                AND state IN (SELECT value FROM json_each(?7))";
        now_available = "UPDATE {job} SET state = 0, run_at = {now} WHERE id IN (SELECT value FROM json_each(?1))";
        put_back = "INSERT INTO {job}
                (id, queue, kind, state, priority, run_at, attempt, max_attempts, unique_key, unique_until, schedule,
                last_error, created_at, head, data)
            SELECT id, queue, kind, 0, priority, {now}, 0, max_attempts, unique_key, unique_until, schedule, last_error,
                created_at, head, data
            FROM {job_done}
            WHERE (?1 IS NULL OR id IN (SELECT value FROM json_each(?1))) AND (?2 IS NULL OR queue = ?2)
                AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR schedule = ?4)
                AND (?5 IS NULL OR substr(last_error, 1, length(?5)) = ?5) AND (?6 IS NULL OR outcome = ?6)
                AND (?7 OR outcome <> 0)
            ORDER BY id
            ON CONFLICT (unique_key) DO NOTHING RETURNING id";
        remove_done = "DELETE FROM {job_done} WHERE id IN (SELECT value FROM json_each(?1))";
        tell_cancelled = "UPDATE {job} SET cancelled = 1 WHERE id IN (SELECT value FROM json_each(?1))";
        discard_completed = "UPDATE {job_done} SET outcome = 1, last_error = ?7
            WHERE outcome = 0 AND (?1 IS NULL OR id IN (SELECT value FROM json_each(?1))) AND (?2 IS NULL OR queue = ?2)
                AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR schedule = ?4)
                AND (?5 IS NULL OR substr(last_error, 1, length(?5)) = ?5) AND (?6 IS NULL OR outcome = ?6)";
        delete = "DELETE FROM {job_done}
            WHERE (?1 IS NULL OR id IN (SELECT value FROM json_each(?1))) AND (?2 IS NULL OR queue = ?2)
                AND (?3 IS NULL OR kind = ?3) AND (?4 IS NULL OR schedule = ?4)
                AND (?5 IS NULL OR substr(last_error, 1, length(?5)) = ?5) AND (?6 IS NULL OR outcome = ?6)";
    }
}

type Statement<'q> = Query<'q, Client, SqliteArguments>;

/// The conditions, in the order of the placeholders.
fn filtered<'q>(sql: &SqlStr, filter: &'q JobFilter, state: Option<i16>) -> Statement<'q> {
    sqlx::query(sql.clone())
        .bind(filter.ids.as_deref().map(json_numbers))
        .bind(filter.queue.as_deref())
        .bind(filter.kind.as_deref())
        .bind(filter.schedule.as_deref())
        .bind(filter.error.as_deref())
        .bind(state)
}

fn stored(row: &SqliteRow, state: impl Fn(i16) -> JobState) -> Result<StoredJob, sqlx::Error> {
    let number = |n: i64| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(StoredJob {
        id: row.try_get(0)?,
        queue: row.try_get(1)?,
        kind: row.try_get(2)?,
        state: state(row.try_get(3)?),
        priority: row.try_get(4)?,
        attempt: number(row.try_get(5)?),
        max_attempts: number(row.try_get(6)?),
        head: row.try_get(7)?,
        data: Bytes::from(row.try_get::<Vec<u8>, _>(8)?),
        schedule: row.try_get(9)?,
        progress: row.try_get(10)?,
        note: row.try_get(11)?,
        cancelled: row.try_get::<i64, _>(12)? != 0,
        last_error: row.try_get(13)?,
        result: row.try_get(14)?,
        created_at: row.try_get(15)?,
        run_at: row.try_get(16)?,
        locked_until: row.try_get(17)?,
        finished_at: row.try_get(18)?,
    })
}

pub(super) async fn list(store: &Sqlite, filter: &JobFilter, after: i64, limit: u32) -> Result<Vec<StoredJob>> {
    const OPERATION: &str = "job.list";
    let sql = store.statements()?;
    let mut conn = store.reader(OPERATION).await?;
    let mut jobs = Vec::new();
    // The waiting ones first: one that is finished in between is then there twice, and not missed.
    if let Some(state) = StateValue::of_waiting(filter).value() {
        let list = filtered(&sql.job.admin.list_jobs, filter, state).bind(after).bind(limit);
        let rows = list.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
        let stored = rows.iter().map(|row| stored(row, state_of)).collect::<Result<Vec<_>, _>>();
        jobs = stored.map_err(reading(OPERATION))?;
    }
    if let Some(outcome) = StateValue::of_finished(filter).value() {
        let list = filtered(&sql.job.admin.list_done, filter, outcome).bind(after).bind(limit);
        let rows = list.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
        let state = |number| JobState::Finished(JobOutcome::of_number(number));
        let stored = rows.iter().map(|row| stored(row, state)).collect::<Result<Vec<_>, _>>();
        jobs.extend(stored.map_err(reading(OPERATION))?);
    }
    // Of one that is there twice, the finished one is the truth.
    jobs.sort_by_key(|job| (job.id, job.finished_at.is_none()));
    jobs.dedup_by_key(|job| job.id);
    jobs.truncate(limit as usize);
    Ok(jobs)
}

/// The jobs in these states that the filter names.
async fn in_states(
    store: &Sqlite,
    conn: &mut SqliteConnection,
    operation: &'static str,
    filter: &JobFilter,
    states: &[i64],
) -> Result<Vec<i64>> {
    let Some(state) = StateValue::of_waiting(filter).value() else { return Ok(Vec::new()) };
    let sql = store.statements()?;
    let ids = filtered(&sql.job.admin.ids_in_states, filter, state).bind(json_numbers(states));
    let rows = ids.fetch_all(conn).await.map_err(reading(operation))?;
    rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(reading(operation))
}

pub(super) async fn retry(store: &Sqlite, filter: &JobFilter) -> Result<u64> {
    const OPERATION: &str = "job.retry";
    let sql = store.statements()?;
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let scheduled = in_states(store, &mut tx, OPERATION, filter, &[1]).await?;
    let available = sqlx::query(sql.job.admin.now_available.clone()).bind(json_numbers(&scheduled));
    available.execute(&mut *tx).await.map_err(reading(OPERATION))?;
    let mut retried = scheduled.len();
    if let Some(outcome) = StateValue::of_finished(filter).value() {
        let put_back = filtered(&sql.job.admin.put_back, filter, outcome).bind(retries_completed(filter));
        let rows = put_back.fetch_all(&mut *tx).await.map_err(reading(OPERATION))?;
        let ids: Result<Vec<i64>, _> = rows.iter().map(|row| row.try_get(0)).collect();
        let ids = ids.map_err(reading(OPERATION))?;
        let remove = sqlx::query(sql.job.admin.remove_done.clone()).bind(json_numbers(&ids));
        remove.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        retried += ids.len();
    }
    tx.commit().await?;
    Ok(retried as u64)
}

pub(super) async fn cancel(store: &Sqlite, filter: &JobFilter) -> Result<u64> {
    const OPERATION: &str = "job.cancel";
    let sql = store.statements()?;
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let waiting = in_states(store, &mut tx, OPERATION, filter, &[0, 1]).await?;
    move_done(store, &mut tx, OPERATION, &waiting, JobOutcome::Cancelled, None, None).await?;
    let running = in_states(store, &mut tx, OPERATION, filter, &[2]).await?;
    let tell = sqlx::query(sql.job.admin.tell_cancelled.clone()).bind(json_numbers(&running));
    tell.execute(&mut *tx).await.map_err(reading(OPERATION))?;
    tx.commit().await?;
    Ok((waiting.len() + running.len()) as u64)
}

pub(super) async fn discard(store: &Sqlite, filter: &JobFilter, error: &str) -> Result<u64> {
    const OPERATION: &str = "job.discard";
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let waiting = in_states(store, &mut tx, OPERATION, filter, &[0, 1]).await?;
    let error = stored_text(error);
    move_done(store, &mut tx, OPERATION, &waiting, JobOutcome::Discarded, Some(&error), None).await?;
    let mut discarded = waiting.len() as u64;
    if let Some(outcome) = completed_only(filter) {
        let sql = store.statements()?;
        let completed = filtered(&sql.job.admin.discard_completed, filter, Some(outcome)).bind(&*error);
        discarded += completed.execute(&mut *tx).await.map_err(reading(OPERATION))?.rows_affected();
    }
    tx.commit().await?;
    Ok(discarded)
}

pub(super) async fn delete(store: &Sqlite, filter: &JobFilter) -> Result<u64> {
    const OPERATION: &str = "job.delete";
    let Some(outcome) = StateValue::of_finished(filter).value() else { return Ok(0) };
    let sql = store.statements()?;
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let delete = filtered(&sql.job.admin.delete, filter, outcome);
    let done = delete.execute(&mut *tx).await.map_err(reading(OPERATION))?;
    tx.commit().await?;
    Ok(done.rows_affected())
}
