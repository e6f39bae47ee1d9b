//! Messages that wait for those before them.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::{Error, ErrorKind, HandlerContext, HandlerError};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::Hold;
use crate::store::{GuardKey, SequenceTable};

/// How often a message that waits looks into the table. What this process commits wakes it at once.
const LOOK: Duration = Duration::from_millis(200);

/// How many may wait where no worker has told its concurrency.
const PLACES: usize = 8;

/// The messages of one process that wait.
pub(crate) struct Holds {
    keys: Mutex<HashMap<GuardKey, HeldKey>>,
    /// How many may wait, all keys together.
    places: AtomicUsize,
}

/// A number that waits for those below it.
pub(super) struct Held {
    pub(super) key: GuardKey,
    pub(super) n: i64,
    /// The number that comes next for a key of which nothing came, where that is known.
    pub(super) start: Option<i64>,
}

struct HeldKey {
    waiting: usize,
    moved: Arc<Notify>,
}

/// A place among those that wait, given back when it is dropped.
struct Place<'a> {
    holds: &'a Holds,
    key: GuardKey,
    moved: Arc<Notify>,
}

impl Default for Holds {
    fn default() -> Self {
        Self { keys: Mutex::default(), places: AtomicUsize::new(PLACES) }
    }
}

impl Holds {
    /// Half of a worker's places.
    pub(super) fn of_worker(&self, concurrency: usize) {
        self.places.store(concurrency / 2, Relaxed);
    }

    /// The key has moved on: those that wait for it look.
    pub(super) fn moved(&self, key: &GuardKey) {
        if let Some(held) = self.keys.lock().get(key) {
            held.moved.notify_waiters();
        }
    }

    fn take(&self, key: GuardKey, per_key: usize) -> Option<Place<'_>> {
        let mut keys = self.keys.lock();
        let waiting: usize = keys.values().map(|held| held.waiting).sum();
        if waiting >= self.places.load(Relaxed) || keys.get(&key).is_some_and(|held| held.waiting >= per_key) {
            return None;
        }
        let held = keys.entry(key).or_insert_with(|| HeldKey { waiting: 0, moved: Arc::default() });
        held.waiting += 1;
        Some(Place { holds: self, key, moved: held.moved.clone() })
    }

    /// Waits until all numbers below `n` have come, for at most the hold's time. Where there is no place it does not wait.
    ///
    /// # Errors
    /// Those of the table, and where the delivery's lock was lost meanwhile: somebody else has the message then.
    pub(super) async fn wait(
        &self,
        context: &HandlerContext,
        table: &dyn SequenceTable,
        number: Held,
        hold: Hold,
    ) -> Result<(), HandlerError> {
        let Held { key, n, start } = number;
        let Some(place) = self.take(key, hold.per_key) else { return Ok(()) };
        let until = Instant::now() + hold.up_to;
        loop {
            // Before the look, so that what moves the key after it is heard.
            let mut moved = std::pin::pin!(place.moved.notified());
            moved.as_mut().enable();
            if table.next(&key).await?.or(start).is_none_or(|next| n <= next) {
                return Ok(());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let _ = timeout(left.min(LOOK), moved).await;
            if context.is_lock_lost() {
                let text = "the delivery's lock was lost while it waited for the messages before it";
                return Err(Error::new(ErrorKind::LockLost, text).into());
            }
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut keys = self.holds.keys.lock();
        let Some(held) = keys.get_mut(&self.key) else { return };
        held.waiting -= 1;
        if held.waiting == 0 {
            keys.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_by_key_and_in_all_and_given_back() {
        let (holds, key) = (Holds::default(), |key| GuardKey { consumer: 1, key: [key; 16] });
        holds.of_worker(6);
        let one = holds.take(key(1), 2);
        let two = holds.take(key(1), 2);
        assert!(one.is_some() && two.is_some() && holds.take(key(1), 2).is_none());
        let third = holds.take(key(2), 2);
        assert!(third.is_some() && holds.take(key(3), 2).is_none());
        drop((one, two, third));
        assert!(holds.keys.lock().is_empty() && holds.take(key(3), 2).is_some());
    }
}
