//! A message without a session kept under its lock until it may come again.

use std::{sync::Arc, time::Duration};

use polybus_core::{
    Kind, Result,
    lease::{Lease, within},
};
use tokio::time::{Instant, sleep_until};

use crate::{
    feed::{Feed, Held},
    locks::not_held,
    management::Status,
    pump::Fate,
};

/// Renews the lock until `delay` has passed, then abandons. When the settler closes it abandons what is held as well.
pub(crate) fn start(feed: Arc<Feed>, held: &Held, delay: Duration) -> Result<()> {
    let Some(from) = feed.keep_back(&held.lock) else { return Err(not_held()) };
    let (lock, pump) = (held.lock, held.pump.clone());
    let until = Instant::now() + delay;
    let mut lease = Lease::new(feed.lock, from);
    tokio::spawn(async move {
        while Instant::now() < until {
            sleep_until(until.min(lease.due())).await;
            if !feed.is_open(&lock) {
                return;
            }
            if Instant::now() < lease.due() {
                continue;
            }
            match within(feed.lock, feed.renew(&[lock])).await {
                Ok(from) => lease.renewed(from),
                Err(e) if e.kind() == Kind::LockLost || lease.is_over() => {
                    tracing::warn!(source = %feed.source, error = %e, "a message that was held comes back early");
                    feed.let_go([lock]);
                    return;
                }
                Err(_) => lease.failed(),
            }
        }
        let settled = feed.management.settle(&[lock], &Status::Abandoned, None).await;
        let over = feed.let_go([lock]);
        match settled {
            Ok(()) => {
                if let Some(pump) = pump {
                    pump.forget(over, Fate::Released);
                }
            }
            Err(e) => {
                tracing::debug!(source = %feed.source, error = %e, "a message that was held comes back when its lock ends");
            }
        }
    });
    Ok(())
}
