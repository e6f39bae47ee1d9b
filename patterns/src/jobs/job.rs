//! What a job is, as a Rust type, and what is asked for when one is written.

use std::time::Duration;

use polybus_core::{Envelope, Error, Event, Result, time::OffsetDateTime};

/// The queue of jobs that name none.
pub const DEFAULT_QUEUE: &str = "default";

/// How often a job is tried at most by default.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 5;

/// The arguments of a kind of jobs, with the defaults of that kind.
///
/// The kind is the [`TYPE`](Event::TYPE) of the event, and arguments are versioned as those of events are: see
/// [`JobWorker::types`](super::JobWorker::types). A new field with a default needs no new version.
///
/// ```
/// use polybus_core::Event;
/// use polybus_patterns::jobs::Job;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct SendInvoice {
///     order: i64,
/// }
///
/// impl Event for SendInvoice {
///     const TYPE: &'static str = "invoice.send";
///     const VERSION: u32 = 1;
/// }
///
/// impl Job for SendInvoice {
///     const QUEUE: &'static str = "mail";
/// }
/// ```
pub trait Job: Event {
    /// The queue: 1 to 63 of `a-z`, `0-9` and `-`, beginning with a letter or a digit.
    const QUEUE: &'static str = DEFAULT_QUEUE;
    /// How often it is tried at most; at least 1.
    const MAX_ATTEMPTS: u32 = DEFAULT_MAX_ATTEMPTS;
    /// Lower runs first. Within a priority the job runs first that could run first.
    const PRIORITY: i16 = 0;
}

/// How long a job keeps others like it from being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unique {
    /// Until it is claimed for the first time: there is one waiting at most, and one that was written while the last
    /// one runs sees what that one did not.
    UntilStarted,
    /// Until it is completed, discarded or cancelled.
    UntilDone,
    /// For this long from when it is written, whatever becomes of it.
    For(Duration),
}

/// When a job may run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum When {
    After(Duration),
    At(OffsetDateTime),
}

/// What makes two jobs the same.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SameBy {
    /// The kind, its version and the arguments.
    Arguments,
    /// The kind and this text.
    Key(Box<str>),
}

/// A job that is about to be written: its arguments, and how it is to run. The arguments alone will do where the
/// defaults of their kind are right.
///
/// ```
/// # use polybus_core::Event;
/// # use polybus_patterns::jobs::{Job, NewJob, Unique};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
/// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
/// # impl Job for SendInvoice {}
/// use std::time::Duration;
///
/// let job = NewJob::of(&SendInvoice { order: 7 })
///     .queue("mail")
///     .priority(1)
///     .delay(Duration::from_secs(300))
///     .max_attempts(10)
///     .unique(Unique::UntilDone);
/// let same = NewJob::from(SendInvoice { order: 7 });
/// # let _ = (job, same);
/// ```
#[derive(Clone, Debug)]
#[must_use = "enqueue it"]
pub struct NewJob {
    /// The error of arguments that cannot be written comes when the job is enqueued.
    pub(crate) message: Result<Envelope>,
    pub(crate) kind: &'static str,
    pub(crate) queue: Box<str>,
    pub(crate) priority: i16,
    pub(crate) default_priority: i16,
    pub(crate) max_attempts: u32,
    pub(crate) default_attempts: u32,
    pub(crate) when: When,
    pub(crate) unique: Option<(Unique, SameBy)>,
    pub(crate) schedule: Option<Box<str>>,
}

impl NewJob {
    /// A job with these arguments and the defaults of their kind.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::jobs::{Job, NewJob};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// let job = NewJob::of(&SendInvoice { order: 7 });
    /// ```
    pub fn of<J: Job>(arguments: &J) -> Self {
        Self {
            message: Envelope::event(arguments),
            kind: J::TYPE,
            queue: J::QUEUE.into(),
            priority: J::PRIORITY,
            default_priority: J::PRIORITY,
            max_attempts: J::MAX_ATTEMPTS,
            default_attempts: J::MAX_ATTEMPTS,
            when: When::After(Duration::ZERO),
            unique: None,
            schedule: None,
        }
    }

    /// Sets the queue.
    ///
    /// ```
    /// # use polybus_patterns::jobs::NewJob;
    /// # fn example(job: NewJob) -> NewJob {
    /// job.queue("mail")
    /// # }
    /// ```
    pub fn queue(mut self, queue: impl Into<Box<str>>) -> Self {
        self.queue = queue.into();
        self
    }

    /// Sets the priority. Lower runs first, strictly: as long as there are jobs of priority 0, none of priority 1
    /// begins. What must not starve goes to a queue of its own.
    ///
    /// ```
    /// # use polybus_patterns::jobs::NewJob;
    /// # fn example(job: NewJob) -> NewJob {
    /// job.priority(-1) // before those of the default 0
    /// # }
    /// ```
    pub fn priority(mut self, priority: i16) -> Self {
        self.priority = priority;
        self
    }

    /// Sets how often the job is tried at most, at least 1. Default: [`Job::MAX_ATTEMPTS`].
    ///
    /// ```
    /// # use polybus_patterns::jobs::NewJob;
    /// # fn example(job: NewJob) -> NewJob {
    /// job.max_attempts(25)
    /// # }
    /// ```
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// Runs it this much later at the earliest, by the database's clock.
    ///
    /// ```
    /// # use polybus_patterns::jobs::NewJob;
    /// # fn example(job: NewJob) -> NewJob {
    /// job.delay(std::time::Duration::from_secs(300))
    /// # }
    /// ```
    pub fn delay(mut self, delay: Duration) -> Self {
        self.when = When::After(delay);
        self
    }

    /// Runs it at this time at the earliest, by the database's clock. A time that has passed is now.
    ///
    /// ```
    /// # use polybus_patterns::jobs::NewJob;
    /// # fn example(job: NewJob, noon: polybus_core::time::OffsetDateTime) -> NewJob {
    /// job.at(noon)
    /// # }
    /// ```
    pub fn at(mut self, time: OffsetDateTime) -> Self {
        self.when = When::At(time);
        self
    }

    /// Writes the job only if there is none of the same kind with the same arguments, byte by byte as JSON. It holds
    /// across queues, transactions and processes. The queue, the priority and the time do not matter.
    ///
    /// Where another transaction has written such a job and has not ended, this waits for its end.
    ///
    /// ```
    /// # use polybus_patterns::jobs::{NewJob, Unique};
    /// # fn example(job: NewJob) -> NewJob {
    /// job.unique(Unique::UntilDone)
    /// # }
    /// ```
    pub fn unique(mut self, until: Unique) -> Self {
        self.unique = Some((until, SameBy::Arguments));
        self
    }

    /// As [`unique`](Self::unique), but jobs of the kind are the same if they have this key, whatever their arguments.
    ///
    /// ```
    /// # use polybus_patterns::jobs::{NewJob, Unique};
    /// # fn example(job: NewJob) -> NewJob {
    /// job.unique_by(Unique::UntilStarted, "customer-7")
    /// # }
    /// ```
    pub fn unique_by(mut self, until: Unique, key: impl Into<Box<str>>) -> Self {
        self.unique = Some((until, SameBy::Key(key.into())));
        self
    }

    /// Adds a header, which the handler finds in its message.
    ///
    /// ```
    /// # use polybus_patterns::jobs::NewJob;
    /// # fn example(job: NewJob) -> NewJob {
    /// job.header("tenant", "acme")
    /// # }
    /// ```
    pub fn header(mut self, key: &str, value: &str) -> Self {
        self.message = self.message.map(|message| message.header(key, value));
        self
    }

    /// # Errors
    /// `InvalidArgument` for what no job can have.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::invalid(text).with_context("kind", self.kind));
        polybus_core::driver::kit::names::check_name("job queue", &self.queue)?;
        if self.max_attempts == 0 {
            return wrong("max_attempts of a job must be at least 1".into());
        }
        if i32::try_from(self.max_attempts).is_err() {
            return wrong(format!("max_attempts of a job: {} is more than {}", self.max_attempts, i32::MAX));
        }
        match &self.unique {
            Some((Unique::For(span), _)) if span.is_zero() => wrong("a job that is unique for no time".into()),
            _ => Ok(()),
        }
    }
}

impl<J: Job> From<J> for NewJob {
    fn from(arguments: J) -> Self {
        Self::of(&arguments)
    }
}
