//! How to go through dead letters.

use std::{fmt, num::NonZeroU32, sync::Arc};

use super::RedriveReport;

/// How many letters are held at once, unless [`RedriveOptions::hold`] says otherwise.
const HOLD: usize = 10_000;

/// How [`Bus::redrive_each`](crate::bus::Bus::redrive_each) goes through dead letters. `Default` is without limits and with all guards.
#[derive(Clone)]
#[non_exhaustive]
pub struct RedriveOptions {
    /// Most letters to act upon: redriven, redriven as another, or dropped. Default: no limit.
    pub most: usize,
    /// Most letters to look at. Default: no limit.
    pub read: usize,
    /// Most letters to hold until the end, since they are kept or refused; from there on the rest is not looked at, and the answer says how many that
    /// are. Each takes memory here, is hidden from other consumers, and its lock is renewed. Default: 10,000.
    pub hold: usize,
    /// Most actions per second. Default: no limit.
    pub rate: Option<NonZeroU32>,
    /// Letters past their `expires_at`, which no consumer would be handed. Default: refused.
    pub expired: RedriveGuard,
    /// Letters of a type that no filter of the subscription wants, which no handler would be handed. Default: refused. Messages that are no
    /// CloudEvents have no type and are never refused for it; nor is anything where the subscription handles what it does not want.
    pub unwanted: RedriveGuard,
    /// Told after each letter and each move.
    pub(super) progress: Option<Arc<Progress>>,
}

type Progress = dyn Fn(&RedriveReport) + Send + Sync;

/// What becomes of letters that would go back in vain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedriveGuard {
    /// They stay dead letters, and are counted.
    #[default]
    Refuse,
    /// They are moved like any other.
    Move,
}

impl Default for RedriveOptions {
    fn default() -> Self {
        Self {
            most: usize::MAX,
            read: usize::MAX,
            hold: HOLD,
            rate: None,
            expired: RedriveGuard::Refuse,
            unwanted: RedriveGuard::Refuse,
            progress: None,
        }
    }
}

impl RedriveOptions {
    /// Without limits, with all guards.
    pub fn new() -> Self {
        Self::default()
    }

    /// Acts upon `n` letters at most.
    pub fn most(mut self, n: usize) -> Self {
        self.most = n;
        self
    }

    /// Looks at `n` letters at most.
    pub fn read(mut self, n: usize) -> Self {
        self.read = n;
        self
    }

    /// Holds `n` letters until the end at most, at least 1.
    pub fn hold(mut self, n: usize) -> Self {
        self.hold = n.max(1);
        self
    }

    /// Acts upon `per_second` letters per second at most; 0 is no limit.
    pub fn rate(mut self, per_second: u32) -> Self {
        self.rate = NonZeroU32::new(per_second);
        self
    }

    /// What becomes of letters past their `expires_at`.
    pub fn expired(mut self, guard: RedriveGuard) -> Self {
        self.expired = guard;
        self
    }

    /// What becomes of letters of a type that the subscription does not want.
    pub fn unwanted(mut self, guard: RedriveGuard) -> Self {
        self.unwanted = guard;
        self
    }

    /// Calls `told` with the counts so far after each letter and each move, on the task that sifts: it must not block.
    pub fn progress(mut self, told: impl Fn(&RedriveReport) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(told));
        self
    }
}

impl fmt::Debug for RedriveOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sift")
            .field("most", &self.most)
            .field("read", &self.read)
            .field("hold", &self.hold)
            .field("rate", &self.rate)
            .field("expired", &self.expired)
            .field("unwanted", &self.unwanted)
            .finish_non_exhaustive()
    }
}
