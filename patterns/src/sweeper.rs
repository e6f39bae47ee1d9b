//! Deletes rows that are too old, in one process at a time.

use std::{sync::Arc, time::Duration};

use polybus_core::{
    Error, ErrorKind, Result,
    driver::{async_trait, kit::backoff::random_fraction},
};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use uuid::Uuid;

use crate::store::{Lease, StoreControl};

/// How often old rows are swept by default.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// How many rows one statement deletes.
const BATCH: u32 = 10_000;

/// A batch that took longer than this is followed by a pause as long as itself, to let others go ahead.
const SLOW_BATCH: Duration = Duration::from_millis(500);

/// How long a sweep may take at least, where the interval is shorter.
const LONGEST_SWEEP: Duration = Duration::from_secs(600);

/// The term of the sweep's lease.
const TERM: Duration = Duration::from_secs(60);

/// Rows that become too old.
#[async_trait]
pub(crate) trait SweptRows: Send + Sync + 'static {
    /// Deletes up to so many of those that are. Answers how many.
    async fn sweep(&self, limit: u32) -> Result<u64>;
}

/// What is swept, and how often.
pub(crate) struct Sweep {
    lease: String,
    what: &'static str,
    rows: Arc<dyn SweptRows>,
    interval: Duration,
}

impl Sweep {
    /// Rows that the log calls `what`, swept by whoever holds the lease, each hour.
    pub(crate) fn new(lease: impl Into<String>, what: &'static str, rows: Arc<dyn SweptRows>) -> Self {
        Self { lease: lease.into(), what, rows, interval: SWEEP_INTERVAL }
    }

    pub(crate) fn every(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    async fn run(&self, control: &dyn StoreControl, owner: &str) -> Result<u64> {
        let leases = control.leases();
        let mut taken: Vec<Lease> = leases.acquire(std::slice::from_ref(&self.lease), owner, TERM).await?;
        let mut swept = 0;
        let mut renew_at = Instant::now() + TERM / 3;
        while !taken.is_empty() {
            let started = Instant::now();
            let gone = self.rows.sweep(BATCH).await?;
            swept += gone;
            if gone < u64::from(BATCH) {
                leases.release(&taken, owner).await?;
                break;
            }
            if started.elapsed() > SLOW_BATCH {
                tokio::time::sleep(started.elapsed()).await;
            }
            if Instant::now() >= renew_at {
                taken = leases.renew(&taken, owner, TERM).await?;
                renew_at = Instant::now() + TERM / 3;
            }
        }
        Ok(swept)
    }
}

/// Starts a sweeper. It ends when `alive` closes.
pub(crate) fn start(sweep: Sweep, control: Arc<dyn StoreControl>, mut alive: watch::Receiver<()>) {
    let owner = Uuid::now_v7().to_string();
    tokio::spawn(async move {
        // Processes that start together do not sweep together.
        let mut wait = sweep.interval.mul_f64(0.1 * random_fraction());
        loop {
            tokio::select! {
                _ = alive.changed() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = sweep.interval;
            let swept = tokio::select! {
                _ = alive.changed() => return,
                // A call whose answer is lost in silence must not be the last sweep of this process.
                swept = timeout(sweep.interval.max(LONGEST_SWEEP), sweep.run(&*control, &owner)) => swept,
            };
            let swept = swept.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "the sweep did not end").safe()));
            let (lease, what) = (&*sweep.lease, sweep.what);
            match swept {
                Ok(0) => {}
                Ok(rows) => tracing::debug!(target: "polybus", lease, rows, "old rows were deleted: {what}"),
                Err(e) => {
                    tracing::warn!(target: "polybus", lease, error = %e, "these could not be swept, later again: {what}");
                }
            }
        }
    });
}
