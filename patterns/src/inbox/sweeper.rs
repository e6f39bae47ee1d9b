//! Deletes marks that are older than the retention, in one process at a time.

use std::{sync::Arc, time::Duration};

use polybus_core::{Error, ErrorKind, Result, driver::kit::backoff::random_fraction};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::InboxSettings;
use crate::store::{InboxTable, Lease, StoreControl};

/// How often the marks are swept by default.
pub(super) const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);

/// How many marks one statement deletes.
const BATCH: u32 = 10_000;

/// A batch that took longer than this is followed by a pause as long as itself, to let others go ahead.
const SLOW_BATCH: Duration = Duration::from_millis(500);

/// How long a sweep may take at least, where the interval is shorter.
const LONGEST_SWEEP: Duration = Duration::from_secs(600);

/// The term of the sweep's lease.
const TERM: Duration = Duration::from_secs(60);

/// Starts the sweeper of one consumer. It ends when `alive` closes.
pub(super) fn start(
    settings: &InboxSettings,
    table: Arc<dyn InboxTable>,
    control: Arc<dyn StoreControl>,
    consumer: i32,
    mut alive: watch::Receiver<()>,
) {
    let (retention, interval) = (settings.retention, settings.sweep_interval);
    let owner = Uuid::now_v7().to_string();
    tokio::spawn(async move {
        // Processes that start together do not sweep together.
        let mut wait = interval.mul_f64(0.1 * random_fraction());
        loop {
            tokio::select! {
                _ = alive.changed() => return,
                () = tokio::time::sleep(wait) => {}
            }
            wait = interval;
            let swept = tokio::select! {
                _ = alive.changed() => return,
                // A call whose answer is lost in silence must not be the last sweep of this process.
                swept = timeout(interval.max(LONGEST_SWEEP), sweep(&*table, &*control, consumer, retention, &owner)) => swept,
            };
            let swept = swept.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "the sweep did not end").safe()));
            match swept {
                Ok(0) => {}
                Ok(marks) => tracing::debug!(target: "polybus", consumer, marks, "old marks of the inbox were deleted"),
                Err(e) => {
                    tracing::warn!(target: "polybus", consumer, error = %e, "the inbox could not be swept; later again")
                }
            }
        }
    });
}

async fn sweep(
    table: &dyn InboxTable,
    control: &dyn StoreControl,
    consumer: i32,
    retention: Duration,
    owner: &str,
) -> Result<u64> {
    let leases = control.leases();
    let mut taken: Vec<Lease> = leases.acquire(&[format!("inbox-sweep/{consumer}")], owner, TERM).await?;
    let mut swept = 0;
    let mut renew_at = Instant::now() + TERM / 3;
    while !taken.is_empty() {
        let started = Instant::now();
        let gone = table.sweep(consumer, retention, BATCH).await?;
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
