//! Messages that wait for those before them.

use std::{
    collections::{BTreeMap, HashMap},
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

use super::{Hold, MOST_HOLDS};
use crate::store::{GuardKey, SequenceTable};

/// How often a message that waits looks into the table. What this process commits wakes it at once.
const LOOK: Duration = Duration::from_millis(200);

/// How long the look may take: a connection whose packets are lost in silence gives no answer.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// How many may wait where no worker has told its concurrency.
const PLACES: usize = 8;

/// The messages of one process that wait.
pub(crate) struct Holds {
    keys: Mutex<HashMap<GuardKey, HeldKey>>,
    /// How many may wait, all keys together.
    places: AtomicUsize,
}

/// A number that waits for those below it.
pub(super) struct HeldNumber {
    pub(super) key: GuardKey,
    pub(super) n: i64,
    /// The number that comes next for a key of which nothing came, where that is known.
    pub(super) start: Option<i64>,
}

#[derive(Default)]
struct HeldKey {
    waiting: BTreeMap<i64, usize>,
    /// One of them has waited in vain: the lowest goes.
    ended: bool,
    moved: Arc<Notify>,
}

/// A place among those that wait, given back when it is dropped.
struct HoldPlace<'a> {
    holds: &'a Holds,
    key: GuardKey,
    n: i64,
    moved: Arc<Notify>,
}

impl Default for Holds {
    fn default() -> Self {
        Self { keys: Mutex::default(), places: AtomicUsize::new(usize::MAX) }
    }
}

impl Holds {
    /// Half of a worker's places. Of several workers, the smallest counts.
    pub(super) fn of_worker(&self, concurrency: usize) {
        self.places.fetch_min(concurrency / 2, Relaxed);
    }

    /// The key has moved on: those that wait for it look.
    pub(super) fn moved(&self, key: &GuardKey) {
        if let Some(held) = self.keys.lock().get(key) {
            held.moved.notify_waiters();
        }
    }

    fn take(&self, key: GuardKey, n: i64, per_key: usize) -> Option<HoldPlace<'_>> {
        let mut keys = self.keys.lock();
        let places = match self.places.load(Relaxed) {
            usize::MAX => PLACES,
            places => places,
        };
        let waiting: usize = keys.values().map(HeldKey::count).sum();
        if waiting >= places || keys.get(&key).is_some_and(|held| held.count() >= per_key) {
            return None;
        }
        let held = keys.entry(key).or_default();
        *held.waiting.entry(n).or_default() += 1;
        Some(HoldPlace { holds: self, key, n, moved: held.moved.clone() })
    }

    /// Waits until all numbers below `n` have come, for at most the hold's time. Where there is no place it does not
    /// wait. Those that have waited in vain go in the order of their numbers.
    ///
    /// # Errors
    /// Those of the table, and where the delivery's lock was lost meanwhile: somebody else has the message then.
    pub(super) async fn wait(
        &self,
        context: &HandlerContext,
        table: &dyn SequenceTable,
        number: HeldNumber,
        hold: Hold,
    ) -> Result<(), HandlerError> {
        let HeldNumber { key, n, start } = number;
        let Some(place) = self.take(key, n, hold.per_key) else { return Ok(()) };
        let (began, mut again) = (Instant::now(), 1);
        loop {
            // Before the look, so that what moves the key after it is heard.
            let mut moved = std::pin::pin!(place.moved.notified());
            moved.as_mut().enable();
            let next = timeout(LOOK_LIMIT, table.next(&key)).await.map_err(|_| {
                let text = format!("the database did not tell within {LOOK_LIMIT:?} how far a key has come");
                Error::new(ErrorKind::Unavailable, text).safe()
            })?;
            if next?.or(start).is_none_or(|next| n <= next) || place.is_its_turn() {
                return Ok(());
            }
            let left = hold.up_to.saturating_mul(again).saturating_sub(began.elapsed());
            if left.is_zero() {
                if again == MOST_HOLDS || place.let_the_lowest_go() {
                    return Ok(());
                }
                again += 1;
                continue;
            }
            let _ = timeout(left.min(LOOK), moved).await;
            if context.is_lock_lost() {
                let text = "the delivery's lock was lost while it waited for the messages before it";
                return Err(Error::new(ErrorKind::LockLost, text).into());
            }
        }
    }
}

impl HeldKey {
    fn count(&self) -> usize {
        self.waiting.values().sum()
    }

    fn is_lowest(&self, n: i64) -> bool {
        self.waiting.keys().next() == Some(&n)
    }
}

impl HoldPlace<'_> {
    /// Whether another one has waited in vain, and this is the lowest.
    fn is_its_turn(&self) -> bool {
        let mut keys = self.holds.keys.lock();
        let Some(held) = keys.get_mut(&self.key) else { return false };
        held.is_lowest(self.n) && std::mem::take(&mut held.ended)
    }

    /// This one has waited in vain. Answers whether it is the lowest itself.
    fn let_the_lowest_go(&self) -> bool {
        let mut keys = self.holds.keys.lock();
        let Some(held) = keys.get_mut(&self.key) else { return true };
        if held.is_lowest(self.n) {
            return true;
        }
        held.ended = true;
        held.moved.notify_waiters();
        false
    }
}

impl Drop for HoldPlace<'_> {
    fn drop(&mut self) {
        let mut keys = self.holds.keys.lock();
        let Some(held) = keys.get_mut(&self.key) else { return };
        // Whoever let it go first waits on, and so does the next one.
        if held.is_lowest(self.n) {
            held.ended = false;
        }
        if let Some(count) = held.waiting.get_mut(&self.n) {
            *count -= 1;
            if *count == 0 {
                held.waiting.remove(&self.n);
            }
        }
        if held.waiting.is_empty() {
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
        let one = holds.take(key(1), 7, 2);
        let two = holds.take(key(1), 7, 2);
        assert!(one.is_some() && two.is_some() && holds.take(key(1), 8, 2).is_none());
        let third = holds.take(key(2), 1, 2);
        assert!(third.is_some() && holds.take(key(3), 1, 2).is_none());
        drop((one, two, third));
        assert!(holds.keys.lock().is_empty() && holds.take(key(3), 1, 2).is_some());
    }

    #[test]
    fn what_has_waited_in_vain_lets_the_lowest_go_first() {
        let (holds, key) = (Holds::default(), GuardKey { consumer: 1, key: [1; 16] });
        let place = |n| holds.take(key, n, 8).expect("there is room");
        let (five, three, four) = (place(5), place(3), place(4));
        assert!(!five.is_its_turn() && !three.is_its_turn());
        assert!(!five.let_the_lowest_go());
        assert!(!four.is_its_turn() && three.is_its_turn() && !three.is_its_turn());
        drop(three);
        assert!(!five.let_the_lowest_go() && four.is_its_turn());
        drop(four);
        // One that went because its turn had come by itself leaves no turn to the next.
        let (four, six) = (place(4), place(6));
        assert!(!six.let_the_lowest_go());
        drop(four);
        assert!(!five.is_its_turn() && five.let_the_lowest_go());
    }
}
