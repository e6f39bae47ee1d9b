//! Signs of life, and how far a run has come.

use std::time::Duration;

use polybus_core::{ErrorKind, Result};
use polybus_patterns::store::{JobClaim, JobExtended, micros};

use super::{
    super::{
        MySql,
        control_conn::Again,
        literals::{Value, fill, numbers},
    },
    AT_ONCE, moved,
    settle::lock_runs,
};
use crate::{error::Effect, text::stored_text};

statements! {
    ExtendSql {
        extend = "UPDATE {job} FORCE INDEX (PRIMARY) SET locked_until = {now} + ?2, term = ?2
            WHERE id IN (?1) ORDER BY id";
        progress = "UPDATE {job} FORCE INDEX (PRIMARY) SET progress = COALESCE(?4, progress), note = COALESCE(?5, note)
            WHERE id = ?1 AND attempt = ?2 AND locked_by = ?3 AND state = 2";
    }
}

/// On the connection that waits for nothing but leases.
pub(super) async fn extend(
    store: &MySql,
    worker: [u8; 16],
    lease: Duration,
    runs: &[(i64, u32)],
) -> Result<Vec<JobExtended>> {
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let mut again = Again::default();
    loop {
        match extend_once(store, &worker, lease, runs).await {
            Err(e) if again.after(&e).await => {}
            extended => return extended,
        }
    }
}

async fn extend_once(
    store: &MySql,
    worker: &[u8; 16],
    lease: Duration,
    wanted: &[(i64, u32)],
) -> Result<Vec<JobExtended>> {
    const OPERATION: &str = "job.extend";
    let sql = store.statements().await?;
    let mut ids: Vec<i64> = wanted.iter().map(|(id, _)| *id).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut conn = store.lease_conn(OPERATION).await?;
    let runs = lock_runs(store, &mut conn, OPERATION, worker, &ids).await?;
    let mut held: Vec<i64> = wanted.iter().filter(|run| runs.locked.contains_key(run)).map(|(id, _)| *id).collect();
    held.sort_unstable();
    let extends: Vec<String> = held
        .chunks(AT_ONCE)
        .map(|ids| {
            let ids = numbers(ids.iter().copied());
            fill(sql.job.extend.extend.as_str(), &[Value::Sql(&ids), micros(lease).into()])
        })
        .collect();
    moved::commit(store, conn, &extends).await?;
    let extended = wanted.iter().map(|run| match runs.locked.get(run) {
        Some(found) => JobExtended::Held { cancelled: found.is_cancelled },
        None if runs.busy.contains(run) => JobExtended::Locked,
        None => JobExtended::Lost,
    });
    Ok(extended.collect())
}

/// The row may be locked by the transaction of the job's own handler, which must not wait for itself for long.
pub(super) async fn progress(
    store: &MySql,
    claim: &JobClaim,
    percent: Option<i16>,
    note: Option<&str>,
) -> Result<bool> {
    const OPERATION: &str = "job.progress";
    let sql = store.statements().await?;
    let note = note.map(stored_text);
    let values = [
        claim.id.into(),
        i64::from(claim.attempt).into(),
        Value::Bytes(&claim.worker),
        percent.map(i64::from).into(),
        note.as_deref().into(),
    ];
    let update = fill(sql.job.extend.progress.as_str(), &values);
    let text = format!("{}{update}; COMMIT; {}", super::WAIT_BRIEFLY, super::WAIT_AS_BEFORE);
    let answer = store.control_conn(OPERATION).await?.run(&text, Effect::Committed).await;
    match answer {
        Ok(answer) => Ok(answer.affected > 0),
        Err(error) if error.kind() == ErrorKind::Unavailable && error.context("contention").is_some() => {
            Err(error.with_context("job", "busy"))
        }
        Err(error) => Err(error),
    }
}
