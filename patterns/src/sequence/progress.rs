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
///
/// A number that came before may be an old copy, or the producer's counter went back. One alone tells nothing. When the
/// one behind it comes as well, the numbers are followed from there; what was followed before is kept, and comes back
/// with the number that it waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    run: Run,
    /// A number that came before and came again.
    again: Option<i64>,
    /// What was followed before the counter went back.
    old: Option<Run>,
}

/// Numbers that rise.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    /// The lowest number that came.
    first: i64,
    /// One above the highest number that came.
    next: i64,
    /// Numbers that did not come, each from the one to the other, in ascending order.
    missing: Vec<(i64, i64)>,
}

impl Run {
    fn new(first: i64, next: i64) -> Self {
        Self { first, next, missing: Vec::new() }
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

    fn missing_text(&self) -> String {
        let mut text = String::new();
        for (from, to) in &self.missing {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = if from == to { write!(text, "{comma}{from}") } else { write!(text, "{comma}{from}-{to}") };
        }
        text
    }

    /// What cannot be read is of a newer version. Without it, a late one is taken for one that came before.
    fn read(first: i64, next: i64, missing: &str) -> Self {
        let runs = missing.split(',').filter_map(|run| {
            let (from, to) = run.split_once('-').unwrap_or((run, run));
            Some((from.parse().ok()?, to.parse().ok()?))
        });
        Self { first, next, missing: runs.collect() }
    }
}

impl Progress {
    fn of(run: Run) -> Self {
        Self { run, again: None, old: None }
    }

    /// A key of which nothing came, and that begins with 1.
    pub(crate) fn at_the_start() -> Self {
        Self::of(Run::new(1, 1))
    }

    /// `None` for a key of which nothing came.
    pub(crate) fn read(stored: &StoredProgress) -> Option<Self> {
        let mut progress = Self::of(Run::read(stored.first, stored.next, stored.missing.as_deref()?));
        for part in stored.aside.split(';') {
            match part.split_once('=') {
                Some(("again", n)) => progress.again = n.parse().ok(),
                Some(("old", run)) => {
                    let mut fields = run.splitn(3, ':');
                    let mut number = || fields.next().and_then(|n| n.parse().ok());
                    if let (Some(first), Some(next)) = (number(), number()) {
                        progress.old = Some(Run::read(first, next, fields.next().unwrap_or_default()));
                    }
                }
                _ => {}
            }
        }
        Some(progress)
    }

    pub(crate) fn stored(&self) -> StoredProgress {
        let mut aside = self.again.map_or_else(String::new, |n| format!("again={n}"));
        if let Some(old) = &self.old {
            let semicolon = if aside.is_empty() { "" } else { ";" };
            let _ = write!(aside, "{semicolon}old={}:{}:{}", old.first, old.next, old.missing_text());
        }
        let missing = Some(self.run.missing_text());
        StoredProgress { first: self.run.first, next: self.run.next, missing, aside, told_at: 0 }
    }

    pub(crate) fn next(&self) -> i64 {
        self.run.next
    }

    pub(crate) fn missing(&self) -> &[(i64, i64)] {
        &self.run.missing
    }

    /// Whether the number is the next one, or one that is missing.
    pub(crate) fn wants(&self, n: i64) -> bool {
        n == self.run.next || self.run.missing.iter().any(|(from, to)| (*from..=*to).contains(&n))
    }

    /// Waits no more for numbers up to this one.
    pub(crate) fn skip(&mut self, through: i64) {
        self.run.next = self.run.next.max(through + 1);
        self.run.missing.retain_mut(|(from, to)| {
            *from = (*from).max(through + 1);
            from <= to
        });
    }

    /// Takes in a number, and answers how far the key has come then, and what there is to tell.
    pub(crate) fn after(of: Option<&Self>, n: i64) -> (Self, Vec<SequenceFinding>) {
        let Some(before) = of else { return (Self::of(Run::new(n, n + 1)), Vec::new()) };
        let mut after = before.clone();
        let findings = after.take(n);
        (after, findings)
    }

    fn take(&mut self, n: i64) -> Vec<SequenceFinding> {
        let number = n.unsigned_abs();
        if n > self.run.next
            && let Some(mut old) = self.old.take_if(|old| old.next == n)
        {
            // Those were old copies.
            old.next = n + 1;
            *self = Self::of(old);
            return Vec::new();
        }
        if n >= self.run.next {
            let gap = (n > self.run.next).then(|| self.run.lack(self.run.next, n - 1));
            self.run.next = n + 1;
            self.old.take_if(|old| old.next <= n);
            return gap.into_iter().collect();
        }
        if self.run.came_late(n) {
            return vec![SequenceFinding::Late { number }];
        }
        if n < self.run.first && self.run.first - n <= EARLY {
            let gap = (n + 1 < self.run.first).then(|| self.run.lack(n + 1, self.run.first - 1));
            self.run.first = n;
            return gap.into_iter().chain([SequenceFinding::Late { number }]).collect();
        }
        // A number that came before, under another id.
        if self.again != Some(n - 1) {
            self.again = Some(n);
            return vec![SequenceFinding::Repeated { number }];
        }
        let expected = self.run.next.unsigned_abs();
        let old = std::mem::replace(&mut self.run, Run::new(n - 1, n + 1));
        *self = Self { run: self.run.clone(), again: None, old: Some(old) };
        vec![SequenceFinding::Restarted { number, expected }]
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
            assert_eq!(progress, Progress::of(Run::new(first, first + 10)));
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
        assert_eq!(progress.missing(), [(5, 5), (9, 10)]);
        assert!(progress.wants(5) && progress.wants(10) && progress.wants(12));
        assert!(!progress.wants(4) && !progress.wants(13));
    }

    #[test]
    fn what_was_on_its_way_before_the_first_is_late_and_no_restart() {
        assert_eq!(told([2, 1, 3]).1, [Late { number: 1 }]);
        let (progress, told) = told([5, 3, 4, 6]);
        assert_eq!(told, [Gap { first: 4, last: 4 }, Late { number: 3 }, Late { number: 4 }]);
        assert!(progress.missing().is_empty());
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
    fn a_counter_that_went_back_is_followed_from_its_second_number_on() {
        let (progress, anew) = told([1, 2, 3, 4, 5, 1, 2, 3, 5]);
        assert_eq!(anew, [Repeated { number: 1 }, Restarted { number: 2, expected: 6 }, Gap { first: 4, last: 4 }]);
        assert_eq!(progress.next(), 6);
        let restored = told((50..=100).chain(61..=102)).1;
        assert_eq!(restored, [Repeated { number: 61 }, Restarted { number: 62, expected: 101 }]);
        // Its first two have swapped places.
        let swapped = told([1, 2, 3, 4, 5, 6, 2, 1, 3, 4, 5]).1;
        let again = |number| Repeated { number };
        assert_eq!(swapped, [again(2), again(1), again(3), Restarted { number: 4, expected: 7 }]);
        let (far_back, told) = told([5_000_000, 4_000_000]);
        assert_eq!(told, [again(4_000_000)]);
        assert!(far_back.missing().is_empty());
    }

    #[test]
    fn old_copies_change_nothing() {
        let again = |number| Repeated { number };
        let (progress, told_of) = told([1, 2, 3, 4, 6, 1, 7]);
        assert_eq!(told_of, [Gap { first: 5, last: 5 }, again(1)]);
        assert_eq!((progress.next(), progress.missing()), (8, &[(5, 5)][..]));
        // Two of them look like a counter that went back, until the number comes that was waited for.
        let (progress, told_of) = told([1, 2, 3, 4, 6, 1, 2, 7, 5]);
        let restarted = Restarted { number: 2, expected: 7 };
        assert_eq!(told_of, [Gap { first: 5, last: 5 }, again(1), restarted, Late { number: 5 }]);
        assert_eq!((progress.next(), progress.missing().len()), (8, 0));
    }

    #[test]
    fn numbers_are_skipped() {
        let (mut progress, _) = told([1, 5, 8]);
        progress.skip(3);
        assert_eq!((progress.missing(), progress.next()), (&[(4, 4), (6, 7)][..], 9));
        progress.skip(20);
        assert_eq!((progress.missing().len(), progress.next()), (0, 21));
    }

    #[test]
    fn a_key_remembers_so_many_gaps() {
        let (progress, told) = told((0..100).map(|n| n * 2));
        assert_eq!(told.len(), 99);
        assert_eq!(progress.missing().len(), MOST_RUNS);
        assert_eq!(progress.missing().last(), Some(&(197, 197)));
        // A gap that is parted in two is no way around it.
        let (mut wide, _) = Progress::after(Some(&progress), 1000);
        wide.take(500);
        assert_eq!(wide.missing().len(), MOST_RUNS);
    }

    #[test]
    fn what_a_newer_version_wrote_is_passed_over() {
        let missing = Some("3-4,x,7".to_owned());
        let stored = StoredProgress { first: 1, next: 9, missing, aside: "new=1;again=x;old=y".to_owned(), told_at: 0 };
        let progress = Progress::read(&stored).unwrap();
        assert_eq!(progress.missing(), [(3, 4), (7, 7)]);
        assert_eq!((progress.again, progress.old), (None, None));
    }

    proptest! {
        /// Whatever is lost, and in whatever order the others come: what was told as missing and not as late is what
        /// was lost, between the first and the last that came.
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
