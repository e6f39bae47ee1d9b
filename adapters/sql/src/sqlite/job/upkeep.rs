//! Jobs whose time has come, jobs whose worker was lost, and old rows.

use std::time::Duration;

use polybus_core::Result;
use polybus_patterns::store::{DueRows, JobOutcome, RescuedJobs, micros};

use super::{
    super::{Sqlite, outbox_read::json_numbers, reading, write_queue::Turn},
    moved::move_done,
};
use crate::text::stored_text;

statements! {
    UpkeepSql {
        // An end further ahead than its own term, and a minute, is one from before the clock was set back.
        lost = "SELECT id, attempt >= max_attempts, cancelled <> 0 FROM {job}
            WHERE state = 2 AND (locked_until <= {now} OR locked_until > {now} + term + 60000000) LIMIT ?1";
        free = "UPDATE {job} SET state = 0, last_error = ?2, locked_by = NULL, locked_until = NULL, term = NULL
            WHERE id IN (SELECT value FROM json_each(?1))";
        next = "SELECT min(run_at) - {now} FROM {job} WHERE state = 1";
        promote = "UPDATE {job} SET state = 0 WHERE id IN (
            SELECT id FROM {job} WHERE state = 1 AND run_at <= {now} ORDER BY run_at LIMIT ?1)";
        old = "SELECT EXISTS (SELECT 1 FROM {job_done} WHERE outcome = 0 AND finished_at < {now} - ?1)
            OR EXISTS (SELECT 1 FROM {job_done} WHERE outcome IN (1, 2) AND finished_at < {now} - ?2)
            OR EXISTS (SELECT 1 FROM {job_unique} WHERE until_at <= {now})";
        prune_completed = "DELETE FROM {job_done} WHERE id IN (
            SELECT id FROM {job_done} WHERE outcome = 0 AND finished_at < {now} - ?1 LIMIT ?2)";
        prune_others = "DELETE FROM {job_done} WHERE id IN (
            SELECT id FROM {job_done} WHERE outcome IN (1, 2) AND finished_at < {now} - ?1 LIMIT ?2)";
        prune_keys = "DELETE FROM {job_unique} WHERE key IN (
            SELECT key FROM {job_unique} WHERE until_at <= {now} LIMIT ?1)";
    }
}

type Lost = (i64, bool, bool);

pub(super) async fn rescue(store: &Sqlite, error: &str, limit: u32) -> Result<RescuedJobs> {
    const OPERATION: &str = "job.rescue";
    let sql = store.statements()?;
    {
        // Most looks find nothing, and need no turn to write.
        let mut conn = store.reader(OPERATION).await?;
        let lost = sqlx::query_as(sql.job.upkeep.lost.clone()).bind(1);
        let lost: Vec<Lost> = lost.fetch_all(&mut *conn).await.map_err(reading(OPERATION))?;
        if lost.is_empty() {
            return Ok(RescuedJobs::default());
        }
    }
    let error = stored_text(error);
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let lost = sqlx::query_as(sql.job.upkeep.lost.clone()).bind(limit);
    let lost: Vec<Lost> = lost.fetch_all(&mut *tx).await.map_err(reading(OPERATION))?;
    let of =
        |wanted: fn(&Lost) -> bool| lost.iter().filter(|lost| wanted(lost)).map(|lost| lost.0).collect::<Vec<i64>>();
    let cancelled = of(|(_, _, cancelled)| *cancelled);
    let discarded = of(|(_, last, cancelled)| *last && !cancelled);
    let again = of(|(_, last, cancelled)| !last && !cancelled);
    move_done(store, &mut tx, OPERATION, &cancelled, JobOutcome::Cancelled, Some(&error), None).await?;
    move_done(store, &mut tx, OPERATION, &discarded, JobOutcome::Discarded, Some(&error), None).await?;
    let free = sqlx::query(sql.job.upkeep.free.clone()).bind(json_numbers(&again)).bind(&error);
    free.execute(&mut *tx).await.map_err(reading(OPERATION))?;
    tx.commit().await?;
    let [again, discarded, cancelled] = [again, discarded, cancelled].map(|ids| ids.len() as u64);
    Ok(RescuedJobs { again, discarded, cancelled })
}

pub(super) async fn promote(store: &Sqlite, limit: u32) -> Result<DueRows> {
    const OPERATION: &str = "job.promote";
    let sql = store.statements()?;
    let next = async || -> Result<Option<i64>> {
        let mut conn = store.reader(OPERATION).await?;
        sqlx::query_scalar(sql.job.upkeep.next.clone()).fetch_one(&mut *conn).await.map_err(reading(OPERATION))
    };
    let mut due = DueRows::default();
    let mut waits = next().await?;
    // Only where a job is due is a turn to write needed.
    if waits.is_some_and(|waits| waits <= 0) {
        let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
        let promote = sqlx::query(sql.job.upkeep.promote.clone()).bind(limit);
        due.moved = promote.execute(&mut *tx).await.map_err(reading(OPERATION))?.rows_affected();
        tx.commit().await?;
        waits = next().await?;
    }
    due.next = waits.map(|waits| Duration::from_micros(u64::try_from(waits).unwrap_or(0)));
    Ok(due)
}

pub(super) async fn prune(store: &Sqlite, completed: Duration, others: Duration, limit: u32) -> Result<u64> {
    const OPERATION: &str = "job.prune";
    let sql = store.statements()?;
    let (completed, others) = (micros(completed), micros(others));
    {
        let mut conn = store.reader(OPERATION).await?;
        let old = sqlx::query_scalar(sql.job.upkeep.old.clone()).bind(completed).bind(others);
        if !old.fetch_one(&mut *conn).await.map_err(reading(OPERATION))? {
            return Ok(0);
        }
    }
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let deletes = [
        sqlx::query(sql.job.upkeep.prune_completed.clone()).bind(completed).bind(limit),
        sqlx::query(sql.job.upkeep.prune_others.clone()).bind(others).bind(limit),
        sqlx::query(sql.job.upkeep.prune_keys.clone()).bind(limit),
    ];
    let mut rows = 0;
    for delete in deletes {
        rows += delete.execute(&mut *tx).await.map_err(reading(OPERATION))?.rows_affected();
    }
    tx.commit().await?;
    Ok(rows)
}
