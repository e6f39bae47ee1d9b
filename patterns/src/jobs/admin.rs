//! Looking after jobs: for a command line, a dashboard, and people at night.

use std::sync::Arc;

use polybus_core::{Envelope, Error, Result};

use super::{Jobs, worker::COUNT_CAP};
use crate::{
    cron::ScheduleAdmin,
    store::{
        ChangeSignal, JobCount, JobFilter, JobState, JobStore, JobTable, ScheduleTable, StoreControl, StoredJob,
        StoredQueue,
    },
    stored_head::decode_head,
};

/// The most jobs of one page.
const MAX_PAGE: u32 = 10_000;

/// What can be done with jobs by hand. [`Jobs::admin`] makes it. Cheap to clone, and without the store's type.
///
/// Each call is a transaction of its own. One that waits for a row waits for the transaction of the handler that has
/// it.
///
/// ```no_run
/// # use polybus_patterns::{jobs::Jobs, store::{JobFilter, JobStore}};
/// # async fn example<S: JobStore>(jobs: Jobs<S>) -> polybus_core::Result<()> {
/// let admin = jobs.admin();
/// for job in admin.list(&JobFilter::discarded(), 0, 100).await? {
///     println!("{} {} {:?}", job.id, job.kind, job.last_error);
/// }
/// let retried = admin.retry(&JobFilter::discarded().kind("invoice.send")).await?;
/// println!("{retried} run again");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct JobAdmin {
    table: Arc<dyn JobTable>,
    schedules: Arc<dyn ScheduleTable>,
    control: Arc<dyn StoreControl>,
}

impl<S: JobStore> Jobs<S> {
    /// What can be done with jobs by hand. No I/O.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::Jobs, store::JobStore};
    /// # fn example<S: JobStore>(jobs: Jobs<S>) {
    /// let admin = jobs.admin();
    /// # }
    /// ```
    pub fn admin(&self) -> JobAdmin {
        JobAdmin { table: self.store.jobs(), schedules: self.store.schedules(), control: self.store.control() }
    }
}

impl JobAdmin {
    /// Jobs with ids above `after`, in the order of their ids, at most `limit` and at most 10,000. The next page begins
    /// after the last id of this one.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::JobAdmin, store::{JobFilter, JobState}};
    /// # async fn example(admin: JobAdmin) -> polybus_core::Result<()> {
    /// let running = admin.list(&JobFilter::default().state(JobState::Running), 0, 50).await?;
    /// println!("{}", running.len());
    /// # Ok(()) }
    /// ```
    pub async fn list(&self, filter: &JobFilter, after: i64, limit: u32) -> Result<Vec<StoredJob>> {
        self.table.list(filter, after, limit.min(MAX_PAGE)).await
    }

    /// A job; `None` if there is none with this id any more.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::jobs::JobAdmin) -> polybus_core::Result<()> {
    /// if let Some(job) = admin.show(7).await? {
    ///     println!("{:?}: {:?} % {:?}", job.state, job.progress, job.note);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn show(&self, id: i64) -> Result<Option<StoredJob>> {
        Ok(self.table.list(&JobFilter::ids([id]), id.saturating_sub(1), 1).await?.pop())
    }

    /// Lets jobs run at once: scheduled ones before their time, and finished ones anew, under their old id and with all
    /// their attempts. Completed ones only if the filter names their ids or that state. One whose unique key another
    /// job has stays as it is. Answers how many.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::JobAdmin, store::JobFilter};
    /// # async fn example(admin: JobAdmin) -> polybus_core::Result<()> {
    /// admin.retry(&JobFilter::discarded().error("malformed")).await?;
    /// # Ok(()) }
    /// ```
    pub async fn retry(&self, filter: &JobFilter) -> Result<u64> {
        let retried = self.table.retry(filter).await?;
        if retried > 0 {
            self.changes().committed();
        }
        Ok(retried)
    }

    /// Cancels jobs. Those that wait are finished as cancelled; those that run are told by
    /// [`JobContext::cancelled`](super::JobContext::cancelled), within half of their lease, and are not run again
    /// unless they end well. Answers how many.
    ///
    /// # Errors
    /// `InvalidArgument` for a filter without a condition, which would cancel everything: name a state at least. Those
    /// of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::JobAdmin, store::JobFilter};
    /// # async fn example(admin: JobAdmin) -> polybus_core::Result<()> {
    /// admin.cancel(&JobFilter::ids([7, 8])).await?;
    /// # Ok(()) }
    /// ```
    pub async fn cancel(&self, filter: &JobFilter) -> Result<u64> {
        refuse_all("cancel", filter)?;
        self.table.cancel(filter).await
    }

    /// Gives up jobs that wait: they are finished as discarded, and can be retried. With the filter's state
    /// `Finished(Completed)`, completed jobs count as discarded from now on. Answers how many.
    ///
    /// # Errors
    /// `InvalidArgument` for a filter without a condition. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::JobAdmin, store::JobFilter};
    /// # async fn example(admin: JobAdmin) -> polybus_core::Result<()> {
    /// admin.discard(&JobFilter::default().kind("invoice.send"), "sent by post").await?;
    /// # Ok(()) }
    /// ```
    pub async fn discard(&self, filter: &JobFilter, why: &str) -> Result<u64> {
        refuse_all("discard", filter)?;
        self.table.discard(filter, &format!("discarded-by-hand: {why}")).await
    }

    /// Deletes finished jobs. Answers how many.
    ///
    /// # Errors
    /// `InvalidArgument` for a filter without a condition. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::JobAdmin, store::JobFilter};
    /// # async fn example(admin: JobAdmin) -> polybus_core::Result<()> {
    /// admin.delete(&JobFilter::discarded().queue("mail")).await?;
    /// # Ok(()) }
    /// ```
    pub async fn delete(&self, filter: &JobFilter) -> Result<u64> {
        refuse_all("delete", filter)?;
        self.table.delete(filter).await
    }

    /// How many jobs are in each queue and state, each number counted up to 100,000.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::jobs::JobAdmin) -> polybus_core::Result<()> {
    /// for count in admin.counts().await? {
    ///     println!("{} {:?} {}", count.queue, count.state, count.jobs);
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn counts(&self) -> Result<Vec<JobCount>> {
        self.table.counts(COUNT_CAP).await
    }

    /// The queues that have jobs, or that are paused.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::jobs::JobAdmin) -> polybus_core::Result<()> {
    /// for queue in admin.queues().await? {
    ///     println!("{}{}", queue.name, if queue.paused { ", paused" } else { "" });
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn queues(&self) -> Result<Vec<StoredQueue>> {
        self.table.queues().await
    }

    /// Stops a queue: no worker claims jobs of it until it is [resumed](Self::resume). Those that run go on, and jobs
    /// can be enqueued.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::jobs::JobAdmin) -> polybus_core::Result<()> {
    /// admin.pause("mail").await
    /// # }
    /// ```
    pub async fn pause(&self, queue: &str) -> Result<()> {
        self.table.set_paused(queue, true).await
    }

    /// Lets workers claim jobs of a queue again.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::jobs::JobAdmin) -> polybus_core::Result<()> {
    /// admin.resume("mail").await
    /// # }
    /// ```
    pub async fn resume(&self, queue: &str) -> Result<()> {
        self.table.set_paused(queue, false).await?;
        self.changes().committed();
        Ok(())
    }

    /// The schedules, and what can be done with them.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::jobs::JobAdmin) -> polybus_core::Result<()> {
    /// for schedule in admin.schedules().list().await? {
    ///     println!("{} next at {:?}", schedule.name, schedule.next_at);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn schedules(&self) -> ScheduleAdmin {
        ScheduleAdmin::new(self.schedules.clone(), self.control.clone())
    }

    fn changes(&self) -> &ChangeSignal {
        self.control.changes()
    }
}

/// A mistake in a program must not end everything that waits.
fn refuse_all(what: &str, filter: &JobFilter) -> Result<()> {
    match *filter == JobFilter::default() {
        true => Err(Error::invalid(format!("{what} all jobs: name a state, a queue, a kind, or ids"))),
        false => Ok(()),
    }
}

impl StoredJob {
    /// The job as a message: its arguments, headers, correlation id, trace.
    ///
    /// # Errors
    /// `Malformed` where no version of polybus has written it.
    ///
    /// ```no_run
    /// # async fn example(admin: polybus_patterns::jobs::JobAdmin) -> polybus_core::Result<()> {
    /// if let Some(job) = admin.show(7).await? {
    ///     println!("{:?}", job.message()?.correlation_id);
    /// }
    /// # Ok(()) }
    /// ```
    pub fn message(&self) -> Result<Envelope> {
        decode_head(&self.head, self.data.clone())
    }
}

impl JobFilter {
    /// The jobs with these ids.
    ///
    /// ```
    /// use polybus_patterns::store::JobFilter;
    ///
    /// let filter = JobFilter::ids([7, 8]);
    /// ```
    pub fn ids(ids: impl IntoIterator<Item = i64>) -> Self {
        Self { ids: Some(ids.into_iter().collect()), ..Self::default() }
    }

    /// The jobs that were given up.
    ///
    /// ```
    /// use polybus_patterns::store::JobFilter;
    ///
    /// let filter = JobFilter::discarded().kind("invoice.send");
    /// ```
    pub fn discarded() -> Self {
        Self::default().state(JobState::Finished(crate::store::JobOutcome::Discarded))
    }

    /// Of them those in this state.
    ///
    /// ```
    /// use polybus_patterns::store::{JobFilter, JobState};
    ///
    /// let filter = JobFilter::default().state(JobState::Running);
    /// ```
    pub fn state(mut self, state: JobState) -> Self {
        self.state = Some(state);
        self
    }

    /// Of them those of this queue.
    ///
    /// ```
    /// let filter = polybus_patterns::store::JobFilter::discarded().queue("mail");
    /// ```
    pub fn queue(mut self, queue: impl Into<String>) -> Self {
        self.queue = Some(queue.into());
        self
    }

    /// Of them those of this kind.
    ///
    /// ```
    /// let filter = polybus_patterns::store::JobFilter::discarded().kind("invoice.send");
    /// ```
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = Some(kind.into());
        self
    }

    /// Of them those of this schedule.
    ///
    /// ```
    /// let filter = polybus_patterns::store::JobFilter::discarded().schedule("nightly");
    /// ```
    pub fn schedule(mut self, schedule: impl Into<String>) -> Self {
        self.schedule = Some(schedule.into());
        self
    }

    /// Of them those whose last error begins with this text, such as the reason `malformed`.
    ///
    /// ```
    /// let filter = polybus_patterns::store::JobFilter::discarded().error("max-deliveries-exceeded");
    /// ```
    pub fn error(mut self, begins_with: impl Into<String>) -> Self {
        self.error = Some(begins_with.into());
        self
    }
}
