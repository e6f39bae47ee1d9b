//! How far to go: everything that was there at the start, though more may come for ever.

use std::time::Duration;

use tokio::time::Instant;

use super::RedriveEnd;
use crate::topology::SourceStats;

/// Nothing more is expected once the dead letters have been silent this long.
const QUIET: Duration = Duration::from_secs(2);
/// The same, where as many as there are for sure have come.
const SHORT_QUIET: Duration = Duration::from_millis(500);
/// So many silences in a row end a pass of which not all that were counted have come: a broker may be slow to hand one out, or others may
/// hold them.
const SILENCES: u32 = 5;
/// How often the broker is asked again whether that was all, where its counts lag behind.
const RECOUNTS: u32 = 10;
/// So many more may have come since the start and not be worth another round.
const FEW: u64 = 50;
/// How long what still comes is taken, once hardly any is left; as often as the last time brought something.
const TAIL: Duration = Duration::from_secs(5);
const TAILS: u32 = 10;
/// Without any count: how many are looked at, and how long is waited for them in all.
const UNCOUNTED: u64 = 100_000;
const UNCOUNTED_WAITS: Duration = Duration::from_secs(10);

/// Where the pass ends if nothing else ends it. Clocks of other machines have no say.
pub(super) struct Horizon {
    counted: Option<u64>,
    exact: bool,
    /// So many were there, as was counted last.
    target: u64,
    recounts: u32,
    tail_ends: Option<Instant>,
    tails: u32,
    /// How many had been looked at when the tail began.
    tail_read: u64,
    /// The broker was asked after a silence, and counts some that do not come.
    doubted: bool,
    silences: u32,
    waited: Duration,
}

impl Horizon {
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

    /// How many there are for sure.
    pub(super) fn exactly(&self) -> Option<u64> {
        self.counted.filter(|_| self.exact)
    }

    /// How many of those that were counted have not been looked at.
    pub(super) fn left(&self, read: u64) -> Option<u64> {
        Some(self.counted?.saturating_sub(read))
    }

    /// How long to wait for the next letter.
    pub(super) fn quiet(&self, read: u64) -> Duration {
        if self.exact && self.has_all(read) { SHORT_QUIET } else { QUIET }
    }

    /// Whether as many as were counted have been looked at.
    pub(super) fn has_all(&self, read: u64) -> bool {
        self.counted.is_some_and(|counted| read >= counted)
    }

    /// Whether a silence must be checked with the broker: its first count may have been too low, or what it counted may be gone.
    pub(super) fn doubts(&self, read: u64) -> bool {
        self.counted.is_some() && !(self.exact && self.has_all(read))
    }

    /// What a silence of that length means. `there`: how many the broker counts now beside those in hand, where it was asked. `None`: it is
    /// worth another wait.
    pub(super) fn silence(&mut self, read: u64, there: Option<u64>) -> Option<RedriveEnd> {
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

    /// A letter came after so long.
    pub(super) fn waited(&mut self, time: Duration) {
        (self.doubted, self.silences) = (false, 0);
        // Less is the way over the network.
        if self.counted.is_none() && time >= Duration::from_millis(100) {
            self.waited += time;
        }
    }

    /// Whether everything that was there has been looked at.
    pub(super) fn passed(&self, read: u64) -> Option<RedriveEnd> {
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

    /// So many are there now, beside those in hand; `None` if the broker does not say.
    pub(super) fn recount(&mut self, read: u64, there: Option<u64>) -> Option<RedriveEnd> {
        let was_tail = self.tail_ends.is_some();
        match there {
            // They were not counted at first: what had just died then shows up late.
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

    fn about(n: u64) -> Horizon {
        let mut stats = SourceStats::default();
        (stats.dead_lettered, stats.approximate) = (Some(n), true);
        Horizon::new(&stats)
    }

    #[test]
    fn a_low_count_is_doubted_before_a_silence_is_the_end() {
        let mut h = about(0);
        assert!(h.doubts(0) && h.quiet(0) == QUIET);
        assert_eq!(h.silence(0, Some(40)), None, "the broker counts more now");
        assert_eq!(h.silence(0, Some(40)), Some(RedriveEnd::Silence), "and they do not come");
        h.waited(Duration::ZERO);
        assert_eq!(h.silence(1, Some(39)), None, "one came: the rest may");
        assert_eq!(h.silence(40, Some(0)), Some(RedriveEnd::Empty));
    }

    #[test]
    fn what_was_counted_and_does_not_come_is_waited_for_a_while() {
        for there in [Some(1), None] {
            let mut h = about(5);
            assert!(h.doubts(4));
            for _ in 1..SILENCES {
                assert_eq!(h.silence(4, there), None);
            }
            assert_eq!(h.silence(4, there), Some(RedriveEnd::Silence));
        }
        assert_eq!(about(5).silence(4, Some(0)), Some(RedriveEnd::Silence), "somebody else took it");
        assert_eq!(Horizon::new(&SourceStats::default()).silence(4, None), Some(RedriveEnd::Silence), "nobody counts");
    }

    #[tokio::test(start_paused = true)]
    async fn the_tail_lasts_as_long_as_it_brings_something() {
        let mut h = about(100);
        assert!(!h.wants_count(100) && h.wants_count(101));
        assert_eq!(h.recount(101, Some(39)), None);
        for round in 1..=5 {
            assert!(!h.wants_count(101 + round));
            tokio::time::advance(TAIL).await;
            assert!(h.wants_count(101 + round));
            assert_eq!(h.recount(101 + round, Some(39 - round)), None, "letters from before still come");
        }
        tokio::time::advance(TAIL).await;
        assert_eq!(h.recount(106, Some(34)), Some(RedriveEnd::Newer), "nothing came in a whole tail");
    }
}
