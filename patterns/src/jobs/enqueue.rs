//! Writing jobs.

use std::time::Duration;

use bytes::Bytes;
use polybus_core::{Envelope, Error, ErrorKind, Result, telemetry::with_current};

use super::{
    NewJob, Unique,
    job::{SameBy, When},
};
use crate::{
    hash::hash_of_parts,
    store::{JobDue, JobStore, NewJobRow, UniqueJob, UniqueUntil},
    stored_head::encode_head,
    telemetry,
};

/// The largest job by default: 1 MiB of arguments, attributes and headers.
pub const DEFAULT_MAX_JOB: usize = 1 << 20;

/// What became of a job that was enqueued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Enqueued {
    /// The job's id, or that of the one that is there already.
    pub id: i64,
    /// False if there was one like it already: see [`NewJob::unique`].
    pub is_new: bool,
}

/// Writes background jobs in the application's transactions, and looks after them. Cheap to clone.
///
/// # What it guarantees
/// - The job of a committed transaction runs at least once, unless it is cancelled or discarded by hand; that of one
///   that was rolled back, never.
/// - A unique job is there once, whatever transactions and processes write it at the same time.
///
/// # What it does not
/// - Exactly once: a worker that is killed after the work and before it is noted runs it again. Make handlers
///   idempotent, or give them the transaction ([`JobWorker::on_tx`](super::JobWorker::on_tx)).
/// - Order: jobs begin by priority and time, and run side by side.
///
/// ```no_run
/// # use polybus_core::Event;
/// # use polybus_patterns::jobs::{Job, Jobs, NewJob, Unique};
/// # use polybus_patterns::store::{JobStore, Store};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
/// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
/// # impl Job for SendInvoice {}
/// # async fn example<S: JobStore>(db: S) -> polybus_core::Result<()> {
/// let jobs = Jobs::new(&db);
/// let mut tx = db.begin().await?;
/// // … the application's own statements on `tx` …
/// jobs.enqueue(&mut tx, SendInvoice { order: 7 }).await?;
/// S::commit(tx).await?;
/// jobs.wake();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Jobs<S> {
    pub(super) store: S,
    event_source: Box<str>,
    max_job: usize,
}

impl<S: JobStore> Jobs<S> {
    /// Jobs in this store. No I/O.
    ///
    /// ```no_run
    /// # fn example<S: polybus_patterns::store::JobStore>(db: S) {
    /// let jobs = polybus_patterns::jobs::Jobs::new(&db);
    /// # }
    /// ```
    pub fn new(store: &S) -> Self {
        Self { store: store.clone(), event_source: "polybus".into(), max_job: DEFAULT_MAX_JOB }
    }

    /// Names the service that writes the jobs, a URI-reference. It is the source of their messages. Default: `polybus`.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::Jobs, store::JobStore};
    /// # fn example<S: JobStore>(jobs: Jobs<S>) -> Jobs<S> {
    /// jobs.event_source("/shop")
    /// # }
    /// ```
    pub fn event_source(mut self, source: impl Into<Box<str>>) -> Self {
        self.event_source = source.into();
        self
    }

    /// Sets the largest job: arguments, attributes and headers together. Default 1 MiB.
    ///
    /// A job is read whole by each claim, so large payloads belong elsewhere, with their place in the arguments.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::Jobs, store::JobStore};
    /// # fn example<S: JobStore>(jobs: Jobs<S>) -> Jobs<S> {
    /// jobs.max_job(64 << 10)
    /// # }
    /// ```
    pub fn max_job(mut self, bytes: usize) -> Self {
        self.max_job = bytes;
        self
    }

    /// Writes a job in the caller's transaction.
    ///
    /// What is [current](polybus_core::telemetry::Current) goes along: the correlation id, the message that causes it,
    /// and the trace.
    ///
    /// # Errors
    /// - `InvalidArgument`: the connection is not in a transaction; the arguments cannot be written as JSON; the queue
    ///   has no name that a queue can have; `max_attempts` is 0.
    /// - `PayloadTooLarge`: the job is larger than [`max_job`](Self::max_job).
    /// - `ConfigInvalid`: the tables are not there.
    /// - Those of the database. They fail the caller's transaction, and nothing is lost unseen.
    ///
    /// # Cancel safety
    /// As that of a statement of the database client: dropped in the middle, roll the transaction back.
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{jobs::*, store::JobStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// # async fn example<S: JobStore>(db: S, jobs: Jobs<S>) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// let job = NewJob::of(&SendInvoice { order: 7 }).unique(Unique::UntilDone);
    /// let enqueued = jobs.enqueue(&mut tx, job).await?;
    /// println!("job {} is {}", enqueued.id, if enqueued.is_new { "new" } else { "there already" });
    /// S::commit(tx).await?;
    /// # Ok(()) }
    /// ```
    pub async fn enqueue(&self, conn: &mut S::Conn, job: impl Into<NewJob>) -> Result<Enqueued> {
        let enqueued = self.enqueue_many(conn, [job]).await?;
        enqueued.first().copied().ok_or_else(no_answer)
    }

    /// Writes many jobs in the caller's transaction. All or none. Answers in their order.
    ///
    /// It is one statement or a few, so thousands are quick.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue).
    ///
    /// # Cancel safety
    /// That of [`enqueue`](Self::enqueue).
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{jobs::*, store::JobStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// # async fn example<S: JobStore>(db: S, jobs: Jobs<S>) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// jobs.enqueue_many(&mut tx, (1..=1000).map(|order| SendInvoice { order })).await?;
    /// S::commit(tx).await?;
    /// # Ok(()) }
    /// ```
    pub async fn enqueue_many<J: Into<NewJob>>(
        &self,
        conn: &mut S::Conn,
        jobs: impl IntoIterator<Item = J>,
    ) -> Result<Vec<Enqueued>> {
        if !S::in_transaction(conn) {
            let text = "enqueue outside a transaction: begin one, use submit for jobs alone, or enqueue_outside if you \
                        began it by hand";
            return Err(Error::invalid(text).with_operation("enqueue"));
        }
        self.enqueue_outside(conn, jobs).await
    }

    /// [`enqueue_many`](Self::enqueue_many) on a connection that is in no transaction, as far as its client knows:
    /// where BEGIN was written by hand.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue).
    ///
    /// # Cancel safety
    /// Dropped in the middle, the jobs, or some of them, may be written.
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{jobs::*, store::JobStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// # async fn example<S: JobStore>(mut conn: S::Conn, jobs: Jobs<S>) -> polybus_core::Result<()> {
    /// jobs.enqueue_outside(&mut conn, [SendInvoice { order: 7 }]).await?;
    /// # Ok(()) }
    /// ```
    pub async fn enqueue_outside<J: Into<NewJob>>(
        &self,
        conn: &mut S::Conn,
        jobs: impl IntoIterator<Item = J>,
    ) -> Result<Vec<Enqueued>> {
        let rows = jobs.into_iter().map(|job| self.row(job.into())).collect::<Result<Vec<_>>>();
        let rows = rows.map_err(|e| e.with_operation("enqueue"))?;
        self.write(conn, &rows).await
    }

    /// Writes a job in a transaction of its own, and wakes the workers of this process.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue). With `MayDuplicate` the job may be there.
    ///
    /// # Cancel safety
    /// Dropped in the middle, the job may or may not be written.
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{jobs::*, store::JobStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// # async fn example<S: JobStore>(jobs: Jobs<S>) -> polybus_core::Result<()> {
    /// let enqueued = jobs.submit(SendInvoice { order: 7 }).await?;
    /// println!("job {}", enqueued.id);
    /// # Ok(()) }
    /// ```
    pub async fn submit(&self, job: impl Into<NewJob>) -> Result<Enqueued> {
        let enqueued = self.submit_many([job]).await?;
        enqueued.first().copied().ok_or_else(no_answer)
    }

    /// Writes many jobs in a transaction of its own, and wakes the workers of this process. All or none.
    ///
    /// # Errors
    /// Those of [`submit`](Self::submit).
    ///
    /// # Cancel safety
    /// Dropped in the middle, either all or none are written.
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{jobs::*, store::JobStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// # async fn example<S: JobStore>(jobs: Jobs<S>) -> polybus_core::Result<()> {
    /// jobs.submit_many((1..=1000).map(|order| SendInvoice { order })).await?;
    /// # Ok(()) }
    /// ```
    pub async fn submit_many<J: Into<NewJob>>(&self, jobs: impl IntoIterator<Item = J>) -> Result<Vec<Enqueued>> {
        let rows = jobs.into_iter().map(|job| self.row(job.into())).collect::<Result<Vec<_>>>();
        let rows = rows.map_err(|e| e.with_operation("enqueue"))?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut tx = self.store.begin().await.map_err(|e| e.with_operation("enqueue"))?;
        let enqueued = self.write(&mut tx, &rows).await?;
        S::commit(tx).await.map_err(|e| e.with_operation("enqueue"))?;
        self.wake();
        Ok(enqueued)
    }

    /// Tells the workers of this process that a transaction with jobs was committed, so that they look at once.
    /// Without it they look a few milliseconds after the enqueue, and again at their polling interval.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::Jobs, store::JobStore};
    /// # async fn example<S: JobStore>(tx: S::Tx, jobs: Jobs<S>) -> polybus_core::Result<()> {
    /// S::commit(tx).await?;
    /// jobs.wake();
    /// # Ok(()) }
    /// ```
    pub fn wake(&self) {
        self.store.control().changes().committed();
    }

    /// [`wake`](Self::wake), for the workers of other processes too, where the database can (PostgreSQL, by NOTIFY on a
    /// connection of the store's own) and they [listen](super::JobWorker::listen).
    ///
    /// Call it after the commit.
    ///
    /// # Errors
    /// Those of the database. Nothing depends on it: workers poll.
    ///
    /// # Cancel safety
    /// Dropping the future may leave other processes untold.
    ///
    /// ```no_run
    /// # use polybus_patterns::{jobs::Jobs, store::JobStore};
    /// # async fn example<S: JobStore>(tx: S::Tx, jobs: Jobs<S>) -> polybus_core::Result<()> {
    /// S::commit(tx).await?;
    /// jobs.notify().await?;
    /// # Ok(()) }
    /// ```
    pub async fn notify(&self) -> Result<()> {
        self.wake();
        self.store.control().notify().await
    }

    /// The row of a job.
    pub(crate) fn row(&self, job: NewJob) -> Result<NewJobRow> {
        row(job, &self.event_source, self.max_job)
    }

    async fn write(&self, conn: &mut S::Conn, rows: &[NewJobRow]) -> Result<Vec<Enqueued>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let inserted = self.store.insert_jobs(conn, rows).await.map_err(|e| e.with_operation("enqueue"))?;
        self.store.control().changes().written();
        for (row, inserted) in rows.iter().zip(&inserted) {
            telemetry::jobs_enqueued(&row.queue, &row.kind, inserted.is_new);
        }
        Ok(inserted.into_iter().map(|inserted| Enqueued { id: inserted.id, is_new: inserted.is_new }).collect())
    }
}

fn no_answer() -> Error {
    Error::new(ErrorKind::Unexpected, "the store gave no answer for a job").may_duplicate()
}

/// The message of a job: its arguments, with what is current.
pub(super) fn message_of(job: &NewJob, event_source: Option<&str>) -> Result<Envelope> {
    job.check()?;
    let mut envelope = job.message.clone()?;
    if let Some(source) = event_source.filter(|_| envelope.source.is_empty()) {
        envelope = envelope.source(source);
    }
    let envelope = with_current(envelope);
    envelope.check()?;
    Ok(envelope)
}

/// The row of a job.
///
/// # Errors
/// `InvalidArgument` and `PayloadTooLarge`, as [`Jobs::enqueue`] says.
pub(crate) fn row(job: NewJob, event_source: &str, max_job: usize) -> Result<NewJobRow> {
    let kind = job.kind;
    let row = || {
        let envelope = message_of(&job, Some(event_source))?;
        let head = encode_head(&envelope);
        let size = head.len() + envelope.data.len() + job.queue.len() + kind.len();
        if size > max_job {
            let text = format!(
                "a job of {size} bytes, and {max_job} are taken: keep large payloads elsewhere, with their place in the \
                 arguments, or raise Jobs::max_job"
            );
            return Err(Error::new(ErrorKind::PayloadTooLarge, text));
        }
        Ok(NewJobRow {
            queue: job.queue.to_string(),
            kind: kind.to_owned(),
            priority: job.priority,
            due: due(job.when)?,
            max_attempts: job.max_attempts,
            head,
            unique: job.unique.as_ref().map(|(until, same)| unique(*until, same, &envelope)),
            data: envelope.data.clone(),
            schedule: job.schedule.as_deref().map(str::to_owned),
        })
    };
    row().map_err(|e| if e.context("kind").is_some() { e } else { e.with_context("kind", kind) })
}

/// The most distant time: that of year 9999. Columns hold no more.
const LATEST: i64 = 253_402_300_799_000_000;

fn due(when: When) -> Result<JobDue> {
    match when {
        When::After(delay) if delay <= Duration::from_secs(3650 * 24 * 3600) => Ok(JobDue::After(delay)),
        When::After(delay) => Err(Error::invalid(format!("a job with a delay of {delay:?}: more than ten years"))),
        When::At(at) => match i64::try_from(at.unix_timestamp_nanos() / 1000) {
            Ok(micros) if micros <= LATEST => Ok(JobDue::At(micros.max(0))),
            _ => Err(Error::invalid(format!("a job at {at}: the time is too far ahead"))),
        },
    }
}

fn unique(until: Unique, same: &SameBy, envelope: &Envelope) -> UniqueJob {
    let until = match until {
        Unique::UntilStarted => UniqueUntil::Started,
        Unique::UntilDone => UniqueUntil::Done,
        Unique::For(span) => UniqueUntil::For(span),
    };
    let version = envelope.schema_version.map_or(String::new(), |version| version.to_string());
    let key = match same {
        SameBy::Arguments => key_of(&["arguments", &envelope.event_type, &version], &envelope.data),
        SameBy::Key(key) => key_of(&["key", &envelope.event_type, key], &Bytes::new()),
    };
    UniqueJob { key, until }
}

fn key_of(parts: &[&str], data: &[u8]) -> [u8; 16] {
    // Arguments are JSON, so they are text; anything else would differ byte by byte all the same.
    let data = String::from_utf8_lossy(data);
    let mut all = parts.to_vec();
    all.push(&data);
    hash_of_parts(&all)
}
