//! Writing jobs in the caller's transaction.

use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{JobDue, JobInserted, NewJobRow, UniqueJob, UniqueUntil, micros};
use sqlx::SqliteConnection;

use super::super::{SYSTEM, Sqlite, reading_or_committing};

statements! {
    InsertSql {
        insert = "INSERT INTO {job}
                (queue, kind, state, priority, run_at, max_attempts, unique_key, unique_until, schedule, created_at,
                head, data)
            VALUES (?1, ?2, COALESCE(?5, {now} + ?4) > {now}, ?3, max(COALESCE(?5, {now} + ?4), {now}), ?6, ?7, ?8, ?9,
                {now}, ?10, ?11)
            ON CONFLICT (unique_key) DO NOTHING RETURNING id";
        holder = "SELECT id FROM {job} WHERE unique_key = ?1";
        // The job's id comes once it is known.
        take = "INSERT INTO {job_unique} (key, until_at, job) VALUES (?1, {now} + ?2, 0) ON CONFLICT (key) DO UPDATE
            SET until_at = excluded.until_at, job = 0 WHERE until_at <= {now} RETURNING job";
        taken_by = "UPDATE {job_unique} SET job = ?2 WHERE key = ?1";
        taker = "SELECT job FROM {job_unique} WHERE key = ?1";
    }
}

const OPERATION: &str = "job.insert";

pub(super) async fn insert(
    store: &Sqlite,
    conn: &mut SqliteConnection,
    jobs: &[NewJobRow],
) -> Result<Vec<JobInserted>> {
    let mut inserted = Vec::with_capacity(jobs.len());
    for job in jobs {
        inserted.push(match job.unique {
            Some(UniqueJob { key, until: UniqueUntil::For(span) }) => {
                insert_for_a_time(store, conn, job, key, micros(span)).await?
            }
            _ => insert_one(store, conn, job).await?,
        });
    }
    Ok(inserted)
}

async fn insert_one(store: &Sqlite, conn: &mut SqliteConnection, job: &NewJobRow) -> Result<JobInserted> {
    let sql = store.statements()?;
    let failed = reading_or_committing(conn, OPERATION);
    let (delay, at) = match job.due {
        JobDue::After(delay) => (micros(delay), None),
        JobDue::At(at) => (0, Some(at)),
    };
    let (key, until) = match job.unique {
        Some(UniqueJob { key, until: UniqueUntil::Started }) => (Some(key), Some(0)),
        Some(UniqueJob { key, until: UniqueUntil::Done }) => (Some(key), Some(1)),
        _ => (None, None),
    };
    // Whoever has the key may be finished between the two looks, where no transaction is open.
    for _ in 0..10 {
        let insert = sqlx::query_scalar(sql.job.insert.insert.clone())
            .bind(&job.queue)
            .bind(&job.kind)
            .bind(job.priority)
            .bind(delay)
            .bind(at)
            .bind(i64::from(job.max_attempts))
            .bind(key.as_ref().map(|key| &key[..]))
            .bind(until)
            .bind(job.schedule.as_deref())
            .bind(&job.head)
            .bind(&job.data[..]);
        if let Some(id) = insert.fetch_optional(&mut *conn).await.map_err(&failed)? {
            return Ok(JobInserted { id, is_new: true });
        }
        let holder = sqlx::query_scalar(sql.job.insert.holder.clone()).bind(key.as_ref().map(|key| &key[..]));
        if let Some(id) = holder.fetch_optional(&mut *conn).await.map_err(&failed)? {
            return Ok(JobInserted { id, is_new: false });
        }
    }
    let text = "the holder of a unique key came and went; try again";
    Err(Error::new(ErrorKind::Unavailable, text).of_driver(SYSTEM, OPERATION).safe())
}

/// In a savepoint, since a connection in no transaction would write one by one.
async fn insert_for_a_time(
    store: &Sqlite,
    conn: &mut SqliteConnection,
    job: &NewJobRow,
    key: [u8; 16],
    span: i64,
) -> Result<JobInserted> {
    let sql = store.statements()?;
    let failed = reading_or_committing(conn, OPERATION);
    sqlx::raw_sql("SAVEPOINT polybus_job").execute(&mut *conn).await.map_err(&failed)?;
    let insert = async {
        let take = sqlx::query_scalar(sql.job.insert.take.clone()).bind(&key[..]).bind(span);
        let taken: Option<i64> = take.fetch_optional(&mut *conn).await.map_err(&failed)?;
        if taken.is_none() {
            let taker = sqlx::query_scalar(sql.job.insert.taker.clone()).bind(&key[..]);
            let id = taker.fetch_one(&mut *conn).await.map_err(&failed)?;
            return Ok(JobInserted { id, is_new: false });
        }
        let inserted = insert_one(store, conn, job).await?;
        let taken_by = sqlx::query(sql.job.insert.taken_by.clone()).bind(&key[..]).bind(inserted.id);
        taken_by.execute(&mut *conn).await.map_err(&failed)?;
        Ok(inserted)
    };
    let inserted: Result<JobInserted> = insert.await;
    let end = if inserted.is_ok() { "RELEASE polybus_job" } else { "ROLLBACK TO polybus_job; RELEASE polybus_job" };
    let ended = sqlx::raw_sql(end).execute(&mut *conn).await.map_err(&failed);
    let inserted = inserted?;
    ended?;
    Ok(inserted)
}
