//! The end of a run in the transaction of its handler.

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{JobClaim, TransactionLimits};
use sqlx::PgConnection;

use super::{
    super::{Postgres, PostgresTx, SYSTEM, inbox::ended_by_a_limit, reading, reading_or_committing},
    attempt_column, kept,
};
use crate::text::without_nul;

statements! {
    FinishSql {
        // BEGIN limits the wait for locks, and what this returns puts the session's own limit back.
        finish = concat!("WITH gone AS (
                DELETE FROM {job} WHERE id = $1 AND attempt = $2 AND locked_by = $3 RETURNING *),
            done AS (
                INSERT INTO {job_done} (", kept!(), ", attempt, progress, note, outcome, last_error, finished_at)
                SELECT ", kept!(), ", attempt, progress, note, 0, last_error, {now} FROM gone
                RETURNING 1)
            SELECT pg_backend_pid(), (extract(epoch FROM now()) * 1000000)::bigint,
                set_config('lock_timeout', $4, true)
            FROM done");
        keep = "UPDATE {job_done} SET result = $3 WHERE id = $1 AND attempt = $2";
        is_finished = "SELECT EXISTS (SELECT 1 FROM {job_done} WHERE id = $1 AND attempt = $2)";
    }
}

pub(super) async fn begin(
    store: &Postgres,
    claim: &JobClaim,
    limits: &TransactionLimits,
) -> Result<Option<PostgresTx>> {
    const OPERATION: &str = "job.finish";
    let (sql, lock_timeout) = (store.statements().await?, store.lock_timeout().await?);
    let mut tx = store.begin_with(Some(limits)).await?;
    let finish = sqlx::query_as(sql.job.finish.finish.clone())
        .bind(claim.id)
        .bind(attempt_column(claim.attempt))
        .bind(&claim.worker[..])
        .bind(lock_timeout);
    let finished: Option<(i32, i64, String)> = finish.fetch_optional(&mut *tx).await.map_err(|error| {
        if !ended_by_a_limit(&error) {
            return reading(OPERATION)(error);
        }
        Error::new(ErrorKind::Unavailable, "another transaction holds the job for longer than this one may wait")
            .of_driver(SYSTEM, OPERATION)
            .with_context("contention", "job")
            .with_source(error)
    })?;
    let Some((pid, started_at, _)) = finished else {
        tx.rollback().await?;
        return Ok(None);
    };
    tx.has_written();
    tx.cancel_on_drop(pid, started_at);
    Ok(Some(tx))
}

pub(super) async fn keep_result(
    store: &Postgres,
    conn: &mut PgConnection,
    claim: &JobClaim,
    result: &str,
) -> Result<()> {
    let sql = store.statements().await?;
    let failed = reading_or_committing(conn, "job.keep_result");
    let keep = sqlx::query(sql.job.finish.keep.clone())
        .bind(claim.id)
        .bind(attempt_column(claim.attempt))
        .bind(without_nul(result));
    keep.execute(conn).await.map(drop).map_err(failed)
}

pub(super) async fn is_finished(store: &Postgres, conn: &mut PgConnection, claim: &JobClaim) -> Result<bool> {
    let sql = store.statements().await?;
    let select = sqlx::query_scalar(sql.job.finish.is_finished.clone());
    let select = select.bind(claim.id).bind(attempt_column(claim.attempt));
    select.fetch_one(conn).await.map_err(reading("job.is_finished"))
}
