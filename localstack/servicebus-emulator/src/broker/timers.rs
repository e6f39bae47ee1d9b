//! When which store has something to do: one entry per store, one sleeping task per broker, none while nothing is pending.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::Notify;

use super::store::Store;
use crate::clock::Clock;

#[derive(Default)]
pub(super) struct Timers {
    armed: Mutex<Armed>,
    sooner: Notify,
}

/// A time and a number that makes it unique.
pub(super) type Alarm = (i64, u64);

#[derive(Default)]
struct Armed {
    stores: BTreeMap<Alarm, Weak<Store>>,
    counter: u64,
}

impl Timers {
    /// Sets a store's alarm in place of its old one.
    pub(super) fn arm(&self, old: Option<Alarm>, at: i64, store: Weak<Store>) -> Alarm {
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

    /// Does all that is due, and what that makes due.
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

    fn pop(&self, now: i64) -> Option<(Alarm, Weak<Store>)> {
        let mut armed = self.lock();
        let first = armed.stores.first_entry()?;
        (first.key().0 <= now).then(|| first.remove_entry())
    }

    fn lock(&self) -> MutexGuard<'_, Armed> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
