//! The table of schedules.

use polybus_core::{Result, driver::async_trait};

use super::{JobInserted, NewJobRow};

/// A schedule as it is stored. What it means is decided by those who read and write it; the store holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoredSchedule {
    /// Its name.
    pub name: String,
    /// Rises by one with each write; 0 for one that is not stored yet.
    pub version: i64,
    /// Tells its definition from others.
    pub hash: String,
    /// The times, as their author wrote them.
    pub spec: String,
    /// The time zone.
    pub zone: String,
    /// The kind of its jobs.
    pub kind: String,
    /// Their queue.
    pub queue: String,
    /// What becomes of times that were missed, for people.
    pub missed: String,
    /// What becomes of a time at which the last job is not finished, for people.
    pub overlap: String,
    /// When it fires next, in microseconds since 1970 by the database's clock, as all times here; `None` if never.
    pub next_at: Option<i64>,
    /// The last time that it fired for.
    pub last_at: Option<i64>,
    /// It does not fire.
    pub paused: bool,
    /// Times whose jobs wait for the last one to be finished, in a form that the store does not read.
    pub pending: String,
    /// Hashes of definitions that this one has replaced, in a form that the store does not read.
    pub replaced: String,
    /// The last job that it has written.
    pub last_job: Option<i64>,
    /// Whether that job is not finished. It is found out by [`ScheduleTable::list`], and not stored.
    pub is_unfinished: bool,
}

/// The schedules, and the database's clock when they were read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedules {
    /// The time, in microseconds since 1970 by the database's clock.
    pub now: i64,
    /// The schedules, by name.
    pub rows: Vec<StoredSchedule>,
}

/// The table of schedules.
#[async_trait]
pub trait ScheduleTable: Send + Sync {
    /// All schedules.
    async fn list(&self) -> Result<Schedules>;

    /// Writes a schedule and its jobs in one transaction, if the stored one has the version of `schedule`, or if there
    /// is none and that is 0. The stored version rises by one. With jobs, [`last_job`](StoredSchedule::last_job)
    /// becomes the last of them. `None` where the version is another one, and nothing was written.
    async fn write(&self, schedule: &StoredSchedule, jobs: &[NewJobRow]) -> Result<Option<Vec<JobInserted>>>;

    /// Removes a schedule. Its jobs stay. Answers whether it was there.
    async fn remove(&self, name: &str) -> Result<bool>;
}
