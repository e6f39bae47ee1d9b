//! A message kept under its lock over HTTP until it may come again.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use polybus_core::{
    ErrorKind, Result,
    driver::{
        DriverToken,
        kit::lease::{LockLease, within},
    },
};
use tokio::time::{Instant, sleep_until};

use crate::{
    amqp::locks::not_held,
    rest::consumer::{RestFeed, RestHeld},
};

/// The place in the window that it keeps.
struct Place(Arc<RestFeed>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.kept.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_waiters();
    }
}

/// Renews the lock until `delay` has passed, then unlocks. When the settler closes it unlocks what is held as well.
pub(crate) fn start(feed: Arc<RestFeed>, token: DriverToken, delay: Duration) -> Result<()> {
    let Some(from) = feed.keep_back(token.get()?) else { return Err(not_held()) };
    let until = Instant::now() + delay;
    feed.kept.fetch_add(1, Ordering::AcqRel);
    let place = Place(feed.clone());
    let mut lease = LockLease::new(feed.lock(), from);
    tokio::spawn(async move {
        let _place = place;
        let Ok(held) = token.get::<RestHeld>() else { return };
        while Instant::now() < until {
            sleep_until(until.min(lease.due())).await;
            if !feed.is_open(held) {
                return;
            }
            if Instant::now() < lease.due() {
                continue;
            }
            let from = Instant::now();
            match within(feed.lock(), held.lock.renew()).await {
                Ok(()) => lease.renewed(from),
                Err(e) if e.kind() == ErrorKind::LockLost || lease.is_over() => {
                    tracing::warn!(source = %feed.source, error = %e, "a message that was held comes back early");
                    feed.let_go(held);
                    return;
                }
                Err(_) => lease.failed(),
            }
        }
        if let Err(e) = held.lock.unlock().await {
            tracing::debug!(source = %feed.source, error = %e, "a message that was held comes back when its lock ends");
        }
        feed.let_go(held);
    });
    Ok(())
}
