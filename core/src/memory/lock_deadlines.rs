//! When the locks of the deliveries of a source run out.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// A lock: until when, at which place among the held ones, and its number there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub(super) until: Instant,
    pub(super) place: u32,
    pub(super) number: u64,
}

/// Locks of one length run out in the order they were taken, so a line for each length needs no sorting. Only extended
/// locks go to a heap, and only once their first deadline has come. Settled ones are skipped when they come to the front.
pub(super) struct Deadlines {
    lines: Vec<(Duration, VecDeque<Due>)>,
    moved: BinaryHeap<Reverse<Due>>,
}

/// A line is swept when it is longer than twice what is held, and this.
const SLACK: usize = 64;

impl Deadlines {
    pub(super) fn new() -> Self {
        Self { lines: Vec::new(), moved: BinaryHeap::new() }
    }

    /// Adds a lock of this length, taken now. `until_of` tells the deadline of what is still held, `held` how many are.
    pub(super) fn add(&mut self, lock: Duration, due: Due, held: usize, until_of: impl Fn(Due) -> Option<Instant>) {
        let at = self.lines.iter().position(|(l, _)| *l == lock).unwrap_or_else(|| {
            self.lines.push((lock, VecDeque::new()));
            self.lines.len() - 1
        });
        let line = &mut self.lines[at].1;
        line.push_back(due);
        if line.len() > 2 * held + SLACK {
            line.retain(|d| until_of(*d).is_some());
        }
    }

    /// Adds a deadline that may come before ones already there.
    pub(super) fn add_moved(&mut self, due: Due, held: usize, until_of: impl Fn(Due) -> Option<Instant>) {
        self.moved.push(Reverse(due));
        if self.moved.len() > 2 * held + SLACK {
            self.moved.retain(|Reverse(d)| until_of(*d) == Some(d.until));
        }
    }

    /// Removes and returns a lock that has run out.
    pub(super) fn pop_expired(&mut self, now: Instant, until_of: impl Fn(Due) -> Option<Instant>) -> Option<Due> {
        for (_, line) in &mut self.lines {
            while let Some(due) = line.pop_front_if(|d| d.until <= now) {
                match until_of(due) {
                    Some(until) if until <= now => return Some(due),
                    Some(until) => self.moved.push(Reverse(Due { until, ..due })),
                    None => {}
                }
            }
        }
        while self.moved.peek().is_some_and(|Reverse(d)| d.until <= now) {
            let Reverse(due) = self.moved.pop()?;
            match until_of(due) {
                Some(until) if until <= now => return Some(due),
                Some(until) => self.moved.push(Reverse(Due { until, ..due })),
                None => {}
            }
        }
        None
    }

    /// When the next lock runs out.
    pub(super) fn next(&mut self, until_of: impl Fn(Due) -> Option<Instant>) -> Option<Instant> {
        for (_, line) in &mut self.lines {
            while let Some(due) = line.front().copied() {
                match until_of(due) {
                    Some(until) if until <= due.until => break,
                    Some(until) => self.moved.push(Reverse(Due { until, ..due })),
                    None => {}
                }
                line.pop_front();
            }
        }
        while let Some(Reverse(due)) = self.moved.peek().copied() {
            match until_of(due) {
                Some(until) if until <= due.until => break,
                Some(until) => self.moved.push(Reverse(Due { until, ..due })),
                None => {}
            }
            self.moved.pop();
        }
        let fronts = self.lines.iter().filter_map(|(_, line)| line.front()).map(|d| d.until);
        fronts.chain(self.moved.peek().map(|Reverse(d)| d.until)).min()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settled_locks_behind_a_held_one_do_not_pile_up() {
        let start = Instant::now();
        let mut deadlines = Deadlines::new();
        let lock = Duration::from_secs(30);
        let held = |d: Due| (d.number == 0).then_some(start + lock);
        for number in 0..10_000 {
            let due = Due { until: start + lock + Duration::from_nanos(number), place: 0, number };
            deadlines.add(lock, due, 1, held);
            deadlines.add_moved(Due { until: start + lock, ..due }, 1, held);
        }
        assert!(deadlines.lines[0].1.len() <= SLACK + 3 && deadlines.moved.len() <= SLACK + 3);
        assert_eq!(deadlines.pop_expired(start + lock * 2, held).map(|d| d.number), Some(0));
    }
}
