//! What the handler of a job gets beside its arguments.

use std::{fmt, ops::Deref, sync::Arc, time::Duration};

use polybus_core::{Envelope, Error, ErrorKind, HandlerContext, HandlerError, Result, time::OffsetDateTime};
use serde::Serialize;

use super::run::JobRun;

/// The largest result of a job, as JSON.
const MAX_RESULT: usize = 64 << 10;

/// The longest note, in bytes.
const MAX_NOTE: usize = 2048;

/// The context of one run of a job. Cheap to clone.
///
/// It derefs to the [`HandlerContext`] of all workers: the attempt, whether it is the last one, whether the lease is
/// lost.
///
/// ```
/// # use polybus_core::{Event, HandlerError};
/// # use polybus_patterns::jobs::{Job, JobContext};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
/// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
/// # impl Job for SendInvoice {}
/// async fn send(cx: JobContext, job: SendInvoice) -> Result<(), HandlerError> {
///     println!("order {} at attempt {}", job.order, cx.attempt());
///     cx.progress(50, "rendered").await?;
///     cx.set_result(&"sent")?;
///     Ok(())
/// }
/// ```
#[derive(Clone)]
pub struct JobContext {
    handler: HandlerContext,
    message: Envelope,
    /// `None` for a job that came from a broker.
    run: Option<Arc<JobRun>>,
}

impl JobContext {
    pub(super) fn new(handler: HandlerContext, message: Envelope) -> Self {
        let run = handler.native::<Arc<JobRun>>().cloned();
        Self { handler, message, run }
    }

    pub(super) fn run(&self) -> Option<&Arc<JobRun>> {
        self.run.as_ref()
    }

    /// The context of a job without a worker, for tests of handlers. Its progress goes nowhere, and nobody cancels it.
    ///
    /// ```
    /// use polybus_core::{Envelope, HandlerContext, Source};
    /// use polybus_patterns::jobs::JobContext;
    ///
    /// let handler = HandlerContext::detached(&Source::queue("mail"), 2);
    /// let cx = JobContext::detached(handler, Envelope::new("invoice.send", r#"{"order":7}"#));
    /// assert_eq!((cx.attempt(), cx.id()), (2, None));
    /// ```
    pub fn detached(handler: HandlerContext, message: Envelope) -> Self {
        Self { handler, message, run: None }
    }

    /// The job's id in the tables; `None` for one that came from a broker.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # fn example(cx: JobContext) {
    /// println!("job {:?}", cx.id());
    /// # }
    /// ```
    pub fn id(&self) -> Option<i64> {
        self.run.as_ref().map(|run| run.claim.id)
    }

    /// The job as a message: its kind, arguments, headers, correlation id, trace.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # fn example(cx: JobContext) {
    /// println!("for {:?}", cx.message().headers.get("tenant"));
    /// # }
    /// ```
    pub fn message(&self) -> &Envelope {
        &self.message
    }

    /// The name of the schedule that the job comes from.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # fn example(cx: JobContext) {
    /// println!("{:?}", cx.schedule()); // such as Some("nightly")
    /// # }
    /// ```
    pub fn schedule(&self) -> Option<&str> {
        self.run.as_ref()?.schedule.as_deref()
    }

    /// The time that the job's schedule has fired for, which may be long ago. `None` for a job without a schedule.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # fn example(cx: JobContext) {
    /// if let Some(at) = cx.scheduled_at() {
    ///     println!("the report of {}", at.date());
    /// }
    /// # }
    /// ```
    pub fn scheduled_at(&self) -> Option<OffsetDateTime> {
        self.schedule()?;
        self.message.time
    }

    /// Says how far the job has come, in percent, with a note for people. Both are shown by
    /// [`JobAdmin::show`](crate::jobs::JobAdmin::show), and stay when the job is finished.
    ///
    /// It is one statement, so once a second is often enough. The note is cut at 2 KiB; no secret belongs into it.
    ///
    /// # Errors
    /// `LockLost` where another worker has the job: end the work. `Unsupported` on a broker. Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, or all of it.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # async fn example(cx: JobContext) -> polybus_core::Result<()> {
    /// cx.progress(40, "rendered").await
    /// # }
    /// ```
    pub async fn progress(&self, percent: u8, note: impl Into<Option<&str>>) -> Result<()> {
        let Some(run) = self.in_table("progress")? else { return Ok(()) };
        let note = note.into().map(|note| &note[..note.floor_char_boundary(MAX_NOTE)]);
        let written = run.table.progress(&run.claim, Some(i16::from(percent.min(100))), note).await?;
        if written {
            return Ok(());
        }
        run.set_lost();
        Err(Error::new(ErrorKind::LockLost, "the job's lease was lost: another worker may run it"))
    }

    /// Keeps what the job has brought, as JSON of at most 64 KiB, once the handler ends. A later call replaces it.
    ///
    /// # Errors
    /// `PayloadTooLarge`, `InvalidArgument` for what is no JSON, and `Unsupported` on a broker.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # fn example(cx: JobContext) -> polybus_core::Result<()> {
    /// cx.set_result(&vec!["a.pdf", "b.pdf"])
    /// # }
    /// ```
    pub fn set_result(&self, result: &impl Serialize) -> Result<()> {
        let wrong = |e| Error::invalid("the result of a job cannot be written as JSON").with_source(e);
        let result = serde_json::to_string(result).map_err(wrong)?;
        if result.len() > MAX_RESULT {
            let text = format!(
                "a result of {} bytes, and {MAX_RESULT} are kept: keep it elsewhere, with its place as the result",
                result.len()
            );
            return Err(Error::new(ErrorKind::PayloadTooLarge, text));
        }
        if let Some(run) = self.in_table("set_result")? {
            run.set_result(result);
        }
        Ok(())
    }

    /// The failure that runs the job again after this much time without counting the attempt: it is not its fault.
    ///
    /// On a broker the attempt counts.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # use polybus_core::HandlerError;
    /// # use std::time::Duration;
    /// # async fn example(cx: JobContext, is_closed: bool) -> Result<(), HandlerError> {
    /// if is_closed {
    ///     return Err(cx.snooze(Duration::from_secs(3600)));
    /// }
    /// # Ok(()) }
    /// ```
    pub fn snooze(&self, delay: Duration) -> HandlerError {
        HandlerError::retry_after(delay, Snoozed(delay))
    }

    /// Whether the handler should end: somebody has cancelled the job, or the worker shuts down.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # async fn example(cx: JobContext) -> Result<(), polybus_core::HandlerError> {
    /// for page in 0..1000 {
    ///     if cx.is_cancelled() {
    ///         return Err("cancelled".into());
    ///     }
    ///     println!("page {page}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.is_job_cancelled() || self.handler.is_cancelled()
    }

    /// Whether somebody has cancelled this job. A handler that ends with an error then is not run again. It is seen
    /// when the lease is renewed, after half of its term at the latest.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # fn example(cx: JobContext) {
    /// println!("{}", cx.is_job_cancelled());
    /// # }
    /// ```
    pub fn is_job_cancelled(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.is_cancelled())
    }

    /// Waits until [`is_cancelled`](Self::is_cancelled).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```
    /// # use polybus_patterns::jobs::JobContext;
    /// # async fn example(cx: JobContext) -> Result<(), polybus_core::HandlerError> {
    /// # let work = async {};
    /// tokio::select! {
    ///     () = work => {}
    ///     () = cx.cancelled() => return Err("cancelled".into()),
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn cancelled(&self) {
        match &self.run {
            None => self.handler.cancelled().await,
            Some(run) => tokio::select! {
                () = run.until_cancelled() => {}
                () = self.handler.cancelled() => {}
            },
        }
    }

    /// The run in the tables. `None` in tests.
    fn in_table(&self, what: &str) -> Result<Option<&Arc<JobRun>>> {
        match &self.run {
            Some(run) => Ok(Some(run)),
            // A detached context has no limit of attempts, and a broker's has.
            None if self.handler.max_deliveries().is_none() => Ok(None),
            None => Err(Error::unsupported(format!("{what} of a job that came from a broker"))),
        }
    }
}

impl Deref for JobContext {
    type Target = HandlerContext;

    fn deref(&self) -> &HandlerContext {
        &self.handler
    }
}

impl fmt::Debug for JobContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobContext").field("id", &self.id()).field("handler", &self.handler).finish_non_exhaustive()
    }
}

/// What a handler that snoozes fails with.
#[derive(Debug)]
pub(super) struct Snoozed(pub(super) Duration);

impl fmt::Display for Snoozed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "snoozed for {:?}", self.0)
    }
}

impl std::error::Error for Snoozed {}
