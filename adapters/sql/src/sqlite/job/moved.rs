//! Moves jobs to the finished ones.

use polybus_core::Result;
use polybus_patterns::store::JobOutcome;
use sqlx::SqliteConnection;

use super::super::{Sqlite, outbox_read::json_numbers, reading};

statements! {
    MovedSql {
        insert = "INSERT INTO {job_done}
                (id, queue, kind, outcome, priority, run_at, attempt, max_attempts, unique_key, unique_until, schedule,
                progress, note, last_error, result, created_at, finished_at, head, data)
            SELECT id, queue, kind, ?2, priority, run_at, attempt, max_attempts, unique_key, unique_until, schedule,
                progress, note, COALESCE(?3, last_error), ?4, created_at, {now}, head, data
            FROM {job} WHERE id IN (SELECT value FROM json_each(?1))";
        delete = "DELETE FROM {job} WHERE id IN (SELECT value FROM json_each(?1))";
    }
}

/// Moves these jobs with one outcome, error and result.
pub(super) async fn move_done(
    store: &Sqlite,
    conn: &mut SqliteConnection,
    operation: &'static str,
    ids: &[i64],
    outcome: JobOutcome,
    error: Option<&str>,
    result: Option<&str>,
) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let (sql, ids) = (store.statements()?, json_numbers(ids));
    let insert = sqlx::query(sql.job.moved.insert.clone()).bind(&ids).bind(outcome.number()).bind(error).bind(result);
    insert.execute(&mut *conn).await.map_err(reading(operation))?;
    let delete = sqlx::query(sql.job.moved.delete.clone()).bind(&ids);
    delete.execute(&mut *conn).await.map_err(reading(operation))?;
    Ok(())
}
