//! Where a pass ends: once everything is read that was there at its start, although new dead letters may come for ever.
//!
//! The broker's counts decide, never the clocks of other machines. Where a count is exact, that many letters are read.
//! Where it is approximate, the pass goes on past it until a silence, a recount or the end of the bounded tail ends it.
//! Where there is no count, a silence ends the pass, and so do the limits `UNCOUNTED` and `UNCOUNTED_WAITS`.

use std::time::Duration;

use tokio::time::Instant;

use super::RedriveEnd;
use crate::topology::SourceStats;

/// A time without a letter that counts as silence.
const QUIET: Duration = Duration::from_secs(2);
/// The same, once the exact count has been read. Nothing more is expected, so a shorter wait is enough.
const SHORT_QUIET: Duration = Duration::from_millis(500);
/// This many silences in a row end a pass that has not read all that were counted. A broker may be slow to hand a
/// letter out, or other consumers may hold the rest.
const SILENCES: u32 = 5;
/// How often an approximate count is asked for again because it turned out too low.
const RECOUNTS: u32 = 10;
/// A recount that finds this many letters or fewer begins the tail instead of another round.
const FEW: u64 = 50;
/// How long the tail lasts, in which whatever still comes is read. It is repeated while it brings letters.
const TAIL: Duration = Duration::from_secs(5);
/// How often the tail is repeated at most.
const TAILS: u32 = 10;
/// Without a count: how many letters are read at most.
const UNCOUNTED: u64 = 100_000;
/// Without a count: how long letters are waited for at most, all waits added up.
const UNCOUNTED_WAITS: Duration = Duration::from_secs(10);

/// What the broker has counted, and how reading has gone since.
pub(super) struct EndDetector {
    /// The count at the start; `None` where the broker does not count.
    counted: Option<u64>,
    exact: bool,
    /// How many letters to read before the broker is asked again, by its last count.
    target: u64,
    recounts: u32,
    /// While the tail lasts: when it ends.
    tail_ends: Option<Instant>,
    tails: u32,
    /// How many letters had been read when the tail began.
    tail_read: u64,
    /// After the last silence the broker counted letters that have not come. A second such silence ends the pass.
    doubted: bool,
    /// Silences since the last letter.
    silences: u32,
    waited: Duration,
}

impl EndDetector {
    pub(super) fn new(stats: &SourceStats) -> Self {
        let counted = stats.dead_lettered;
        Self {
            counted,
            exact: counted.is_some() && !stats.approximate,
            target: counted.unwrap_or(u64::MAX),
            recounts: 0,
            tail_ends: None,
            tails: 0,
            tail_read: 0,
            doubted: false,
            silences: 0,
            waited: Duration::ZERO,
        }
    }

    /// The count at the start, where it is exact.
    pub(super) fn exactly(&self) -> Option<u64> {
        self.counted.filter(|_| self.exact)
    }

    /// How many of the letters that were counted at the start have not been read.
    pub(super) fn left(&self, read: u64) -> Option<u64> {
        Some(self.counted?.saturating_sub(read))
    }

    /// How long to wait for the next letter before the wait counts as a silence.
    pub(super) fn wait_for_next(&self, read: u64) -> Duration {
        if self.exact && self.has_all(read) { SHORT_QUIET } else { QUIET }
    }

    /// Whether as many letters have been read as were counted at the start.
    pub(super) fn has_all(&self, read: u64) -> bool {
        self.counted.is_some_and(|counted| read >= counted)
    }

    /// Whether the broker must be asked for its count after a silence: the count at the start may have been too low, or
    /// letters that it counted may be gone.
    pub(super) fn doubts_silence(&self, read: u64) -> bool {
        self.counted.is_some() && !(self.exact && self.has_all(read))
    }

    /// Decides, after a silence, how the pass ends. `None`: it does not end yet, and waits for the next letter again.
    /// `there` is the broker's count of now, without the letters that the pass has in hand; `None` if the broker was
    /// not asked or did not answer.
    pub(super) fn after_silence(&mut self, read: u64, there: Option<u64>) -> Option<RedriveEnd> {
        self.silences += 1;
        match there {
            Some(0) if !self.has_all(read) => Some(RedriveEnd::Silence),
            _ if !self.has_all(read) => {
                (self.counted.is_none() || self.silences >= SILENCES).then_some(RedriveEnd::Silence)
            }
            Some(there) if there > 0 && self.doubted => Some(RedriveEnd::Silence),
            Some(there) if there > 0 => {
                self.doubted = true;
                None
            }
            _ => Some(RedriveEnd::Empty),
        }
    }

    /// A letter came, after a wait of `time`.
    pub(super) fn letter_came_after(&mut self, time: Duration) {
        (self.doubted, self.silences) = (false, 0);
        // A shorter wait is no more than the round trip: the broker had the letter ready.
        if self.counted.is_none() && time >= Duration::from_millis(100) {
            self.waited += time;
        }
    }

    /// How the pass ends, if all letters of the start are read by what is known without asking the broker.
    pub(super) fn all_read(&self, read: u64) -> Option<RedriveEnd> {
        if self.exact {
            return (read >= self.target).then_some(RedriveEnd::Empty);
        }
        let over = self.counted.is_none() && (read >= UNCOUNTED || self.waited >= UNCOUNTED_WAITS);
        over.then_some(RedriveEnd::Newer)
    }

    /// Whether the broker must be asked how many are left.
    pub(super) fn wants_count(&self, read: u64) -> bool {
        if self.exact || self.counted.is_none() || read <= self.counted.unwrap_or_default() {
            return false;
        }
        match self.tail_ends {
            Some(at) => Instant::now() >= at,
            None => read >= self.target,
        }
    }

    /// Takes a new count and decides how the pass ends, or `None` if it goes on. `there` is as in
    /// [`after_silence`](Self::after_silence).
    pub(super) fn recounted(&mut self, read: u64, there: Option<u64>) -> Option<RedriveEnd> {
        let was_tail = self.tail_ends.is_some();
        match there {
            // An approximate count lags: it shows letters late that became dead letters shortly before the start.
            Some(there) if there > FEW && self.recounts < RECOUNTS => {
                self.recounts += 1;
                (self.target, self.tail_ends) = (read + there, None);
                None
            }
            Some(there) if was_tail && there > 0 && read > self.tail_read && self.tails < TAILS => {
                self.begin_tail(read);
                None
            }
            _ if was_tail => Some(RedriveEnd::Newer),
            _ => {
                self.begin_tail(read);
                None
            }
        }
    }

    fn begin_tail(&mut self, read: u64) {
        self.tails += 1;
        (self.tail_ends, self.tail_read) = (Some(Instant::now() + TAIL), read);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(n: u64) -> EndDetector {
        let mut stats = SourceStats::default();
        (stats.dead_lettered, stats.approximate) = (Some(n), true);
        EndDetector::new(&stats)
    }

    #[test]
    fn a_low_count_is_doubted_before_a_silence_is_the_end() {
        let mut h = about(0);
        assert!(h.doubts_silence(0) && h.wait_for_next(0) == QUIET);
        assert_eq!(h.after_silence(0, Some(40)), None, "the broker counts more now");
        assert_eq!(h.after_silence(0, Some(40)), Some(RedriveEnd::Silence), "and they do not come");
        h.letter_came_after(Duration::ZERO);
        assert_eq!(h.after_silence(1, Some(39)), None, "one came: the rest may");
        assert_eq!(h.after_silence(40, Some(0)), Some(RedriveEnd::Empty));
    }

    #[test]
    fn what_was_counted_and_does_not_come_is_waited_for_a_while() {
        for there in [Some(1), None] {
            let mut h = about(5);
            assert!(h.doubts_silence(4));
            for _ in 1..SILENCES {
                assert_eq!(h.after_silence(4, there), None);
            }
            assert_eq!(h.after_silence(4, there), Some(RedriveEnd::Silence));
        }
        assert_eq!(about(5).after_silence(4, Some(0)), Some(RedriveEnd::Silence), "somebody else took it");
        assert_eq!(
            EndDetector::new(&SourceStats::default()).after_silence(4, None),
            Some(RedriveEnd::Silence),
            "nobody counts"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_tail_lasts_as_long_as_it_brings_something() {
        let mut h = about(100);
        assert!(!h.wants_count(100) && h.wants_count(101));
        assert_eq!(h.recounted(101, Some(39)), None);
        for round in 1..=5 {
            assert!(!h.wants_count(101 + round));
            tokio::time::advance(TAIL).await;
            assert!(h.wants_count(101 + round));
            assert_eq!(h.recounted(101 + round, Some(39 - round)), None, "letters from before still come");
        }
        tokio::time::advance(TAIL).await;
        assert_eq!(h.recounted(106, Some(34)), Some(RedriveEnd::Newer), "nothing came in a whole tail");
    }
}
