//! A message kept under its lock over HTTP until it may come again.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::rest_feed::{RestFeed, RestHeld};

/// Renews the lock until `delay` has passed, then unlocks. When the settler closes it unlocks what is held as well.
pub(crate) fn start(feed: Arc<RestFeed>, token: polybus_core::Token, delay: Duration) {
    let until = Instant::now() + delay;
    // What is known of the lock's age is that core has renewed it at half its time.
    let mut renewal = Instant::now() + feed.lock / 8;
    tokio::spawn(async move {
        let Ok(held) = token.get::<RestHeld>() else { return };
        while Instant::now() < until {
            tokio::time::sleep_until(until.min(renewal)).await;
            if !feed.holds(held) {
                return;
            }
            if Instant::now() >= renewal {
                renewal = Instant::now() + feed.lock / 2;
                if let Err(e) = held.lock.renew().await {
                    tracing::debug!(source = %feed.source, error = %e, "a message that was held comes back early");
                    feed.let_go(held);
                    return;
                }
            }
        }
        if let Err(e) = held.lock.unlock().await {
            tracing::debug!(source = %feed.source, error = %e, "a message that was held comes back when its lock ends");
        }
        feed.let_go(held);
    });
}
