//! How far a key has come: which number is next, and which are missing.

use std::fmt::Write;

use super::SequenceFinding;
use crate::store::StoredProgress;

/// The most runs of missing numbers that a key remembers. Of more, the lowest are forgotten.
const MOST_RUNS: usize = 64;

/// How far below the first number one may be and still have been on its way when the first one came.
const EARLY: i64 = 1000;

/// How far a key has come.
///
/// ```text
/// first       next
///   │  missing  │
///   4 5 . . 8 9 ┆     came: 4 5 8 9    missing: 6–7    next: 10
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The lowest number that came.
    first: i64,
    /// One above the highest number that came.
    next: i64,
    /// Runs of numbers that did not come, each from the one to the other, in ascending order.
    missing: Vec<(i64, i64)>,
}

impl Progress {
    /// A key of which this number is the first that came.
    fn from(n: i64) -> Self {
        Self { first: n, next: n + 1, missing: Vec::new() }
    }

    /// A key of which nothing came, and that begins with 1.
    pub(crate) fn at_the_start() -> Self {
        Self { first: 1, next: 1, missing: Vec::new() }
    }

    /// `None` for a key of which nothing came.
    pub(crate) fn read(stored: &StoredProgress) -> Option<Self> {
        let missing = stored.missing.as_deref()?;
        // What cannot be read is of a newer version. Without it, a late one is taken for one that came before.
        let runs = missing.split(',').filter_map(|run| {
            let (from, to) = run.split_once('-').unwrap_or((run, run));
            Some((from.parse().ok()?, to.parse().ok()?))
        });
        Some(Self { first: stored.first, next: stored.next, missing: runs.collect() })
    }

    pub(crate) fn stored(&self) -> StoredProgress {
        let mut missing = String::new();
        for (from, to) in &self.missing {
            let comma = if missing.is_empty() { "" } else { "," };
            let _ = if from == to { write!(missing, "{comma}{from}") } else { write!(missing, "{comma}{from}-{to}") };
        }
        StoredProgress { first: self.first, next: self.next, missing: Some(missing) }
    }

    pub(crate) fn next(&self) -> i64 {
        self.next
    }

    pub(crate) fn missing(&self) -> &[(i64, i64)] {
        &self.missing
    }

    /// Takes in a number, and answers how far the key has come then, and what there is to tell.
    pub(crate) fn after(of: Option<&Self>, n: i64) -> (Self, Vec<SequenceFinding>) {
        let Some(before) = of else { return (Self::from(n), Vec::new()) };
        let mut after = before.clone();
        let findings = after.take(n);
        (after, findings)
    }

    fn take(&mut self, n: i64) -> Vec<SequenceFinding> {
        let number = n.unsigned_abs();
        if n >= self.next {
            let gap = (n > self.next).then(|| self.lack(self.next, n - 1));
            self.next = n + 1;
            return gap.into_iter().collect();
        }
        if self.came_late(n) {
            return vec![SequenceFinding::Late { number }];
        }
        if n < self.first && self.first - n <= EARLY {
            let gap = (n + 1 < self.first).then(|| self.lack(n + 1, self.first - 1));
            self.first = n;
            return gap.into_iter().chain([SequenceFinding::Late { number }]).collect();
        }
        // A number that came before, under another id. The first number of all comes again where the producer begins anew.
        if n <= 1 {
            let expected = self.next.unsigned_abs();
            *self = Self::from(n);
            return vec![SequenceFinding::Restarted { number, expected }];
        }
        vec![SequenceFinding::Repeated { number }]
    }

    fn lack(&mut self, from: i64, to: i64) -> SequenceFinding {
        let place = self.missing.partition_point(|run| run.0 < from);
        self.missing.insert(place, (from, to));
        self.forget();
        SequenceFinding::Gap { first: from.unsigned_abs(), last: to.unsigned_abs() }
    }

    fn forget(&mut self) {
        let too_many = self.missing.len().saturating_sub(MOST_RUNS);
        self.missing.drain(..too_many);
    }

    /// Whether the number was missing. Then it is no more.
    fn came_late(&mut self, n: i64) -> bool {
        let Some(place) = self.missing.iter().position(|(from, to)| (*from..=*to).contains(&n)) else { return false };
        let (from, to) = self.missing.remove(place);
        let left = [(from, n - 1), (n + 1, to)].into_iter().filter(|(from, to)| from <= to);
        self.missing.splice(place..place, left);
        self.forget();
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{SequenceFinding::*, *};

    /// What is told of these numbers, one after the other.
    fn told(numbers: impl IntoIterator<Item = i64>) -> (Progress, Vec<SequenceFinding>) {
        let (mut progress, mut told) = (None, Vec::new());
        for n in numbers {
            let (after, findings) = Progress::after(progress.as_ref(), n);
            // As from the table.
            assert_eq!(Progress::read(&after.stored()), Some(after.clone()));
            progress = Some(after);
            told.extend(findings);
        }
        (progress.unwrap(), told)
    }

    #[test]
    fn nothing_is_told_of_numbers_in_order_whatever_the_first_is() {
        for first in [0, 1, 77] {
            let (progress, told) = told(first..first + 10);
            assert!(told.is_empty(), "{told:?}");
            assert_eq!((progress.first, progress.next, progress.missing.len()), (first, first + 10, 0));
        }
        assert_eq!(Progress::read(&StoredProgress::default()), None);
    }

    #[test]
    fn what_is_missing_is_told_once_and_what_comes_late_too() {
        let (progress, told) = told([1, 2, 6, 7, 4, 8, 3, 11]);
        assert_eq!(
            told,
            [Gap { first: 3, last: 5 }, Late { number: 4 }, Late { number: 3 }, Gap { first: 9, last: 10 }]
        );
        assert_eq!(progress.missing, [(5, 5), (9, 10)]);
    }

    #[test]
    fn what_was_on_its_way_before_the_first_is_late_and_no_restart() {
        assert_eq!(told([2, 1, 3]).1, [Late { number: 1 }]);
        let (progress, told) = told([5, 3, 4, 6]);
        assert_eq!(told, [Gap { first: 4, last: 4 }, Late { number: 3 }, Late { number: 4 }]);
        assert!(progress.missing.is_empty());
    }

    #[test]
    fn a_key_that_begins_with_one_lacks_what_is_before_its_first() {
        let start = Progress::at_the_start();
        assert_eq!(Progress::after(Some(&start), 1).1, []);
        let (progress, told) = Progress::after(Some(&start), 4);
        assert_eq!(told, [Gap { first: 1, last: 3 }]);
        assert_eq!(Progress::after(Some(&progress), 1).1, [Late { number: 1 }]);
    }

    #[test]
    fn a_counter_that_begins_anew_or_went_back_is_no_duplicate() {
        let (progress, anew) = told([1, 2, 3, 1, 2]);
        assert_eq!(anew, [Restarted { number: 1, expected: 4 }]);
        assert_eq!(progress.next, 3);
        assert_eq!(told([5, 6, 7, 6, 7, 8]).1, [Repeated { number: 6 }, Repeated { number: 7 }]);
        let (far_back, told) = told([5_000_000, 4_000_000]);
        assert_eq!(told, [Repeated { number: 4_000_000 }]);
        assert!(far_back.missing.is_empty());
    }

    #[test]
    fn a_key_remembers_so_many_gaps() {
        let (progress, told) = told((0..100).map(|n| n * 2));
        assert_eq!(told.len(), 99);
        assert_eq!(progress.missing.len(), MOST_RUNS);
        assert_eq!(progress.missing.last(), Some(&(197, 197)));
        // A gap that is parted in two is no way around it.
        let (mut wide, _) = Progress::after(Some(&progress), 1000);
        wide.take(500);
        assert_eq!(wide.missing.len(), MOST_RUNS);
    }

    #[test]
    fn what_a_newer_version_wrote_is_passed_over() {
        let stored = StoredProgress { first: 1, next: 9, missing: Some("3-4,x,7".to_owned()) };
        assert_eq!(Progress::read(&stored).unwrap().missing, [(3, 4), (7, 7)]);
    }

    proptest! {
        /// Whatever is lost, and in whatever order the others come: what was told as missing and not as late is what was
        /// lost, between the first and the last that came.
        #[test]
        fn what_is_told_is_what_happened(
            (order, lost) in (2..40_i64).prop_flat_map(|most| (
                Just((1..=most).collect::<Vec<_>>()).prop_shuffle(),
                prop::collection::vec(any::<bool>(), usize::try_from(most).unwrap() + 1),
            ))
        ) {
            let came: Vec<i64> = order.into_iter().filter(|n| !lost[usize::try_from(*n).unwrap()]).collect();
            prop_assume!(!came.is_empty());
            let (_, told) = told(came.iter().copied());
            let mut missing = std::collections::BTreeSet::new();
            for finding in told {
                match finding {
                    Gap { first, last } => missing.extend(first..=last),
                    Late { number } => { missing.remove(&number); }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            let (low, high) = (*came.iter().min().unwrap(), *came.iter().max().unwrap());
            let wanted = (low..=high).filter(|n| !came.contains(n)).map(i64::unsigned_abs);
            prop_assert!(missing.into_iter().eq(wanted));
        }
    }
}
