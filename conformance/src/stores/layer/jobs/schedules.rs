//! Schedules.

use std::sync::Arc;

use polybus_core::{Result, driver::async_trait};
use polybus_patterns::store::{JobFilter, JobInserted, JobStore, NewJobRow, ScheduleTable, Schedules, StoredSchedule};

use super::super::LayerState;
use crate::stores::fault::StoreFault;

pub(super) struct SuiteSchedules<S> {
    pub(super) store: S,
    pub(super) table: Arc<dyn ScheduleTable>,
    pub(super) state: Arc<LayerState>,
}

impl<S: JobStore> SuiteSchedules<S> {
    async fn insert(&self, jobs: &[NewJobRow]) -> Result<Vec<JobInserted>> {
        let mut tx = self.store.begin().await?;
        let inserted = self.store.insert_jobs(&mut tx, jobs).await?;
        S::commit(tx).await?;
        Ok(inserted)
    }
}

#[async_trait]
impl<S: JobStore> ScheduleTable for SuiteSchedules<S> {
    async fn list(&self) -> Result<Schedules> {
        let mut all = self.table.list().await?;
        for row in &mut all.rows {
            match self.state.fault {
                Some(StoreFault::ScheduleForgetsJobs) => (row.last_job, row.is_unfinished) = (None, false),
                Some(StoreFault::ScheduleAlwaysUnfinished) => row.is_unfinished = row.last_job.is_some(),
                _ => {}
            }
        }
        Ok(all)
    }

    async fn write(&self, schedule: &StoredSchedule, jobs: &[NewJobRow]) -> Result<Option<Vec<JobInserted>>> {
        let mut schedule = schedule.clone();
        match self.state.fault {
            Some(StoreFault::ScheduleWithoutVersion) => {
                let rows = self.table.list().await?.rows;
                schedule.version = rows.iter().find(|row| row.name == schedule.name).map_or(0, |row| row.version);
            }
            Some(StoreFault::ScheduleJobsApart) => {
                let written = self.table.write(&schedule, &[]).await?;
                return if written.is_some() { self.insert(jobs).await.map(Some) } else { Ok(None) };
            }
            _ => {}
        }
        let written = self.table.write(&schedule, jobs).await?;
        if written.is_none() && self.state.has(StoreFault::ScheduleJobsAnyway) {
            self.insert(jobs).await?;
        }
        Ok(written)
    }

    async fn remove(&self, name: &str) -> Result<bool> {
        if self.state.has(StoreFault::ScheduleTakesJobs) {
            let (mut of_it, jobs) = (JobFilter::default(), self.store.jobs());
            of_it.schedule = Some(name.to_owned());
            jobs.cancel(&of_it).await?;
            jobs.delete(&of_it).await?;
        }
        self.table.remove(name).await
    }
}
