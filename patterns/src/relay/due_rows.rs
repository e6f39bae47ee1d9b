//! Rows with a delay: moves them into their slots once it has passed.

use std::{sync::Arc, time::Duration};

use polybus_core::driver::kit::backoff::Backoff;

use super::RelayShared;
use crate::store::calls::{MAX_DATABASE_BACKOFF, in_time};

/// How often it looks when nothing is due soon.
const INTERVAL: Duration = Duration::from_secs(1);

/// How soon it looks again at the earliest where nothing could be moved.
const SHORTEST: Duration = Duration::from_millis(50);

/// How many rows are moved in one transaction.
const BATCH: u32 = 500;

/// The slot whose holder moves the due rows of all slots, so that one relay does it.
const SLOT: i16 = 0;

/// Moves due rows until it is dropped.
pub(super) async fn promote(shared: &Arc<RelayShared>) {
    let mut backoff = Backoff::up_to(MAX_DATABASE_BACKOFF);
    let mut changes = shared.control.changes().listen();
    loop {
        let wait = if !shared.slots.usable().contains(&SLOT) {
            INTERVAL
        } else {
            match in_time(shared.rows_limit(), shared.table.promote_due(BATCH)).await {
                Ok(due) => {
                    backoff.reset();
                    if due.moved > 0 {
                        shared.control.changes().committed();
                    }
                    match due.moved {
                        n if n >= u64::from(BATCH) => Duration::ZERO,
                        // A due row that somebody else's transaction holds is not moved, and stays due.
                        0 => due.next.unwrap_or(INTERVAL).clamp(SHORTEST, INTERVAL),
                        _ => due.next.unwrap_or(INTERVAL).clamp(Duration::from_millis(1), INTERVAL),
                    }
                }
                Err(e) => {
                    tracing::debug!(target: "polybus", error = %e, "the outbox' due rows cannot be moved; trying again");
                    backoff.next_wait()
                }
            }
        };
        if wait < INTERVAL {
            tokio::time::sleep(wait).await;
            continue;
        }
        // A row that was written now may be due before the next look.
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = changes.changed() => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}
