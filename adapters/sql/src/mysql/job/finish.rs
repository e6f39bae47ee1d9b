//! The end of a run in the transaction of its handler.

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{JobClaim, TransactionLimits};
use sqlx::MySqlConnection;

use super::super::{
    MySql, MySqlTx, SYSTEM,
    control_conn::Again,
    inbox::ended_by_a_limit,
    literals::{Value, fill},
    reading, reading_or_committing,
};

statements! {
    FinishSql {
        // Behind the settings of the transaction. The first one locks the row.
        finish = "@polybus_at = 0;
            SELECT id FROM {job} FORCE INDEX (PRIMARY)
                WHERE id = ?1 AND attempt = ?2 AND locked_by = ?3 AND state = 2 FOR UPDATE;
            INSERT INTO {job_done} (id, queue, kind, outcome, priority, run_at, attempt, max_attempts, unique_key,
                unique_until, schedule, progress, note, last_error, created_at, finished_at, head, data)
            SELECT id, queue, kind, 0, priority, run_at, attempt, max_attempts, unique_key, unique_until, schedule,
                progress, note, last_error, created_at, {now}, head, data
            FROM {job} FORCE INDEX (PRIMARY) WHERE id = ?1 AND attempt = ?2 AND locked_by = ?3 AND state = 2;
            DELETE FROM {job} WHERE id = ?1 AND attempt = ?2 AND locked_by = ?3 AND state = 2";
        keep = "UPDATE {job_done} SET result = ? WHERE id = ? AND attempt = ?";
        is_finished = "SELECT COUNT(*) FROM {job_done} WHERE id = ? AND attempt = ?";
    }
}

/// Two round trips: BEGIN, and the move with the limits.
pub(super) async fn begin(store: &MySql, claim: &JobClaim, limits: &TransactionLimits) -> Result<Option<MySqlTx>> {
    const OPERATION: &str = "job.finish";
    let sql = store.statements().await?;
    let is_mariadb = store.server().await?.is_mariadb;
    let values = [claim.id.into(), i64::from(claim.attempt).into(), Value::Bytes(&claim.worker)];
    let finish = fill(sql.job.finish.finish.as_str(), &values);
    let mut again = Again::default();
    loop {
        let mut tx = store.begin().await?;
        match tx.begin_by(&finish, limits, is_mariadb).await {
            // The copy, and the row that is gone.
            Ok(2) => return Ok(Some(tx)),
            Ok(_) => {
                tx.rollback().await?;
                return Ok(None);
            }
            Err(error) => {
                let error = match ended_by_a_limit(&error) {
                    true => Error::new(ErrorKind::Unavailable, "another transaction holds the job for too long")
                        .of_driver(SYSTEM, OPERATION)
                        .with_context("contention", "job")
                        .with_source(error),
                    false => reading(OPERATION)(error),
                };
                tx.rollback().await?;
                if !again.after(&error).await {
                    return Err(error);
                }
            }
        }
    }
}

pub(super) async fn keep_result(
    store: &MySql,
    conn: &mut MySqlConnection,
    claim: &JobClaim,
    result: &str,
) -> Result<()> {
    let sql = store.statements().await?;
    let failed = reading_or_committing(conn, "job.keep_result");
    let keep = sqlx::query(sql.job.finish.keep.clone()).bind(result.as_bytes()).bind(claim.id).bind(claim.attempt);
    keep.execute(conn).await.map(drop).map_err(failed)
}

pub(super) async fn is_finished(store: &MySql, conn: &mut MySqlConnection, claim: &JobClaim) -> Result<bool> {
    let sql = store.statements().await?;
    let finished = sqlx::query_scalar(sql.job.finish.is_finished.clone()).bind(claim.id).bind(claim.attempt);
    let finished: i64 = finished.fetch_one(conn).await.map_err(reading("job.is_finished"))?;
    Ok(finished > 0)
}
