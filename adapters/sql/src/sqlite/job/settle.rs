//! Ends of runs, and signs of life.

use std::{collections::HashMap, time::Duration};

use polybus_core::Result;
use polybus_patterns::store::{JobClaim, JobEnd, JobEnding, JobExtended, JobOutcome, JobSettled, micros};

use super::{
    super::{Sqlite, reading, write_queue::Turn},
    moved::move_done,
};
use crate::text::stored_text;

statements! {
    SettleSql {
        mine = "SELECT j.id, j.attempt, j.cancelled FROM json_each(?1) r JOIN {job} j ON j.id = r.value ->> 0
            WHERE j.attempt = r.value ->> 1 AND j.locked_by = ?2 AND j.state = 2";
        again = "UPDATE {job}
            SET state = ?2 > 0, run_at = iif(?2 > 0, {now} + ?2, run_at), attempt = attempt - ?3,
                last_error = COALESCE(?4, last_error), locked_by = NULL, locked_until = NULL, term = NULL
            WHERE id = ?1";
        extend = "UPDATE {job} SET locked_until = {now} + ?3, term = ?3
            WHERE state = 2 AND locked_by = ?2
                AND (id, attempt) IN (SELECT value ->> 0, value ->> 1 FROM json_each(?1))
            RETURNING id, attempt, cancelled";
        progress = "UPDATE {job} SET progress = COALESCE(?4, progress), note = COALESCE(?5, note)
            WHERE id = ?1 AND attempt = ?2 AND locked_by = ?3 AND state = 2";
    }
}

fn json_pairs(runs: impl Iterator<Item = (i64, u32)>) -> String {
    let runs: Vec<String> = runs.map(|(id, attempt)| format!("[{id},{attempt}]")).collect();
    format!("[{}]", runs.join(","))
}

/// Which of these are this worker's, and whether they are cancelled.
type Mine = HashMap<(i64, i64), bool>;

fn found(rows: Vec<(i64, i64, i64)>) -> Mine {
    rows.into_iter().map(|(id, attempt, cancelled)| ((id, attempt), cancelled != 0)).collect()
}

pub(super) async fn settle(store: &Sqlite, worker: [u8; 16], endings: &[JobEnding]) -> Result<Vec<JobSettled>> {
    const OPERATION: &str = "job.settle";
    if endings.is_empty() {
        return Ok(Vec::new());
    }
    let sql = store.statements()?;
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let runs = json_pairs(endings.iter().map(|ending| (ending.id, ending.attempt)));
    let mine = sqlx::query_as(sql.job.settle.mine.clone()).bind(runs).bind(&worker[..]);
    let mut mine = found(mine.fetch_all(&mut *tx).await.map_err(reading(OPERATION))?);
    let (mut completed, mut settled) = (Vec::new(), Vec::with_capacity(endings.len()));
    for ending in endings {
        // The second of two ends of one run finds it settled.
        let Some(cancelled) = mine.remove(&(ending.id, i64::from(ending.attempt))) else {
            settled.push(JobSettled::Lost);
            continue;
        };
        settled.push(JobSettled::Written);
        let id = [ending.id];
        match &ending.how {
            JobEnd::Finished { outcome: JobOutcome::Completed, result: None, error: None } => completed.push(ending.id),
            JobEnd::Finished { outcome, result, error } => {
                let error = error.as_deref().map(stored_text);
                move_done(store, &mut tx, OPERATION, &id, *outcome, error.as_deref(), result.as_deref()).await?;
            }
            JobEnd::Again { error, .. } if cancelled => {
                let error = error.as_deref().map(stored_text);
                move_done(store, &mut tx, OPERATION, &id, JobOutcome::Cancelled, error.as_deref(), None).await?;
            }
            JobEnd::Again { delay, counts, error } => {
                let again = sqlx::query(sql.job.settle.again.clone())
                    .bind(ending.id)
                    .bind(micros(*delay))
                    .bind(i64::from(!counts))
                    .bind(error.as_deref().map(stored_text));
                again.execute(&mut *tx).await.map_err(reading(OPERATION))?;
            }
        }
    }
    move_done(store, &mut tx, OPERATION, &completed, JobOutcome::Completed, None, None).await?;
    tx.commit().await?;
    Ok(settled)
}

pub(super) async fn extend(
    store: &Sqlite,
    worker: [u8; 16],
    lease: Duration,
    runs: &[(i64, u32)],
) -> Result<Vec<JobExtended>> {
    const OPERATION: &str = "job.extend";
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let sql = store.statements()?;
    let mut tx = store.begin_in_turn(Turn::Urgent, OPERATION).await?;
    let extend = sqlx::query_as(sql.job.settle.extend.clone())
        .bind(json_pairs(runs.iter().copied()))
        .bind(&worker[..])
        .bind(micros(lease));
    let held = found(extend.fetch_all(&mut *tx).await.map_err(reading(OPERATION))?);
    tx.commit().await?;
    let extended = |(id, attempt): &(i64, u32)| match held.get(&(*id, i64::from(*attempt))) {
        Some(cancelled) => JobExtended::Held { cancelled: *cancelled },
        None => JobExtended::Lost,
    };
    Ok(runs.iter().map(extended).collect())
}

pub(super) async fn progress(
    store: &Sqlite,
    claim: &JobClaim,
    percent: Option<i16>,
    note: Option<&str>,
) -> Result<bool> {
    const OPERATION: &str = "job.progress";
    let sql = store.statements()?;
    let mut tx = store.begin_in_turn(Turn::Normal, OPERATION).await?;
    let progress = sqlx::query(sql.job.settle.progress.clone())
        .bind(claim.id)
        .bind(i64::from(claim.attempt))
        .bind(&claim.worker[..])
        .bind(percent)
        .bind(note.map(stored_text));
    let done = progress.execute(&mut *tx).await.map_err(reading(OPERATION))?;
    tx.commit().await?;
    Ok(done.rows_affected() > 0)
}
