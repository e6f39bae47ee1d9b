//! The clock of the emulator, which tests can move forward.

use std::fmt;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::Instant;

/// Wall time in milliseconds since the Unix epoch. It never goes back, and a clone is the same clock.
///
/// [`Clock::advance`] returns after everything that became due has been done.
#[derive(Clone)]
pub struct Clock(Arc<ClockState>);

/// The last millisecond of the year 9999, which is the last time .NET knows. Stopping there keeps sums and ticks in
/// range.
const END_OF_TIME_MS: i64 = 253_402_300_799_999;

type MoveHook = Box<dyn Fn() -> bool + Send + Sync>;

struct ClockState {
    started_at: i64,
    /// `None`: time stands until it is moved.
    started: Option<Instant>,
    moved_ms: AtomicI64,
    moves: watch::Sender<()>,
    hooks: Mutex<Vec<MoveHook>>,
}

impl Clock {
    /// Real time.
    pub fn system() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::new(millis(now), Some(Instant::now()))
    }

    /// A clock that stands still until it is moved.
    pub fn manual(start_ms: i64) -> Self {
        Self::new(start_ms, None)
    }

    fn new(started_at: i64, started: Option<Instant>) -> Self {
        Self(Arc::new(ClockState {
            started_at,
            started,
            moved_ms: AtomicI64::new(0),
            moves: watch::channel(()).0,
            hooks: Mutex::default(),
        }))
    }

    /// Milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> i64 {
        let elapsed = self.0.started.map_or(0, |started| millis(started.elapsed()));
        let moved = self.0.moved_ms.load(Ordering::Acquire);
        self.0.started_at.saturating_add(elapsed).saturating_add(moved).min(END_OF_TIME_MS)
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        let by = millis(by);
        let _ =
            self.0.moved_ms.fetch_update(Ordering::AcqRel, Ordering::Acquire, |moved| Some(moved.saturating_add(by)));
        self.lock_hooks().retain(|hook| hook());
        self.0.moves.send_replace(());
    }

    /// `hook` runs at each move until it returns false.
    pub(crate) fn on_move(&self, hook: impl Fn() -> bool + Send + Sync + 'static) {
        self.lock_hooks().push(Box::new(hook));
    }

    /// Waits until this clock shows `deadline`, or with `None` for ever; earlier when it is moved or `changed` ends.
    pub(crate) async fn wait(&self, deadline: Option<i64>, changed: impl Future<Output = ()>) {
        let mut moves = self.0.moves.subscribe();
        let wait = match (deadline, self.0.started) {
            (Some(deadline), Some(_)) => Some(deadline.saturating_sub(self.now_ms()).max(0)),
            _ => None,
        };
        let due = async {
            match wait {
                Some(ms) => tokio::time::sleep(Duration::from_millis(ms.unsigned_abs())).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = changed => {}
            _ = moves.changed() => {}
        }
    }

    fn lock_hooks(&self) -> std::sync::MutexGuard<'_, Vec<MoveHook>> {
        self.0.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").field("now_ms", &self.now_ms()).finish_non_exhaustive()
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn a_manual_clock_stands_until_it_is_moved() {
        let clock = Clock::manual(1000);
        let same = clock.clone();
        assert_eq!(clock.now_ms(), 1000);
        clock.advance(Duration::from_secs(2));
        assert_eq!((clock.now_ms(), same.now_ms()), (3000, 3000));
        clock.advance(Duration::MAX);
        clock.advance(Duration::MAX);
        assert_eq!(clock.now_ms(), END_OF_TIME_MS, "it stops at the end of time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_system_clock_runs_and_can_be_moved() {
        let clock = Clock::system();
        let start = clock.now_ms();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(clock.now_ms() - start, 5000);
        clock.advance(Duration::from_secs(60));
        assert_eq!(clock.now_ms() - start, 65_000);
    }

    #[test]
    fn hooks_run_at_each_move_until_they_are_done() {
        let clock = Clock::manual(0);
        let runs = Arc::new(AtomicUsize::new(0));
        let counted = runs.clone();
        clock.on_move(move || counted.fetch_add(1, Ordering::SeqCst) < 1);
        for _ in 0..5 {
            clock.advance(Duration::from_secs(1));
        }
        assert_eq!(runs.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_at_the_deadline_or_when_something_changes() {
        let never = std::future::pending::<()>;
        let clock = Clock::system();
        let start = clock.now_ms();
        clock.wait(Some(start + 250), never()).await;
        assert_eq!(clock.now_ms() - start, 250);
        clock.wait(Some(start), never()).await;
        clock.wait(None, std::future::ready(())).await;
        assert_eq!(clock.now_ms() - start, 250, "a past deadline and a change end it at once");
        let (manual, mover) = (Clock::manual(0), tokio::time::sleep(Duration::from_secs(1)));
        let other = manual.clone();
        let moving = async {
            mover.await;
            other.advance(Duration::from_secs(9));
        };
        tokio::join!(manual.wait(Some(9000), never()), moving);
        assert_eq!(manual.now_ms(), 9000);
    }
}
