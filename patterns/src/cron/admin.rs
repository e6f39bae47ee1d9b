//! Looking after schedules.

use std::sync::Arc;

use polybus_core::{Error, ErrorKind, Result};

use super::{CronSpec, CronTime, tick::with_pending};
use crate::store::{
    ScheduleTable, Schedules, StoreControl, StoredSchedule,
    calls::{in_time, rows_limit},
};

/// How often a write is tried again that another process came before.
const TRIES: u32 = 20;

/// What can be done with schedules by hand. [`JobAdmin::schedules`](crate::jobs::JobAdmin::schedules) makes it. Cheap to
/// clone.
///
/// ```no_run
/// # async fn example(admin: polybus_patterns::jobs::JobAdmin) -> polybus_core::Result<()> {
/// let schedules = admin.schedules();
/// for schedule in schedules.list().await? {
///     println!("{} {} {}", schedule.name, schedule.spec, schedule.zone);
/// }
/// schedules.pause("nightly").await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ScheduleAdmin {
    table: Arc<dyn ScheduleTable>,
    control: Arc<dyn StoreControl>,
}

impl ScheduleAdmin {
    pub(crate) fn new(table: Arc<dyn ScheduleTable>, control: Arc<dyn StoreControl>) -> Self {
        Self { table, control }
    }

    /// All schedules, by name, also those that no running process has. Such a one does not fire.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # async fn example(schedules: polybus_patterns::cron::ScheduleAdmin) -> polybus_core::Result<()> {
    /// for schedule in schedules.list().await? {
    ///     println!("{} next at {:?}{}", schedule.name, schedule.next_at, if schedule.paused { ", paused" } else { "" });
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn list(&self) -> Result<Vec<StoredSchedule>> {
        Ok(self.stored().await?.rows)
    }

    /// The next times of a schedule, at most `n`, in its zone.
    ///
    /// # Errors
    /// `NotFound`. `InvalidArgument` for times that a newer program wrote and this one does not understand. Those of the
    /// database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # async fn example(schedules: polybus_patterns::cron::ScheduleAdmin) -> polybus_core::Result<()> {
    /// for time in schedules.upcoming("nightly", 5).await? {
    ///     println!("{}", time.local);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn upcoming(&self, name: &str, n: usize) -> Result<Vec<CronTime>> {
        let stored = self.stored().await?;
        let row = stored.rows.into_iter().find(|row| row.name == name).ok_or_else(|| not_found(name))?;
        let spec = CronSpec::parse(&row.spec, &row.zone)?;
        // The next time is a promise; it may be late, or ahead of a clock that was set back.
        let after = row.next_at.map_or(stored.now, |next| next - 1);
        Ok(spec.upcoming(after, n))
    }

    /// Stops a schedule: its times pass without a job until it is [resumed](Self::resume). It stays paused when
    /// processes start and definitions change.
    ///
    /// # Errors
    /// `NotFound`. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(schedules: polybus_patterns::cron::ScheduleAdmin) -> polybus_core::Result<()> {
    /// schedules.pause("nightly").await
    /// # }
    /// ```
    pub async fn pause(&self, name: &str) -> Result<()> {
        self.change(name, |row, _| row.paused = true).await
    }

    /// Lets a schedule fire again, from its next time on.
    ///
    /// # Errors
    /// `NotFound`. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(schedules: polybus_patterns::cron::ScheduleAdmin) -> polybus_core::Result<()> {
    /// schedules.resume("nightly").await
    /// # }
    /// ```
    pub async fn resume(&self, name: &str) -> Result<()> {
        self.change(name, |row, now| {
            // Times that passed meanwhile are not missed ones.
            if row.paused
                && row.next_at.is_some_and(|next| next <= now)
                && let Ok(spec) = CronSpec::parse(&row.spec, &row.zone)
            {
                row.next_at = spec.next_after(now);
            }
            row.paused = false;
        })
        .await
    }

    /// Lets a schedule fire once now, beside its times. A process that has the schedule does so within about a second;
    /// with [`Overlap::Queue`](super::Overlap::Queue) or [`Skip`](super::Overlap::Skip), once its last job is finished.
    ///
    /// # Errors
    /// `NotFound`. `InvalidArgument` while it is paused. `Conflict` while 100 times wait for its last job. Those of the
    /// database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(schedules: polybus_patterns::cron::ScheduleAdmin) -> polybus_core::Result<()> {
    /// schedules.run_now("nightly").await
    /// # }
    /// ```
    pub async fn run_now(&self, name: &str) -> Result<()> {
        let mut refused = None;
        self.change(name, |row, now| {
            refused = match (row.paused, with_pending(&row.pending, now)) {
                (true, _) => Some(Error::invalid("the schedule is paused: resume it first")),
                (false, None) => {
                    let text = "too many times wait for the last job of the schedule to be finished";
                    Some(Error::new(ErrorKind::Conflict, text).safe())
                }
                (false, Some(pending)) => {
                    row.pending = pending;
                    None
                }
            };
        })
        .await?;
        match refused {
            Some(error) => Err(error.with_context("schedule", name)),
            None => Ok(()),
        }
    }

    /// Removes a schedule that no program defines any more. Its jobs stay. One that a running process has comes back
    /// within a second.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(schedules: polybus_patterns::cron::ScheduleAdmin) -> polybus_core::Result<()> {
    /// println!("it was there: {}", schedules.remove("nightly").await?);
    /// # Ok(()) }
    /// ```
    pub async fn remove(&self, name: &str) -> Result<bool> {
        in_time(rows_limit(&*self.control), self.table.remove(name)).await
    }

    async fn stored(&self) -> Result<Schedules> {
        in_time(rows_limit(&*self.control), self.table.list()).await
    }

    async fn change(&self, name: &str, mut change: impl FnMut(&mut StoredSchedule, i64)) -> Result<()> {
        for _ in 0..TRIES {
            let stored = self.stored().await?;
            let row = stored.rows.into_iter().find(|row| row.name == name).ok_or_else(|| not_found(name))?;
            let mut changed = row.clone();
            change(&mut changed, stored.now);
            if changed == row {
                return Ok(());
            }
            if in_time(rows_limit(&*self.control), self.table.write(&changed, &[])).await?.is_some() {
                self.control.changes().committed();
                return Ok(());
            }
        }
        let text = "other processes write the schedule all the time; try again";
        Err(Error::new(ErrorKind::Conflict, text).with_context("schedule", name))
    }
}

fn not_found(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such schedule").with_context("schedule", name)
}
