//! Schedules.

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{JobInserted, JobStore, NewJobRow, ScheduleTable, Schedules, StoredSchedule};
use sqlx::{Row, postgres::PgRow};

use super::super::{Postgres, reading};

statements! {
    SchedulesSql {
        now = "SELECT {now}";
        list = "SELECT name, version, hash, spec, zone, kind, queue, missed, overlap, next_at, last_at, paused, pending,
                replaced, last_job, EXISTS (SELECT 1 FROM {job} j WHERE j.id = s.last_job)
            FROM {job_schedule} s ORDER BY name";
        make = "INSERT INTO {job_schedule} (name, version, hash, spec, zone, kind, queue, missed, overlap, next_at, last_at,
                paused, pending, replaced, last_job)
            VALUES ($1, $2::bigint + 1, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
            ON CONFLICT (name) DO NOTHING";
        change = "UPDATE {job_schedule} SET version = $2::bigint + 1, hash = $3, spec = $4, zone = $5, kind = $6,
                queue = $7, missed = $8, overlap = $9, next_at = $10, last_at = $11, paused = $12, pending = $13,
                replaced = $14, last_job = $15
            WHERE name = $1 AND version = $2";
        last_job = "UPDATE {job_schedule} SET last_job = $2 WHERE name = $1";
        remove = "DELETE FROM {job_schedule} WHERE name = $1";
    }
}

pub(super) struct ScheduleRows(pub(super) Postgres);

fn stored(row: &PgRow) -> Result<StoredSchedule, sqlx::Error> {
    Ok(StoredSchedule {
        name: row.try_get(0)?,
        version: row.try_get(1)?,
        hash: row.try_get(2)?,
        spec: row.try_get(3)?,
        zone: row.try_get(4)?,
        kind: row.try_get(5)?,
        queue: row.try_get(6)?,
        missed: row.try_get(7)?,
        overlap: row.try_get(8)?,
        next_at: row.try_get(9)?,
        last_at: row.try_get(10)?,
        paused: row.try_get::<i16, _>(11)? != 0,
        pending: row.try_get(12)?,
        replaced: row.try_get(13)?,
        last_job: row.try_get(14)?,
        is_unfinished: row.try_get(15)?,
    })
}

#[async_trait]
impl ScheduleTable for ScheduleRows {
    async fn list(&self) -> Result<Schedules> {
        const OPERATION: &str = "schedule.list";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let now = sqlx::query_scalar(sql.job.schedules.now.clone());
        let now = now.fetch_one(&mut *conn).await.map_err(conn.reading())?;
        let rows = sqlx::query(sql.job.schedules.list.clone()).fetch_all(&mut *conn).await.map_err(conn.reading())?;
        let rows = rows.iter().map(stored).collect::<Result<_, _>>().map_err(reading(OPERATION))?;
        Ok(Schedules { now, rows })
    }

    async fn write(&self, schedule: &StoredSchedule, jobs: &[NewJobRow]) -> Result<Option<Vec<JobInserted>>> {
        const OPERATION: &str = "schedule.write";
        let sql = self.0.statements().await?;
        let (mut tx, _place) = self.0.control_begin(OPERATION).await?;
        let statement = if schedule.version == 0 { &sql.job.schedules.make } else { &sql.job.schedules.change };
        let write = sqlx::query(statement.clone())
            .bind(&schedule.name)
            .bind(schedule.version)
            .bind(&schedule.hash)
            .bind(&schedule.spec)
            .bind(&schedule.zone)
            .bind(&schedule.kind)
            .bind(&schedule.queue)
            .bind(&schedule.missed)
            .bind(&schedule.overlap)
            .bind(schedule.next_at)
            .bind(schedule.last_at)
            .bind(i16::from(schedule.paused))
            .bind(&schedule.pending)
            .bind(&schedule.replaced)
            .bind(schedule.last_job);
        // The row is locked from here on: whoever comes second waits, and finds another version.
        if write.execute(&mut *tx).await.map_err(reading(OPERATION))?.rows_affected() == 0 {
            tx.rollback().await?;
            return Ok(None);
        }
        let inserted = self.0.insert_jobs(&mut tx, jobs).await?;
        if let Some(job) = inserted.last() {
            let last = sqlx::query(sql.job.schedules.last_job.clone()).bind(&schedule.name).bind(job.id);
            last.execute(&mut *tx).await.map_err(reading(OPERATION))?;
        }
        tx.commit().await?;
        Ok(Some(inserted))
    }

    async fn remove(&self, name: &str) -> Result<bool> {
        const OPERATION: &str = "schedule.remove";
        let sql = self.0.statements().await?;
        let mut conn = self.0.control_conn(OPERATION).await?;
        let remove = sqlx::query(sql.job.schedules.remove.clone()).bind(name);
        remove.execute(&mut *conn).await.map(|done| done.rows_affected() > 0).map_err(conn.committing())
    }
}
