//! Writing the ends of runs.

use std::collections::HashSet;

use polybus_core::Result;
use polybus_patterns::store::{JobEnd, JobEnding, JobSettled, micros};

use super::{super::Postgres, attempt_column, extend::still_held, kept};
use crate::text::{stored_text, without_nul};

statements! {
    SettleSql {
        // One statement for all ends, so that either all that are free are written or none. Rows that somebody else
        // holds are left alone.
        settle = concat!("WITH e AS (
                SELECT * FROM unnest($2::bigint[], $3::int[], $4::smallint[], $5::text[], $6::text[], $7::bigint[],
                    $8::int[]) AS e (id, attempt, outcome, result, error, delay, counted)),
            mine AS MATERIALIZED (
                SELECT j.id, e.attempt AS run, coalesce(e.outcome, CASE WHEN j.cancelled <> 0 THEN 2 END) AS outcome, e.result,
                    e.error, e.delay, j.attempt - 1 + e.counted AS attempt
                FROM e JOIN {job} j ON j.id = e.id
                WHERE j.attempt = e.attempt AND j.locked_by = $1
                FOR UPDATE OF j SKIP LOCKED),
            gone AS (
                DELETE FROM {job} j USING mine m WHERE j.id = m.id AND m.outcome IS NOT NULL
                RETURNING j.*, m.outcome, m.result, m.error, m.attempt AS ended),
            done AS (
                INSERT INTO {job_done} (", kept!(), ", progress, note, outcome, attempt, last_error, result, finished_at)
                SELECT ", kept!(), ", progress, note, outcome, ended, coalesce(error, last_error), result, c.now
                FROM gone, (SELECT {now} AS now) c),
            again AS (
                UPDATE {job} j
                SET state = CASE WHEN m.delay > 0 THEN 1 ELSE 0 END,
                    run_at = CASE WHEN m.delay > 0 THEN c.now + m.delay ELSE j.run_at END,
                    attempt = m.attempt, last_error = coalesce(m.error, j.last_error),
                    locked_by = NULL, locked_until = NULL, term = NULL
                FROM mine m, (SELECT {now} AS now) c WHERE j.id = m.id AND m.outcome IS NULL)
            SELECT id, run FROM mine");
    }
}

/// The columns of endings, one by one.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<i64>,
    attempts: Vec<i32>,
    outcomes: Vec<Option<i16>>,
    results: Vec<Option<std::borrow::Cow<'a, str>>>,
    errors: Vec<Option<String>>,
    delays: Vec<i64>,
    counted: Vec<i32>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, ending: &'a JobEnding) {
        self.ids.push(ending.id);
        self.attempts.push(attempt_column(ending.attempt));
        let (outcome, result, error, delay, counts) = match &ending.how {
            JobEnd::Finished { outcome, result, error } => (Some(outcome.number()), result.as_deref(), error, 0, true),
            JobEnd::Again { delay, counts, error } => (None, None, error, micros(*delay), *counts),
        };
        self.outcomes.push(outcome);
        self.results.push(result.map(without_nul));
        self.errors.push(error.as_deref().map(stored_text));
        self.delays.push(delay);
        self.counted.push(i32::from(counts));
    }
}

pub(super) async fn settle(store: &Postgres, worker: [u8; 16], endings: &[JobEnding]) -> Result<Vec<JobSettled>> {
    const OPERATION: &str = "job.settle";
    let (mut columns, mut seen) = (Columns::default(), HashSet::new());
    // A run ends once: of two ends the first one counts.
    let first: Vec<bool> = endings.iter().map(|ending| seen.insert((ending.id, ending.attempt))).collect();
    for (ending, _) in endings.iter().zip(&first).filter(|(_, first)| **first) {
        columns.push(ending);
    }
    if columns.ids.is_empty() {
        return Ok(Vec::new());
    }
    let sql = store.statements().await?;
    let mut conn = store.control_conn(OPERATION).await?;
    let settle = sqlx::query_as(sql.job.settle.settle.clone())
        .bind(&worker[..])
        .bind(&columns.ids)
        .bind(&columns.attempts)
        .bind(&columns.outcomes)
        .bind(&columns.results)
        .bind(&columns.errors)
        .bind(&columns.delays)
        .bind(&columns.counted);
    let written: Vec<(i64, i32)> = settle.fetch_all(&mut *conn).await.map_err(conn.committing())?;
    let written: HashSet<(i64, u32)> = written.into_iter().map(|(id, run)| (id, run.unsigned_abs())).collect();
    let held = match written.len() == columns.ids.len() {
        true => HashSet::new(),
        false => still_held(&sql, &mut conn, worker, &columns.ids, &columns.attempts).await?,
    };
    Ok(endings
        .iter()
        .zip(first)
        .map(|(ending, first)| {
            let run = (ending.id, ending.attempt);
            match () {
                () if !first => JobSettled::Lost,
                () if written.contains(&run) => JobSettled::Written,
                () if held.contains(&run) => JobSettled::Busy,
                () => JobSettled::Lost,
            }
        })
        .collect())
}
