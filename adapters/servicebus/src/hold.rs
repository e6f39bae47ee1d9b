//! A message without a session kept under its lock until it may come again.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    feed::{Feed, Held},
    management::Status,
};

/// Renews the lock until `delay` has passed, then abandons. When the settler closes it abandons what is held as well.
pub(crate) fn start(feed: Arc<Feed>, held: &Held, delay: Duration) {
    let (lock, info, pump) = (held.lock, held.info.clone(), held.pump.clone());
    let until = Instant::now() + delay;
    // What is known of the lock's age is that core has renewed it at half its time.
    let mut renewal = Instant::now() + feed.lock / 8;
    tokio::spawn(async move {
        while Instant::now() < until {
            tokio::time::sleep_until(until.min(renewal)).await;
            if !feed.is_open(&lock) {
                return;
            }
            if Instant::now() >= renewal {
                renewal = Instant::now() + feed.lock / 2;
                if let Err(e) = feed.management.renew(&[lock]).await {
                    tracing::debug!(source = %feed.source, error = %e, "a message that was held comes back early");
                    feed.let_go(&lock);
                    return;
                }
            }
        }
        match feed.management.settle(&[lock], &Status::Abandoned, None).await {
            Ok(()) => {
                if let Some(pump) = pump {
                    pump.forget(vec![info], false);
                }
            }
            Err(e) => {
                tracing::debug!(source = %feed.source, error = %e, "a message that was held comes back when its lock ends");
            }
        }
        feed.let_go(&lock);
    });
}
