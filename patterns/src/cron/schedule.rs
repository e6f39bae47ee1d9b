//! A schedule as a program defines it.

use polybus_core::{Error, Result, time::OffsetDateTime};
use uuid::Uuid;

use super::{CronSpec, Missed, Overlap};
use crate::{hash::hash_of_parts, jobs::NewJob};

/// The longest name of a schedule, in bytes.
const MAX_NAME: usize = 128;

/// A schedule: at its times, a job is written. Give it to [`JobWorker::cron`](crate::jobs::JobWorker::cron).
///
/// ```
/// # use polybus_core::Event;
/// # use polybus_patterns::jobs::Job;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Nightly {}
/// # impl Event for Nightly { const TYPE: &'static str = "report.nightly"; const VERSION: u32 = 1; }
/// # impl Job for Nightly {}
/// use polybus_patterns::cron::{Cron, Missed, Overlap};
///
/// let nightly = Cron::new("nightly", "30 2 * * *", "Europe/Berlin", Nightly {})
///     .missed(Missed::RunOnce)
///     .overlap(Overlap::Skip);
/// assert_eq!(nightly.name(), "nightly");
/// ```
#[derive(Clone, Debug)]
#[must_use = "give it to JobWorker::cron"]
pub struct Cron {
    name: Box<str>,
    spec: Box<str>,
    zone: Box<str>,
    job: NewJob,
    missed: Missed,
    overlap: Overlap,
}

impl Cron {
    /// A schedule with this name, which no other one has in these tables, at these times in this zone.
    ///
    /// The times are five fields (minute, hour, day of the month, month, day of the week), or six with the seconds in
    /// front: see [`CronSpec`]. The zone is an IANA name, such as `Europe/Berlin`, or `UTC`. What is wrong with them is
    /// told when the worker runs.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{cron::Cron, jobs::{Job, NewJob}};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Nightly {}
    /// # impl Event for Nightly { const TYPE: &'static str = "report.nightly"; const VERSION: u32 = 1; }
    /// # impl Job for Nightly {}
    /// let nightly = Cron::new("nightly", "30 2 * * *", "Europe/Berlin", NewJob::of(&Nightly {}).queue("reports"));
    /// ```
    pub fn new(
        name: impl Into<Box<str>>,
        spec: impl Into<Box<str>>,
        zone: impl Into<Box<str>>,
        job: impl Into<NewJob>,
    ) -> Self {
        Self {
            name: name.into(),
            spec: spec.into(),
            zone: zone.into(),
            job: job.into(),
            missed: Missed::default(),
            overlap: Overlap::default(),
        }
    }

    /// Sets what becomes of times that passed while no worker had the schedule. Default: [`Missed::RunOnce`].
    ///
    /// ```
    /// # use polybus_patterns::cron::{Cron, Missed};
    /// # fn example(cron: Cron) -> Cron {
    /// cron.missed(Missed::All(10))
    /// # }
    /// ```
    pub fn missed(mut self, policy: Missed) -> Self {
        self.missed = policy;
        self
    }

    /// Sets what becomes of a time at which the last job of the schedule is not finished. Default: [`Overlap::Allow`].
    ///
    /// ```
    /// # use polybus_patterns::cron::{Cron, Overlap};
    /// # fn example(cron: Cron) -> Cron {
    /// cron.overlap(Overlap::Queue)
    /// # }
    /// ```
    pub fn overlap(mut self, policy: Overlap) -> Self {
        self.overlap = policy;
        self
    }

    /// The name.
    ///
    /// ```
    /// # fn example(cron: polybus_patterns::cron::Cron) {
    /// println!("{}", cron.name());
    /// # }
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn spec_text(&self) -> &str {
        &self.spec
    }

    pub(super) fn zone(&self) -> &str {
        &self.zone
    }

    pub(super) fn kind(&self) -> &'static str {
        self.job.kind
    }

    pub(super) fn queue(&self) -> &str {
        &self.job.queue
    }

    pub(super) fn missed_policy(&self) -> Missed {
        self.missed
    }

    pub(super) fn overlap_policy(&self) -> Overlap {
        self.overlap
    }

    /// Looks at all of it.
    ///
    /// # Errors
    /// `InvalidArgument`, with the name of the schedule.
    pub(super) fn check(&self) -> Result<CronSpec> {
        let check = || {
            if self.name.is_empty() || self.name.len() > MAX_NAME || self.name.contains(char::is_control) {
                return Err(Error::invalid(format!(
                    "the name of a schedule must have 1 to {MAX_NAME} bytes, on one line"
                )));
            }
            self.job.check()?;
            if self.job.unique.is_some() {
                let text = "a unique job of a schedule: use Cron::overlap, which knows the last job";
                return Err(Error::invalid(text));
            }
            CronSpec::parse(&self.spec, &self.zone)
        };
        check().map_err(|e| e.with_context("schedule", &self.name))
    }

    /// Tells this definition from others.
    pub(super) fn hash(&self) -> Result<String> {
        let message = self.job.message.clone()?;
        let data = String::from_utf8_lossy(&message.data);
        let headers = format!("{:?}", message.headers);
        let version = message.schema_version.unwrap_or_default().to_string();
        let (priority, attempts) = (self.job.priority.to_string(), self.job.max_attempts.to_string());
        let (missed, overlap, when) =
            (format!("{:?}", self.missed), format!("{:?}", self.overlap), format!("{:?}", self.job.when));
        let parts = [
            &*self.spec,
            &*self.zone,
            self.job.kind,
            &version,
            &data,
            &headers,
            &self.job.queue,
            &priority,
            &attempts,
            &missed,
            &overlap,
            &when,
        ];
        Ok(hash_of_parts(&parts).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The job of one time.
    pub(super) fn job_at(&self, micros: i64) -> NewJob {
        let mut job = self.job.clone();
        job.schedule = Some(self.name.clone());
        let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000);
        job.message = job.message.map(|message| {
            let message = message.id(Uuid::now_v7().to_string());
            match at {
                Ok(at) => message.time(at),
                Err(_) => message,
            }
        });
        job
    }
}
