//! Jobs whose unique key is taken for a time, whatever becomes of them.

use std::collections::HashMap;

use polybus_core::Result;
use polybus_patterns::store::{NewJobRow, UniqueJob, UniqueUntil, micros};
use sqlx::PgConnection;

use super::{
    super::{Postgres, reading_or_committing},
    insert::{self, JobColumns},
};

/// Whether a row `u` is free for whoever wants the key for `span` from `now`. An end that is further ahead than its own
/// span is one from before the clock was set back. The clock is read for each row, also when it is looked at again after a
/// wait for its lock: by an older one, a key that somebody has just taken would look like that.
macro_rules! is_free {
    ($now:literal) => {
        concat!("(u.until_at <= ", $now, " OR u.until_at > ", $now, " + u.span)")
    };
}

statements! {
    UniqueSpanSql {
        // A row that is not there cannot be locked. One that is over from the beginning takes nothing: it is locked as
        // any other by the next statement, which either takes it or sees who has.
        make = "INSERT INTO {job_unique} (key, until_at, span, job)
            SELECT k.key, 0, 0, 0 FROM unnest($1::bytea[]) AS k (key) ORDER BY k.key ON CONFLICT (key) DO NOTHING";
        // The job and its key in one statement, so that there is no job without its key also outside a transaction.
        take = concat!("WITH c AS MATERIALIZED (SELECT {now} AS now),
            free AS MATERIALIZED (
                SELECT u.key FROM {job_unique} u
                WHERE u.key = ANY ($8::bytea[]) AND ", is_free!("{now}"), "
                ORDER BY u.key FOR UPDATE OF u),
            r AS MATERIALIZED (
                SELECT r.*, s.span FROM ", insert::rows!(), "
                JOIN unnest($12::bigint[]) WITH ORDINALITY AS s (span, place) ON s.place = r.place
                WHERE r.key IN (SELECT key FROM free)),
            made AS (
                INSERT INTO {job} (", insert::columns!(), ")
                SELECT ", insert::values!(), " FROM (
                    SELECT r.queue, r.kind, r.priority, r.max_attempts, r.head, r.data, r.schedule, NULL::bytea AS key,
                        NULL::smallint AS until, r.delay, r.at, r.place
                    FROM r) r, c
                ORDER BY r.place
                RETURNING id),
            -- Ids rise in the order of the rows.
            pairs AS (
                SELECT m.id, p.key, p.span
                FROM (SELECT id, row_number() OVER (ORDER BY id) AS n FROM made) m
                JOIN (SELECT r.key, r.span, row_number() OVER (ORDER BY r.place) AS n FROM r) p ON p.n = m.n),
            taken AS (
                UPDATE {job_unique} u SET until_at = c.now + p.span, span = p.span, job = p.id
                FROM pairs p, c WHERE u.key = p.key)
            SELECT p.key, p.id FROM pairs p");
        holders = concat!("SELECT u.key, u.job FROM {job_unique} u, (SELECT {now} AS now) c
            WHERE u.key = ANY ($1::bytea[]) AND NOT ", is_free!("c.now"));
    }
}

/// Writes the jobs whose key is free. Answers the id of each key's job, and whether it is a new one. A key whose holder
/// is gone by now has no answer.
pub(super) async fn insert(
    store: &Postgres,
    conn: &mut PgConnection,
    jobs: &[NewJobRow],
    keyed: &HashMap<&[u8], usize>,
) -> Result<Vec<(Vec<u8>, i64, bool)>> {
    let sql = store.statements().await?;
    let failed = reading_or_committing(conn, insert::OPERATION);
    let keys: Vec<&[u8]> = keyed.keys().copied().collect();
    let make = sqlx::query(sql.job.unique_span.make.clone()).bind(&keys);
    make.execute(&mut *conn).await.map_err(&failed)?;
    let mut places: Vec<usize> = keyed.values().copied().collect();
    places.sort_unstable();
    let jobs: Vec<&NewJobRow> = places.iter().map(|place| &jobs[*place]).collect();
    let take = JobColumns::of(&jobs).bind(sqlx::query_as(sql.job.unique_span.take.clone()));
    let take = take.bind(jobs.iter().map(|job| span(job)).collect::<Vec<i64>>());
    let taken: Vec<(Vec<u8>, i64)> = take.fetch_all(&mut *conn).await.map_err(&failed)?;
    let left: Vec<&[u8]> = keys.into_iter().filter(|key| !taken.iter().any(|(taken, _)| taken[..] == **key)).collect();
    let mut answers: Vec<_> = taken.into_iter().map(|(key, id)| (key, id, true)).collect();
    if !left.is_empty() {
        let holders = sqlx::query_as(sql.job.unique_span.holders.clone()).bind(left);
        let holders: Vec<(Vec<u8>, i64)> = holders.fetch_all(conn).await.map_err(failed)?;
        answers.extend(holders.into_iter().map(|(key, id)| (key, id, false)));
    }
    Ok(answers)
}

fn span(job: &NewJobRow) -> i64 {
    match &job.unique {
        Some(UniqueJob { until: UniqueUntil::For(span), .. }) => micros(*span),
        _ => 0,
    }
}
