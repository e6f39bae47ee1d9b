//! Holding a message in place over HTTP: a task for each message renews its lock, and unlocks it when its time has
//! come.

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
    error,
    rest::consumer::{RestConsumer, RestDelivery},
};

/// The place in the prefetch that a held message keeps, until this is dropped.
struct PrefetchPlace(Arc<RestConsumer>);

impl Drop for PrefetchPlace {
    fn drop(&mut self) {
        self.0.held_in_place.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_waiters();
    }
}

/// Holds a message for `delay`. The settler unlocks what is still held when it closes.
pub(crate) fn start(consumer: Arc<RestConsumer>, token: DriverToken, delay: Duration) -> Result<()> {
    let number = token.get::<RestDelivery>()?.number;
    let Some(from) = consumer.unsettled.hold_in_place(&number) else { return Err(error::not_held()) };
    let until = Instant::now() + delay;
    consumer.held_in_place.fetch_add(1, Ordering::AcqRel);
    let place = PrefetchPlace(consumer.clone());
    let mut lease = LockLease::new(consumer.lock_duration(), from);
    tokio::spawn(async move {
        let _place = place;
        let Ok(held) = token.get::<RestDelivery>() else { return };
        while Instant::now() < until {
            sleep_until(until.min(lease.due())).await;
            if !consumer.unsettled.contains(&number) {
                return;
            }
            if Instant::now() < lease.due() {
                continue;
            }
            let from = Instant::now();
            match within(consumer.lock_duration(), held.lock.renew()).await {
                Ok(()) => lease.renewed(from),
                Err(e) if e.kind() == ErrorKind::LockLost || lease.is_over() => {
                    tracing::warn!(source = %consumer.source, error = %e, "a message that was held comes back early");
                    consumer.unsettled.remove([number]);
                    return;
                }
                Err(_) => lease.failed(),
            }
        }
        if let Err(e) = held.lock.unlock().await {
            tracing::debug!(source = %consumer.source, error = %e, "a message that was held comes back when its lock ends");
        }
        consumer.unsettled.remove([number]);
    });
    Ok(())
}
