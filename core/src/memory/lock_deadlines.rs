//! When the locks of handed-out messages end.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// The end of one lock, as it was when it was noted. The lock may have been extended or settled since.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LockEnd {
    pub(super) until: Instant,
    /// The slot of the locked message, and the number that tells it from an earlier one in that slot.
    pub(super) slot: u32,
    pub(super) number: u64,
}

/// Finds the next lock that ends, cheaply.
///
/// Locks of one length end in the order in which they were taken, so one queue per length needs no sorting. Only
/// extended locks go to a heap, and only when their first deadline has come. Deadlines of settled locks are skipped
/// when they come to the front.
pub(super) struct LockDeadlines {
    by_length: Vec<(Duration, VecDeque<LockEnd>)>,
    extended: BinaryHeap<Reverse<LockEnd>>,
}

/// A queue or the heap is cleared of settled locks when it is longer than this and twice the number of locks.
const SLACK: usize = 64;

impl LockDeadlines {
    pub(super) fn new() -> Self {
        Self { by_length: Vec::new(), extended: BinaryHeap::new() }
    }

    /// Adds a lock of this length, taken now. `until_of` returns the deadline of a lock that is not settled, `locked`
    /// is the number of these.
    pub(super) fn add(
        &mut self,
        length: Duration,
        due: LockEnd,
        locked: usize,
        until_of: impl Fn(LockEnd) -> Option<Instant>,
    ) {
        let at = self.by_length.iter().position(|(l, _)| *l == length).unwrap_or_else(|| {
            self.by_length.push((length, VecDeque::new()));
            self.by_length.len() - 1
        });
        let queue = &mut self.by_length[at].1;
        queue.push_back(due);
        if queue.len() > 2 * locked + SLACK {
            queue.retain(|d| until_of(*d).is_some());
        }
    }

    /// Adds a deadline that may be before ones already there.
    pub(super) fn add_unsorted(&mut self, due: LockEnd, locked: usize, until_of: impl Fn(LockEnd) -> Option<Instant>) {
        self.extended.push(Reverse(due));
        if self.extended.len() > 2 * locked + SLACK {
            self.extended.retain(|Reverse(d)| until_of(*d) == Some(d.until));
        }
    }

    /// Removes and returns a lock that has ended.
    pub(super) fn pop_expired(
        &mut self,
        now: Instant,
        until_of: impl Fn(LockEnd) -> Option<Instant>,
    ) -> Option<LockEnd> {
        for (_, queue) in &mut self.by_length {
            while let Some(due) = queue.pop_front_if(|d| d.until <= now) {
                match until_of(due) {
                    Some(until) if until <= now => return Some(due),
                    Some(until) => self.extended.push(Reverse(LockEnd { until, ..due })),
                    None => {}
                }
            }
        }
        while self.extended.peek().is_some_and(|Reverse(d)| d.until <= now) {
            let Reverse(due) = self.extended.pop()?;
            match until_of(due) {
                Some(until) if until <= now => return Some(due),
                Some(until) => self.extended.push(Reverse(LockEnd { until, ..due })),
                None => {}
            }
        }
        None
    }

    /// When the next lock ends.
    pub(super) fn next(&mut self, until_of: impl Fn(LockEnd) -> Option<Instant>) -> Option<Instant> {
        for (_, queue) in &mut self.by_length {
            while let Some(due) = queue.front().copied() {
                match until_of(due) {
                    Some(until) if until <= due.until => break,
                    Some(until) => self.extended.push(Reverse(LockEnd { until, ..due })),
                    None => {}
                }
                queue.pop_front();
            }
        }
        while let Some(Reverse(due)) = self.extended.peek().copied() {
            match until_of(due) {
                Some(until) if until <= due.until => break,
                Some(until) => self.extended.push(Reverse(LockEnd { until, ..due })),
                None => {}
            }
            self.extended.pop();
        }
        let fronts = self.by_length.iter().filter_map(|(_, queue)| queue.front()).map(|d| d.until);
        fronts.chain(self.extended.peek().map(|Reverse(d)| d.until)).min()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_of_settled_locks_do_not_pile_up() {
        let start = Instant::now();
        let mut deadlines = LockDeadlines::new();
        let lock = Duration::from_secs(30);
        let held = |d: LockEnd| (d.number == 0).then_some(start + lock);
        for number in 0..10_000 {
            let due = LockEnd { until: start + lock + Duration::from_nanos(number), slot: 0, number };
            deadlines.add(lock, due, 1, held);
            deadlines.add_unsorted(LockEnd { until: start + lock, ..due }, 1, held);
        }
        assert!(deadlines.by_length[0].1.len() <= SLACK + 3 && deadlines.extended.len() <= SLACK + 3);
        assert_eq!(deadlines.pop_expired(start + lock * 2, held).map(|d| d.number), Some(0));
    }
}
