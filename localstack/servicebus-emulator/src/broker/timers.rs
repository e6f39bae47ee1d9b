//! The timers of all stores. Each store has one entry with its next due time, and one task per broker sleeps until the
//! first.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use super::store::MessageStore;
use crate::clock::Clock;

#[derive(Default)]
pub(super) struct StoreTimers {
    armed: Mutex<ArmedTimers>,
    sooner: Notify,
}

/// A time and a number that makes it unique.
pub(super) type TimerKey = (i64, u64);

#[derive(Default)]
struct ArmedTimers {
    stores: BTreeMap<TimerKey, Weak<MessageStore>>,
    counter: u64,
}

impl StoreTimers {
    /// Sets a store's alarm in place of its old one.
    pub(super) fn arm(&self, old: Option<TimerKey>, at: i64, store: Weak<MessageStore>) -> TimerKey {
        let mut armed = self.lock();
        if let Some(old) = old {
            armed.stores.remove(&old);
        }
        armed.counter += 1;
        let alarm = (at, armed.counter);
        armed.stores.insert(alarm, store);
        if armed.stores.first_key_value().is_some_and(|(first, _)| *first == alarm) {
            self.sooner.notify_one();
        }
        alarm
    }

    /// Runs every store that is due, and those that become due through it.
    pub(super) fn run_due(&self, now: i64) {
        while let Some((alarm, store)) = self.pop(now) {
            if let Some(store) = store.upgrade() {
                store.tick(alarm);
            }
        }
    }

    /// Runs until it is dropped.
    pub(super) async fn run(&self, clock: &Clock) {
        loop {
            let next = self.lock().stores.first_key_value().map(|((at, _), _)| *at);
            clock.wait(next, self.sooner.notified()).await;
            self.run_due(clock.now_ms());
        }
    }

    fn pop(&self, now: i64) -> Option<(TimerKey, Weak<MessageStore>)> {
        let mut armed = self.lock();
        let first = armed.stores.first_entry()?;
        (first.key().0 <= now).then(|| first.remove_entry())
    }

    fn lock(&self) -> MutexGuard<'_, ArmedTimers> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
