//! Signs of life of running jobs.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use polybus_core::Result;
use polybus_patterns::store::{JobClaim, JobExtended, micros};
use sqlx::PgConnection;

use super::{
    super::{Postgres, control_conn::ControlConn, reading, statements::Statements},
    attempt_column,
};
use crate::text::stored_text;

/// How long a call may wait for rows that somebody else holds. It keeps one of the few own connections meanwhile.
pub(super) const LOCK_WAIT: &str = "SET LOCAL lock_timeout = '5s'";

macro_rules! progress {
    ($from:literal) => {
        concat!(
            "UPDATE {job} j SET progress = coalesce($4::smallint, j.progress), note = coalesce($5::text, j.note) ",
            "WHERE ",
            $from
        )
    };
}

statements! {
    ExtendSql {
        extend = "WITH mine AS MATERIALIZED (
                SELECT j.id FROM unnest($3::bigint[], $4::int[]) AS e (id, attempt) JOIN {job} j ON j.id = e.id
                WHERE j.attempt = e.attempt AND j.locked_by = $1
                FOR UPDATE OF j SKIP LOCKED)
            UPDATE {job} j SET locked_until = c.now + $2::bigint, term = $2
            FROM mine m, (SELECT {now} AS now) c WHERE j.id = m.id
            RETURNING j.id, j.attempt, j.cancelled <> 0";
        held = "SELECT j.id, j.attempt FROM unnest($2::bigint[], $3::int[]) AS e (id, attempt)
            JOIN {job} j ON j.id = e.id WHERE j.attempt = e.attempt AND j.locked_by = $1";
        progress = progress!("j.id IN (SELECT f.id FROM {job} f WHERE f.id = $1 AND f.attempt = $2 AND f.locked_by = $3 \
            FOR UPDATE SKIP LOCKED)");
        progress_waiting = progress!("j.id = $1 AND j.attempt = $2 AND j.locked_by = $3");
    }
}

/// The runs of these that are the worker's, as somebody sees them who waits for nobody.
pub(super) async fn still_held(
    sql: &Statements,
    conn: &mut ControlConn,
    worker: [u8; 16],
    ids: &[i64],
    attempts: &[i32],
) -> Result<HashSet<(i64, u32)>> {
    let held = sqlx::query_as(sql.job.extend.held.clone()).bind(&worker[..]).bind(ids).bind(attempts);
    let held: Vec<(i64, i32)> = held.fetch_all(&mut **conn).await.map_err(conn.committing())?;
    Ok(held.into_iter().map(|(id, attempt)| (id, attempt.unsigned_abs())).collect())
}

pub(super) async fn extend(
    store: &Postgres,
    worker: [u8; 16],
    lease: Duration,
    runs: &[(i64, u32)],
) -> Result<Vec<JobExtended>> {
    const OPERATION: &str = "job.extend";
    if runs.is_empty() {
        return Ok(Vec::new());
    }
    let (ids, attempts): (Vec<i64>, Vec<i32>) =
        runs.iter().map(|(id, attempt)| (*id, attempt_column(*attempt))).unzip();
    let sql = store.statements().await?;
    // Nothing of this store's may keep it waiting: without signs of life the jobs run elsewhere, too.
    let mut conn = store.lease_conn(OPERATION).await?;
    let extend =
        sqlx::query_as(sql.job.extend.extend.clone()).bind(&worker[..]).bind(micros(lease)).bind(&ids).bind(&attempts);
    let rows: Vec<(i64, i32, bool)> = extend.fetch_all(&mut *conn).await.map_err(conn.committing())?;
    let extended: HashMap<(i64, u32), bool> =
        rows.into_iter().map(|(id, attempt, cancelled)| ((id, attempt.unsigned_abs()), cancelled)).collect();
    let held = match runs.iter().all(|run| extended.contains_key(run)) {
        true => HashSet::new(),
        false => still_held(&sql, &mut conn, worker, &ids, &attempts).await?,
    };
    Ok(runs
        .iter()
        .map(|run| match extended.get(run) {
            Some(cancelled) => JobExtended::Held { cancelled: *cancelled },
            None if held.contains(run) => JobExtended::Locked,
            None => JobExtended::Lost,
        })
        .collect())
}

/// Mostly one round trip. A row that somebody holds is waited for, for a while: that may be the job's own handler, whose
/// transaction has finished it.
pub(super) async fn progress(
    store: &Postgres,
    claim: &JobClaim,
    percent: Option<i16>,
    note: Option<&str>,
) -> Result<bool> {
    const OPERATION: &str = "job.progress";
    let (sql, note) = (store.statements().await?, note.map(stored_text));
    let bind = |statement: &sqlx::SqlStr| {
        sqlx::query(statement.clone())
            .bind(claim.id)
            .bind(attempt_column(claim.attempt))
            .bind(claim.worker.to_vec())
            .bind(percent)
            .bind(note.clone())
    };
    {
        let mut conn = store.control_conn(OPERATION).await?;
        let written = bind(&sql.job.extend.progress).execute(&mut *conn).await.map_err(conn.committing())?;
        if written.rows_affected() > 0 {
            return Ok(true);
        }
        let attempt = attempt_column(claim.attempt);
        if still_held(&sql, &mut conn, claim.worker, &[claim.id], &[attempt]).await?.is_empty() {
            return Ok(false);
        }
    }
    let (mut tx, _place) = store.control_begin(OPERATION).await?;
    limit_waits(&mut tx).await.map_err(reading(OPERATION))?;
    let written = bind(&sql.job.extend.progress_waiting).execute(&mut *tx).await.map_err(reading(OPERATION))?;
    tx.commit().await?;
    Ok(written.rows_affected() > 0)
}

pub(super) async fn limit_waits(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query(LOCK_WAIT).execute(conn).await.map(drop)
}
