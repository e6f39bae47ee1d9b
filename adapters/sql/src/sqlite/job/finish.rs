//! Finishes a job in its handler's transaction.

use polybus_core::Result;
use polybus_patterns::store::{JobClaim, JobOutcome};
use sqlx::SqliteConnection;

use super::{
    super::{Sqlite, SqliteTx, reading, write_queue::Turn},
    moved::move_done,
};

statements! {
    FinishSql {
        is_mine = "SELECT EXISTS (
            SELECT 1 FROM {job} WHERE id = ?1 AND attempt = ?2 AND locked_by = ?3 AND state = 2)";
        keep = "UPDATE {job_done} SET result = ?3 WHERE id = ?1 AND attempt = ?2";
        is_finished = "SELECT EXISTS (SELECT 1 FROM {job_done} WHERE id = ?1 AND attempt = ?2)";
    }
}

pub(super) async fn begin(store: &Sqlite, claim: &JobClaim) -> Result<Option<SqliteTx>> {
    const OPERATION: &str = "job.begin_finished";
    let sql = store.statements()?;
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let is_mine = sqlx::query_scalar(sql.job.finish.is_mine.clone())
        .bind(claim.id)
        .bind(i64::from(claim.attempt))
        .bind(&claim.worker[..]);
    if !is_mine.fetch_one(&mut *tx).await.map_err(reading(OPERATION))? {
        tx.rollback().await?;
        return Ok(None);
    }
    move_done(store, &mut tx, OPERATION, &[claim.id], JobOutcome::Completed, None, None).await?;
    Ok(Some(tx))
}

pub(super) async fn keep_result(
    store: &Sqlite,
    conn: &mut SqliteConnection,
    claim: &JobClaim,
    result: &str,
) -> Result<()> {
    let sql = store.statements()?;
    let keep = sqlx::query(sql.job.finish.keep.clone()).bind(claim.id).bind(i64::from(claim.attempt)).bind(result);
    keep.execute(conn).await.map(drop).map_err(reading("job.keep_result"))
}

pub(super) async fn is_finished(store: &Sqlite, conn: &mut SqliteConnection, claim: &JobClaim) -> Result<bool> {
    let sql = store.statements()?;
    let is_finished =
        sqlx::query_scalar(sql.job.finish.is_finished.clone()).bind(claim.id).bind(i64::from(claim.attempt));
    is_finished.fetch_one(conn).await.map_err(reading("job.is_finished"))
}
