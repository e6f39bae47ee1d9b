//! Jobs in the queues of a broker, in place of a table.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Address, Bus, Error, Outgoing, Receipt, Result};

use super::{NewJob, enqueue::message_of, job::When};

/// Puts jobs into queues of a broker, for [`JobWorker::on_broker`](super::JobWorker::on_broker). Cheap to clone.
///
/// The queues are those of the bus' topology: how often a job is tried, the delays in between and where it ends are
/// theirs.
///
/// | | |
/// |---|---|
/// | delay, time | as far as the broker can delay |
/// | priority | by queues: [`priority_queue`](Self::priority_queue) |
/// | transaction | none: use an [`Outbox`](crate::Outbox), whose rows may be jobs |
/// | unique, `max_attempts` | `Unsupported`, before any I/O |
///
/// ```
/// # use polybus_core::{Bus, BusOptions, Event, QueueSpec, Topology, memory::MemoryDriver};
/// # use polybus_patterns::jobs::{BrokerJobs, Job, NewJob};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
/// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
/// # impl Job for SendInvoice {}
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// # let topology = Topology::new().queue("default", QueueSpec::new()).queue("urgent", QueueSpec::new());
/// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
/// # bus.declare().await?;
/// let jobs = BrokerJobs::new(&bus).priority_queue(-1, "urgent");
/// jobs.submit(SendInvoice { order: 7 }).await?;
/// jobs.submit(NewJob::of(&SendInvoice { order: 8 }).priority(-1)).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct BrokerJobs {
    bus: Bus,
    /// The queue of each priority that is not the default.
    queues: BTreeMap<i16, Box<str>>,
}

impl BrokerJobs {
    /// Jobs on this bus. No I/O.
    ///
    /// ```
    /// # fn example(bus: polybus_core::Bus) {
    /// let jobs = polybus_patterns::jobs::BrokerJobs::new(&bus);
    /// # }
    /// ```
    pub fn new(bus: &Bus) -> Self {
        Self { bus: bus.clone(), queues: BTreeMap::new() }
    }

    /// Puts jobs of this priority into a queue of their own, whatever queue they name. Give that queue more handlers
    /// than others.
    ///
    /// ```
    /// # fn example(bus: polybus_core::Bus) {
    /// let jobs = polybus_patterns::jobs::BrokerJobs::new(&bus).priority_queue(-1, "urgent");
    /// # }
    /// ```
    pub fn priority_queue(mut self, priority: i16, queue: impl Into<Box<str>>) -> Self {
        self.queues.insert(priority, queue.into());
        self
    }

    /// Puts a job into its queue. `Ok` means that the broker has taken responsibility for it.
    ///
    /// # Errors
    /// - `Unsupported`, before any I/O: the job is unique, has a number of attempts of its own, a priority without a
    ///   [queue](Self::priority_queue), or a delay that the broker cannot do.
    /// - `InvalidArgument`: the arguments cannot be written as JSON, or the queue has no name that a queue can have.
    /// - Those of [`Bus::publish`].
    ///
    /// # Cancel safety
    /// That of [`Bus::publish`].
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::jobs::{BrokerJobs, Job, NewJob};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct SendInvoice { order: i64 }
    /// # impl Event for SendInvoice { const TYPE: &'static str = "invoice.send"; const VERSION: u32 = 1; }
    /// # impl Job for SendInvoice {}
    /// # async fn example(jobs: BrokerJobs) -> polybus_core::Result<()> {
    /// jobs.submit(NewJob::of(&SendInvoice { order: 7 }).delay(std::time::Duration::from_secs(60))).await?;
    /// # Ok(()) }
    /// ```
    pub async fn submit(&self, job: impl Into<NewJob>) -> Result<Receipt> {
        let job = job.into();
        let ready = self.ready(&job).map_err(|e| e.with_operation("enqueue").with_context("kind", job.kind));
        let (to, message) = ready?;
        self.bus.publish(to, message).await
    }

    fn ready(&self, job: &NewJob) -> Result<(Address, Outgoing)> {
        let unsupported = |what: &str| Err(Error::unsupported(format!("{what} on a broker: use jobs in a database")));
        let envelope = message_of(job, None)?;
        if job.unique.is_some() {
            return unsupported("a unique job");
        }
        if job.max_attempts != job.default_attempts {
            return unsupported("a number of attempts of the job's own (set max_deliveries of its queue)");
        }
        let queue = match self.queues.get(&job.priority) {
            Some(queue) => queue.as_ref(),
            None if job.priority == job.default_priority => &job.queue,
            None => return unsupported("a priority without a queue of its own (BrokerJobs::priority_queue)"),
        };
        let delay = match job.when {
            When::After(delay) => delay,
            When::At(at) => Duration::try_from(at - self.bus.now()).unwrap_or_default(),
        };
        let mut message = Outgoing::from(envelope);
        if !delay.is_zero() {
            message = message.delay(delay);
        }
        Ok((Address::queue(queue), message))
    }
}
