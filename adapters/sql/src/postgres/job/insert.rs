//! Writing jobs in the caller's transaction.

use std::collections::HashMap;

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{JobDue, JobInserted, NewJobRow, UniqueJob, UniqueUntil, micros};
use sqlx::PgConnection;

use super::{
    super::{Postgres, SYSTEM, reading_or_committing},
    unique_span,
};

/// How often a key is asked for whose holder is gone by the time that it is looked for.
const TRIES: usize = 100;

pub(super) const OPERATION: &str = "job.insert";

/// What a job is written from, one value for each column.
macro_rules! columns {
    () => {
        "queue, kind, priority, max_attempts, head, data, schedule, unique_key, unique_until, created_at, state, run_at"
    };
}

/// The same from rows `r` with a delay and a time, and the clock `c`.
macro_rules! values {
    () => {
        "r.queue, r.kind, r.priority, r.max_attempts, r.head, r.data, r.schedule, r.key, r.until, c.now,
            CASE WHEN coalesce(r.at, c.now + r.delay) > c.now THEN 1 ELSE 0 END,
            greatest(c.now, coalesce(r.at, c.now + r.delay))"
    };
}

/// Many rows `r`, in their order.
macro_rules! rows {
    () => {
        "unnest($1::text[], $2::text[], $3::smallint[], $4::int[], $5::text[], $6::bytea[], $7::text[],
                $8::bytea[], $9::smallint[], $10::bigint[], $11::bigint[])
            WITH ORDINALITY AS r (queue, kind, priority, max_attempts, head, data, schedule, key, until, delay, at,
                place)"
    };
}
pub(super) use {columns, rows, values};

statements! {
    InsertSql {
        // A job that holds its key until its start is locked, so that nobody claims it before this transaction has
        // ended: it must see what this transaction writes.
        one = concat!("WITH made AS (INSERT INTO {job} (", columns!(), ") SELECT ", values!(), "
                FROM (SELECT $1::text AS queue, $2::text AS kind, $3::smallint AS priority, $4::int AS max_attempts,
                    $5::text AS head, $6::bytea AS data, $7::text AS schedule, $8::bytea AS key,
                    $9::smallint AS until, $10::bigint AS delay, $11::bigint AS at) r, (SELECT {now} AS now) c
                ON CONFLICT (unique_key) DO NOTHING RETURNING id),
            waits AS (SELECT j.id FROM {job} j
                WHERE j.unique_key = $8 AND j.unique_until = 0 AND NOT EXISTS (SELECT 1 FROM made) FOR SHARE OF j)
            SELECT id, true FROM made
            UNION ALL
            SELECT id, false FROM waits
            UNION ALL
            SELECT j.id, false FROM {job} j
            WHERE j.unique_key = $8 AND j.unique_until <> 0 AND NOT EXISTS (SELECT 1 FROM made)");
        // Ids are drawn after the sort, so they rise in the order of the rows that have no key. Keys are locked in
        // their own order: two transactions that want the same ones would lock each other out.
        many = concat!("INSERT INTO {job} (", columns!(), ") SELECT ", values!(), "
            FROM ", rows!(), ", (SELECT {now} AS now) c
            ORDER BY r.key NULLS FIRST, r.place
            ON CONFLICT (unique_key) DO NOTHING
            RETURNING id, unique_key");
        holders = "WITH waits AS (SELECT id, unique_key FROM {job}
                WHERE unique_key = ANY ($1::bytea[]) AND unique_until = 0 ORDER BY id FOR SHARE)
            SELECT id, unique_key FROM waits
            UNION ALL
            SELECT id, unique_key FROM {job} WHERE unique_key = ANY ($1::bytea[]) AND unique_until <> 0";
    }
}

/// The key of a job as it stands in the job's row, and how long it is taken there. A key that is taken for a span is
/// not there, since it outlives the row.
fn row_key(job: &NewJobRow) -> Option<(&[u8; 16], i16)> {
    match &job.unique {
        Some(UniqueJob { key, until: UniqueUntil::Started }) => Some((key, 0)),
        Some(UniqueJob { key, until: UniqueUntil::Done }) => Some((key, 1)),
        Some(UniqueJob { until: UniqueUntil::For(_), .. }) | None => None,
    }
}

fn span_key(job: &NewJobRow) -> Option<&[u8; 16]> {
    match &job.unique {
        Some(UniqueJob { key, until: UniqueUntil::For(_) }) => Some(key),
        _ => None,
    }
}

/// The delay, and the time where there is one.
fn due(job: &NewJobRow) -> (i64, Option<i64>) {
    match job.due {
        JobDue::After(delay) => (micros(delay), None),
        JobDue::At(at) => (0, Some(at)),
    }
}

fn most_attempts(job: &NewJobRow) -> i32 {
    i32::try_from(job.max_attempts.max(1)).unwrap_or(i32::MAX)
}

pub(super) async fn insert(store: &Postgres, conn: &mut PgConnection, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
    let inserted = match jobs {
        [] => return Ok(Vec::new()),
        [job] if span_key(job).is_none() => match insert_one(store, conn, job).await? {
            Some(inserted) => vec![inserted],
            None => insert_many(store, conn, jobs).await?,
        },
        jobs => insert_many(store, conn, jobs).await?,
    };
    if inserted.iter().any(|job| job.is_new) {
        store.0.changes.written();
    }
    Ok(inserted)
}

/// One round trip. `None` where the key has a holder that this statement could not see yet.
async fn insert_one(store: &Postgres, conn: &mut PgConnection, job: &NewJobRow) -> Result<Option<JobInserted>> {
    let sql = store.statements().await?;
    let failed = reading_or_committing(conn, OPERATION);
    let ((delay, at), key) = (due(job), row_key(job));
    let made: Option<(i64, bool)> = sqlx::query_as(sql.job.insert.one.clone())
        .bind(&job.queue)
        .bind(&job.kind)
        .bind(job.priority)
        .bind(most_attempts(job))
        .bind(&job.head)
        .bind(&job.data[..])
        .bind(job.schedule.as_deref())
        .bind(key.map(|(key, _)| &key[..]))
        .bind(key.map(|(_, until)| until))
        .bind(delay)
        .bind(at)
        .fetch_optional(conn)
        .await
        .map_err(failed)?;
    Ok(made.map(|(id, is_new)| JobInserted { id, is_new }))
}

/// Jobs to write, and what became of them.
struct Asked<'a> {
    jobs: &'a [NewJobRow],
    answers: Vec<Option<JobInserted>>,
}

impl<'a> Asked<'a> {
    /// The first job of each key that has no answer yet.
    fn open(&self, key: impl Fn(&'a NewJobRow) -> Option<&'a [u8; 16]>) -> HashMap<&'a [u8], usize> {
        let mut open = HashMap::new();
        for (place, job) in self.jobs.iter().enumerate().filter(|(place, _)| self.answers[*place].is_none()) {
            if let Some(key) = key(job) {
                open.entry(&key[..]).or_insert(place);
            }
        }
        open
    }

    fn answer(&mut self, place: Option<&usize>, id: i64, is_new: bool) {
        if let Some(answer) = place.and_then(|place| self.answers.get_mut(*place)) {
            *answer = Some(JobInserted { id, is_new });
        }
    }

    /// Of equal keys only the first one was asked for.
    fn answer_equal_keys(&mut self, key: impl Fn(&'a NewJobRow) -> Option<&'a [u8; 16]>) {
        let mut first = HashMap::new();
        for (job, answer) in self.jobs.iter().zip(&mut self.answers) {
            let Some(key) = key(job) else { continue };
            match (*answer, first.get(key)) {
                (Some(answer), None) => {
                    first.insert(key, answer.id);
                }
                (None, Some(id)) => *answer = Some(JobInserted { id: *id, is_new: false }),
                _ => {}
            }
        }
    }
}

async fn insert_many(store: &Postgres, conn: &mut PgConnection, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
    let mut asked = Asked { jobs, answers: vec![None; jobs.len()] };
    let row_key_of = |job| row_key(job).map(|(key, _)| key);
    for tries in 0.. {
        let keyed = asked.open(row_key_of);
        let mut places: Vec<usize> = keyed.values().copied().collect();
        if tries == 0 {
            places.extend((0..jobs.len()).filter(|place| jobs[*place].unique.is_none()));
        }
        if places.is_empty() {
            break;
        }
        check_tries(tries)?;
        places.sort_unstable();
        write_rows(store, conn, &places, &keyed, &mut asked).await?;
    }
    for tries in 0.. {
        let keyed = asked.open(span_key);
        if keyed.is_empty() {
            break;
        }
        check_tries(tries)?;
        for (key, id, is_new) in unique_span::insert(store, conn, jobs, &keyed).await? {
            asked.answer(keyed.get(&key[..]), id, is_new);
        }
    }
    asked.answer_equal_keys(row_key_of);
    asked.answer_equal_keys(span_key);
    let answers: Option<Vec<_>> = asked.answers.into_iter().collect();
    answers.ok_or_else(|| Error::new(ErrorKind::Unexpected, "a job has no answer").of_driver(SYSTEM, OPERATION))
}

fn check_tries(tries: usize) -> Result<()> {
    if tries < TRIES {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unavailable, "the unique key of a job changes hands too quickly: try again")
        .of_driver(SYSTEM, OPERATION)
        .with_context("contention", "unique_key"))
}

async fn write_rows(
    store: &Postgres,
    conn: &mut PgConnection,
    places: &[usize],
    keyed: &HashMap<&[u8], usize>,
    asked: &mut Asked<'_>,
) -> Result<()> {
    let sql = store.statements().await?;
    let failed = reading_or_committing(conn, OPERATION);
    let jobs: Vec<&NewJobRow> = places.iter().map(|place| &asked.jobs[*place]).collect();
    let many = JobColumns::of(&jobs).bind(sqlx::query_as(sql.job.insert.many.clone()));
    let made: Vec<(i64, Option<Vec<u8>>)> = many.fetch_all(&mut *conn).await.map_err(&failed)?;
    let (mut ids, mut left) = (Vec::new(), keyed.clone());
    for (id, key) in made {
        match key {
            Some(key) => asked.answer(left.remove(&key[..]).as_ref(), id, true),
            None => ids.push(id),
        }
    }
    ids.sort_unstable();
    let keyless = places.iter().filter(|place| asked.jobs[**place].unique.is_none());
    let keyless: Vec<usize> = keyless.copied().collect();
    for (place, id) in keyless.iter().zip(ids) {
        asked.answer(Some(place), id, true);
    }
    if left.is_empty() {
        return Ok(());
    }
    // Those who had the keys may be gone again by now.
    let keys: Vec<&[u8]> = left.keys().copied().collect();
    let holders = sqlx::query_as(sql.job.insert.holders.clone()).bind(keys);
    let holders: Vec<(i64, Vec<u8>)> = holders.fetch_all(conn).await.map_err(failed)?;
    for (id, key) in holders {
        asked.answer(left.get(&key[..]), id, false);
    }
    Ok(())
}

/// The columns of many jobs.
pub(super) struct JobColumns<'a>(&'a [&'a NewJobRow]);

type Query<'q, O> = sqlx::query::QueryAs<'q, sqlx::Postgres, O, sqlx::postgres::PgArguments>;

impl<'a> JobColumns<'a> {
    pub(super) fn of(jobs: &'a [&'a NewJobRow]) -> Self {
        Self(jobs)
    }

    /// The values of [`rows`].
    pub(super) fn bind<'q, O>(&self, query: Query<'q, O>) -> Query<'q, O>
    where
        'a: 'q,
    {
        fn column<'a, T>(jobs: &[&'a NewJobRow], of: impl Fn(&'a NewJobRow) -> T) -> Vec<T> {
            jobs.iter().map(|job| of(job)).collect()
        }
        let jobs = self.0;
        query
            .bind(column(jobs, |job| job.queue.as_str()))
            .bind(column(jobs, |job| job.kind.as_str()))
            .bind(column(jobs, |job| job.priority))
            .bind(column(jobs, most_attempts))
            .bind(column(jobs, |job| job.head.as_str()))
            .bind(column(jobs, |job| &job.data[..]))
            .bind(column(jobs, |job| job.schedule.as_deref()))
            .bind(column(jobs, |job| row_key(job).map(|(key, _)| &key[..]).or(span_key(job).map(|key| &key[..]))))
            .bind(column(jobs, |job| row_key(job).map(|(_, until)| until)))
            .bind(column(jobs, |job| due(job).0))
            .bind(column(jobs, |job| due(job).1))
    }
}
