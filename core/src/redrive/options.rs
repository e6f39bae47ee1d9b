//! The options of going through dead letters.

use std::{fmt, num::NonZeroU32, sync::Arc};

use super::RedriveReport;

/// Default of [`RedriveOptions::hold`].
const HOLD: usize = 10_000;

/// How [`Bus::redrive_each`](crate::bus::Bus::redrive_each) goes through dead letters.
///
/// `Default` has no limits and refuses what would go back in vain.
///
/// ```
/// use polybus_core::redrive::{RedriveGuard, RedriveOptions};
///
/// let careful = RedriveOptions::new().limit(100).rate(10);
/// let everything = RedriveOptions::new().expired(RedriveGuard::Move).unwanted(RedriveGuard::Move);
/// # assert_eq!(careful.limit, 100);
/// # assert_eq!(everything.expired, RedriveGuard::Move);
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct RedriveOptions {
    /// Most letters to act upon: redriven, redriven as another message, or dropped. Default: no limit.
    pub limit: usize,
    /// Most letters to read. Default: no limit.
    pub read_limit: usize,
    /// Most letters to hold until the end because they are kept or refused. Default: 10,000.
    ///
    /// The pass ends there, and [`RedriveReport::left`] says how many letters it has not read. Each letter that is held
    /// takes memory in this process, is hidden from other consumers, and has its lock renewed.
    pub hold: usize,
    /// Most actions per second, evenly spaced. Default: no limit.
    pub rate: Option<NonZeroU32>,
    /// What becomes of letters past their `expires_at`, which no consumer would be handed. Default: refused.
    pub expired: RedriveGuard,
    /// What becomes of letters of a type that no filter of the subscription wants, which no handler would be handed.
    /// Default: refused.
    ///
    /// Messages that are no CloudEvents have no type and are never refused for it. Nothing is where the subscription's
    /// [`UnwantedPolicy`](crate::topology::UnwantedPolicy) is `Handle`.
    pub unwanted: RedriveGuard,
    pub(super) progress: Option<Arc<ProgressCallback>>,
}

type ProgressCallback = dyn Fn(&RedriveReport) + Send + Sync;

/// What becomes of letters that would go back in vain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedriveGuard {
    /// They stay dead letters, and are counted in [`RedriveReport::refused`].
    #[default]
    Refuse,
    /// They are moved like any other.
    Move,
}

impl Default for RedriveOptions {
    fn default() -> Self {
        Self {
            limit: usize::MAX,
            read_limit: usize::MAX,
            hold: HOLD,
            rate: None,
            expired: RedriveGuard::Refuse,
            unwanted: RedriveGuard::Refuse,
            progress: None,
        }
    }
}

impl RedriveOptions {
    /// No limits, and nothing goes back in vain. The same as `default()`.
    ///
    /// ```
    /// let options = polybus_core::redrive::RedriveOptions::new();
    /// assert_eq!((options.limit, options.hold, options.rate), (usize::MAX, 10_000, None));
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Acts upon `n` letters at most.
    ///
    /// ```
    /// assert_eq!(polybus_core::redrive::RedriveOptions::new().limit(50).limit, 50);
    /// ```
    pub fn limit(mut self, n: usize) -> Self {
        self.limit = n;
        self
    }

    /// Reads `n` letters at most.
    ///
    /// ```
    /// assert_eq!(polybus_core::redrive::RedriveOptions::new().read_limit(200).read_limit, 200);
    /// ```
    pub fn read_limit(mut self, n: usize) -> Self {
        self.read_limit = n;
        self
    }

    /// Holds `n` letters at most until the end; 0 means 1.
    ///
    /// ```
    /// assert_eq!(polybus_core::redrive::RedriveOptions::new().hold(0).hold, 1);
    /// ```
    pub fn hold(mut self, n: usize) -> Self {
        self.hold = n.max(1);
        self
    }

    /// Acts upon `per_second` letters per second at most, evenly spaced; 0 means no limit.
    ///
    /// ```
    /// assert_eq!(polybus_core::redrive::RedriveOptions::new().rate(20).rate.map(|n| n.get()), Some(20));
    /// ```
    pub fn rate(mut self, per_second: u32) -> Self {
        self.rate = NonZeroU32::new(per_second);
        self
    }

    /// Sets what becomes of letters past their `expires_at`.
    ///
    /// ```
    /// use polybus_core::redrive::{RedriveGuard, RedriveOptions};
    ///
    /// assert_eq!(RedriveOptions::new().expired(RedriveGuard::Move).expired, RedriveGuard::Move);
    /// ```
    pub fn expired(mut self, guard: RedriveGuard) -> Self {
        self.expired = guard;
        self
    }

    /// Sets what becomes of letters of a type that the subscription does not want.
    ///
    /// ```
    /// use polybus_core::redrive::{RedriveGuard, RedriveOptions};
    ///
    /// assert_eq!(RedriveOptions::new().unwanted(RedriveGuard::Move).unwanted, RedriveGuard::Move);
    /// ```
    pub fn unwanted(mut self, guard: RedriveGuard) -> Self {
        self.unwanted = guard;
        self
    }

    /// Calls `callback` with the counts so far, after each letter and each move.
    ///
    /// It runs on the task that goes through the letters, so it must not block.
    ///
    /// ```
    /// let options = polybus_core::redrive::RedriveOptions::new().progress(|so_far| println!("{so_far}"));
    /// ```
    pub fn progress(mut self, callback: impl Fn(&RedriveReport) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(callback));
        self
    }
}

impl fmt::Debug for RedriveOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedriveOptions")
            .field("limit", &self.limit)
            .field("read_limit", &self.read_limit)
            .field("hold", &self.hold)
            .field("rate", &self.rate)
            .field("expired", &self.expired)
            .field("unwanted", &self.unwanted)
            .finish_non_exhaustive()
    }
}
