//! The table of jobs as a driver: claims are deliveries, leases are locks, and discarded jobs are dead letters. So jobs
//! are run by core's worker, with its timeouts, panics, retries, spans and metrics.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use polybus_core::{
    Address, Error, ErrorKind, Result, Source,
    driver::{Capabilities, Driver, Receiver, Sender, Settler, async_trait},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity},
};
use tokio::task::JoinError;

use super::{gate::QueueGate, receiver::JobReceiver, report::JobCounts, settler::JobSettler};
use crate::store::{JobTable, StoreControl};

/// What the parts of a running worker share.
pub(super) struct JobsShared {
    pub(super) table: Arc<dyn JobTable>,
    pub(super) control: Arc<dyn StoreControl>,
    /// A UUID for each start, never the name of the host: a process that comes back must not own what it had before.
    pub(super) worker: [u8; 16],
    pub(super) lease: Duration,
    pub(super) poll: Duration,
    pub(super) counts: JobCounts,
}

pub(super) struct JobDriver {
    shared: Arc<JobsShared>,
    capabilities: Capabilities,
    gates: Mutex<HashMap<String, Arc<QueueGate>>>,
}

/// The longest delay of a retry.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(366 * 24 * 3600);

impl JobDriver {
    /// A driver for queues with so many handlers each.
    pub(super) fn new(shared: Arc<JobsShared>, queues: &[(String, usize)]) -> Self {
        let capabilities = Capabilities::build(|can| {
            can.confirmed_settlement = true;
            can.locks = true;
            can.dead_letters = true;
            can.max_retry_delay = Some(MAX_RETRY_DELAY);
            can.attempts_across_crash = true;
        });
        let gates = queues.iter().map(|(queue, handlers)| (queue.clone(), Arc::new(QueueGate::new(*handlers))));
        Self { shared, capabilities, gates: Mutex::new(gates.collect()) }
    }
}

#[async_trait]
impl Driver for JobDriver {
    fn backend(&self) -> &'static str {
        self.shared.control.system()
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn declare(&self, _plan: &DeclarePlan, _mode: DeclareMode) -> Result<DeclareReport> {
        Ok(DeclareReport::default())
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        Err(Error::unsupported("publishing to a queue of jobs: use Jobs::enqueue").with_context("address", &to.name))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        let Source::Queue(queue) = &from.name else {
            return Err(Error::unsupported("jobs come from queues").with_context("source", &from.name));
        };
        let gate = self.gates.lock().get(&**queue).cloned();
        let gate = gate.ok_or_else(|| Error::new(ErrorKind::NotFound, "a queue that this worker does not have"))?;
        let receiver = JobReceiver::new(self.shared.clone(), queue.to_string(), gate);
        Ok((Box::new(receiver), Arc::new(JobSettler(self.shared.clone()))))
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// The error of a task that ended without an answer.
pub(super) fn task_ended(ended: &JoinError) -> Error {
    Error::new(ErrorKind::Unexpected, format!("a call of the job store ended early: {ended}")).may_duplicate()
}
