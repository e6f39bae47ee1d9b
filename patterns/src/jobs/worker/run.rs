//! One run of a job: what its handler, its driver and its lease have in common.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use super::gate::QueueGate;
use crate::store::{JobClaim, JobExtended, JobTable, calls::in_time};

/// How often a lease is renewed whose row is not free yet, and the pause in between.
const RENEWALS: usize = 50;
const RENEWAL_PAUSE: Duration = Duration::from_millis(40);

/// How a run ends in another way than by its handler's result.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum RunEnding {
    /// It runs again later, and the attempt does not count.
    Snoozed { delay: Duration, why: Option<String> },
    /// It was cancelled, and its handler ended with an error.
    Cancelled { error: String },
    /// It was finished in its handler's transaction.
    InTransaction,
}

/// How far the transaction has come in which a run is finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TransactionStage {
    /// There is none, or its handler has not begun.
    Before,
    /// The handler has it. Where the job is completed now, the handler has committed it.
    Handler,
    /// It is being committed by this worker. Where the job is completed now, it is right.
    Commit,
}

pub(super) struct JobRun {
    pub(super) claim: JobClaim,
    pub(super) schedule: Option<String>,
    pub(super) table: Arc<dyn JobTable>,
    lease: Duration,
    gate: Arc<QueueGate>,
    /// Its place at the gate is free again.
    left: AtomicBool,
    lost: AtomicBool,
    /// The answer to a settlement was lost, so that it may be written.
    uncertain: AtomicBool,
    stage: Mutex<TransactionStage>,
    cancelled: watch::Sender<bool>,
    ending: Mutex<Option<RunEnding>>,
    result: Mutex<Option<String>>,
}

impl JobRun {
    /// The run of a job that was claimed, and counts at the gate until its handler has ended.
    pub(super) fn new(
        claim: JobClaim,
        schedule: Option<String>,
        table: Arc<dyn JobTable>,
        lease: Duration,
        gate: Arc<QueueGate>,
    ) -> Self {
        gate.entered();
        Self {
            claim,
            schedule,
            table,
            lease,
            gate,
            left: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            uncertain: AtomicBool::new(false),
            stage: Mutex::new(TransactionStage::Before),
            cancelled: watch::Sender::new(false),
            ending: Mutex::new(None),
            result: Mutex::new(None),
        }
    }

    /// Its handler has ended, or none will begin.
    pub(super) fn leave(&self) {
        if !self.left.swap(true, Ordering::AcqRel) {
            self.gate.left();
        }
    }

    /// The claim is no longer this worker's.
    pub(super) fn set_lost(&self) {
        self.lost.store(true, Ordering::Release);
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Notes whether its end may be written though nobody has said so. Answers whether it may have been before.
    pub(super) fn set_uncertain(&self, uncertain: bool) -> bool {
        self.uncertain.swap(uncertain, Ordering::AcqRel)
    }

    /// Renews the lease once the transaction of the handler is rolled back, where that took longer than half of it: while
    /// the row was locked nobody could, and as soon as it is free it may be taken for that of a lost worker.
    pub(super) async fn renew_after(&self, handler: Duration, call_limit: Duration) {
        let lease = self.lease;
        if handler < lease / 2 {
            return;
        }
        let key = [(self.claim.id, self.claim.attempt)];
        for _ in 0..RENEWALS {
            match in_time(call_limit, self.table.extend(self.claim.worker, lease, &key)).await.as_deref() {
                Ok([JobExtended::Locked]) => tokio::time::sleep(RENEWAL_PAUSE).await,
                Ok([JobExtended::Lost]) => return self.set_lost(),
                _ => return,
            }
        }
    }

    pub(super) fn set_stage(&self, stage: TransactionStage) {
        *self.stage.lock() = stage;
    }

    pub(super) fn stage(&self) -> TransactionStage {
        *self.stage.lock()
    }

    /// Somebody wants the job cancelled.
    pub(super) fn cancel(&self) {
        self.cancelled.send_if_modified(|cancelled| !std::mem::replace(cancelled, true));
    }

    pub(super) fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    pub(super) async fn until_cancelled(&self) {
        // It fails only if the run is gone, and then nobody waits.
        let _ = self.cancelled.subscribe().wait_for(|cancelled| *cancelled).await;
    }

    pub(super) fn end_by(&self, ending: RunEnding) {
        *self.ending.lock() = Some(ending);
    }

    pub(super) fn ending(&self) -> Option<RunEnding> {
        self.ending.lock().clone()
    }

    pub(super) fn set_result(&self, result: String) {
        *self.result.lock() = Some(result);
    }

    pub(super) fn result(&self) -> Option<String> {
        self.result.lock().clone()
    }
}

impl Drop for JobRun {
    fn drop(&mut self) {
        self.leave();
    }
}
