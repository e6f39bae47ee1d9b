//! Schedules.

use polybus_core::{ErrorKind, Result, driver::async_trait};
use polybus_patterns::store::{JobInserted, NewJobRow, ScheduleTable, Schedules, StoredSchedule};
use sqlx::{Row, mysql::MySqlRow};

use super::{
    super::{
        MySql,
        control_conn::{Again, decoded, text},
        literals::fill,
        reading,
    },
    insert::{self, Reads},
    keys,
};

statements! {
    SchedulesSql {
        now = "SELECT {now}";
        list = "SELECT name, version, hash, spec, zone, kind, queue, missed, overlap, next_at, last_at, paused, pending,
                replaced, last_job, EXISTS (SELECT 1 FROM {job} AS j WHERE j.id = s.last_job)
            FROM {job_schedule} AS s ORDER BY name";
        make = "INSERT INTO {job_schedule} (name, version, hash, spec, zone, kind, queue, missed, overlap, next_at, last_at,
                paused, pending, replaced, last_job)
            VALUES (?1, ?2 + 1, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
        change = "UPDATE {job_schedule} SET version = ?2 + 1, hash = ?3, spec = ?4, zone = ?5, kind = ?6, queue = ?7,
                missed = ?8, overlap = ?9, next_at = ?10, last_at = ?11, paused = ?12, pending = ?13, replaced = ?14,
                last_job = ?15
            WHERE name = ?1 AND version = ?2";
        last_job = "UPDATE {job_schedule} SET last_job = ?2 WHERE name = ?1";
        remove = "DELETE FROM {job_schedule} WHERE name = ?1";
    }
}

const OPERATION: &str = "schedule.write";

pub(super) struct ScheduleRows(pub(super) MySql);

fn stored(row: &MySqlRow) -> Result<StoredSchedule, sqlx::Error> {
    let of = |n: usize| Ok::<_, sqlx::Error>(text(row.try_get(n)?));
    Ok(StoredSchedule {
        name: of(0)?,
        version: row.try_get(1)?,
        hash: of(2)?,
        spec: of(3)?,
        zone: of(4)?,
        kind: of(5)?,
        queue: of(6)?,
        missed: of(7)?,
        overlap: of(8)?,
        next_at: row.try_get(9)?,
        last_at: row.try_get(10)?,
        paused: row.try_get::<i8, _>(11)? != 0,
        pending: of(12)?,
        replaced: of(13)?,
        last_job: row.try_get(14)?,
        is_unfinished: row.try_get_unchecked::<i64, _>(15)? != 0,
    })
}

async fn write_once(store: &MySql, schedule: &StoredSchedule, jobs: &[NewJobRow]) -> Result<Option<Vec<JobInserted>>> {
    let sql = store.statements().await?;
    let statement = if schedule.version == 0 { &sql.job.schedules.make } else { &sql.job.schedules.change };
    let write = fill(
        statement.as_str(),
        &[
            schedule.name.as_str().into(),
            schedule.version.into(),
            schedule.hash.as_str().into(),
            schedule.spec.as_str().into(),
            schedule.zone.as_str().into(),
            schedule.kind.as_str().into(),
            schedule.queue.as_str().into(),
            schedule.missed.as_str().into(),
            schedule.overlap.as_str().into(),
            schedule.next_at.into(),
            schedule.last_at.into(),
            i64::from(schedule.paused).into(),
            schedule.pending.as_str().into(),
            schedule.replaced.as_str().into(),
            schedule.last_job.into(),
        ],
    );
    let mut conn = store.control_conn(OPERATION).await?;
    // The row is locked from here on: whoever comes second waits, and finds another version.
    let written = match conn.begin_parts(&write).await {
        Ok(answer) => answer.affected,
        Err(e) if e.kind() == ErrorKind::Conflict => return Ok(None),
        Err(e) => return Err(e),
    };
    if written == 0 {
        conn.commit_parts("").await?;
        return Ok(None);
    }
    let inserted = insert::insert(store, conn.part_conn(), jobs, Reads::Newest).await?;
    let last = inserted
        .last()
        .map(|job| fill(sql.job.schedules.last_job.as_str(), &[schedule.name.as_str().into(), job.id.into()]));
    conn.commit_parts(&last.unwrap_or_default()).await?;
    Ok(Some(inserted))
}

#[async_trait]
impl ScheduleTable for ScheduleRows {
    async fn list(&self) -> Result<Schedules> {
        const OPERATION: &str = "schedule.list";
        let sql = self.0.statements().await?;
        let now = self.0.look(OPERATION, sql.job.schedules.now.as_str()).await?;
        let now = decoded::<(i64,)>(&now.rows, OPERATION)?.first().map_or(0, |(now,)| *now);
        let rows = self.0.look(OPERATION, sql.job.schedules.list.as_str()).await?.rows;
        let rows = rows.iter().map(stored).collect::<Result<_, _>>().map_err(reading(OPERATION))?;
        Ok(Schedules { now, rows })
    }

    async fn write(&self, schedule: &StoredSchedule, jobs: &[NewJobRow]) -> Result<Option<Vec<JobInserted>>> {
        let max_packet = self.0.server().await?.max_packet;
        jobs.iter().try_for_each(|job| insert::check(job, max_packet))?;
        keys::make_turns(&self.0, &insert::keys_of(jobs)).await?;
        let mut again = Again::default();
        loop {
            match write_once(&self.0, schedule, jobs).await {
                Err(e) if again.after(&e).await => {}
                written => return written,
            }
        }
    }

    async fn remove(&self, name: &str) -> Result<bool> {
        let sql = self.0.statements().await?;
        let remove = fill(sql.job.schedules.remove.as_str(), &[name.into()]);
        Ok(self.0.run("schedule.remove", &remove).await?.affected > 0)
    }
}
