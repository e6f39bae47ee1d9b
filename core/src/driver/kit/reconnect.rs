//! A connection that all callers share, and that is made anew at one pace when it is gone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{Error, ErrorKind, Result, runtime::backoff::Backoff};

/// A connection that lived this long is made anew at once, and after a failure with the shortest pause.
const STEADY: Duration = Duration::from_secs(1);
/// Longest pause after a connection that was made and broke soon. It is short because the broker does accept clients.
const BROKEN: Duration = Duration::from_millis(250);

/// Something that is made when it is first needed and again when it is gone, such as a connection or a channel.
///
/// There is one attempt at a time, however many callers ask. After an attempt that failed there is a pause, which
/// doubles from 50 ms to 2 s; callers get the failure at once during the pause. What breaks soon after it was made is
/// made again after a pause of at most 250 ms, so that a broker that accepts clients and throws them out again is not
/// flooded either.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// use std::sync::Arc;
/// use polybus_core::driver::kit::reconnect::SharedAttempt;
///
/// struct Connection { open: bool }
///
/// let shared = SharedAttempt::<Connection>::default();
/// let connect = || async { Ok(Arc::new(Connection { open: true })) };
/// let first = shared.get(|connection| connection.open, connect()).await?;
/// let second = shared.get(|connection| connection.open, connect()).await?;
/// assert!(Arc::ptr_eq(&first, &second));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct SharedAttempt<T> {
    /// How many attempts have ended.
    attempts: AtomicU64,
    /// Locked during an attempt, so that there is one at a time.
    state: tokio::sync::Mutex<AttemptState<T>>,
}

#[derive(Debug)]
struct AttemptState<T> {
    /// What was made last, and when. `None` once it is known to be gone.
    made: Option<(Arc<T>, Instant)>,
    /// The failure of the last attempt.
    failure: Option<Error>,
    backoff: Backoff,
    /// No attempt is made before this moment.
    not_before: Option<Instant>,
}

impl<T> AttemptState<T> {
    /// The error that callers get while the next attempt must wait; `None` if it may begin.
    fn pause_error(&self) -> Option<Error> {
        let left = self.not_before?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        let broken = || Error::new(ErrorKind::Unavailable, "the connection broke soon after it was made").safe();
        let failure = self.failure.clone().unwrap_or_else(broken);
        Some(failure.with_context("next_attempt_in", format!("{left:?}")))
    }

    /// Takes note that what was made is gone. If it lived only shortly, the next attempt waits.
    fn broke(&mut self) {
        let Some((_, since)) = self.made.take() else { return };
        if since.elapsed() >= STEADY {
            self.backoff.reset();
        } else {
            self.not_before = Some(Instant::now() + self.backoff.next_wait().min(BROKEN));
        }
    }

    /// Makes the next attempt wait.
    fn pause(&mut self) {
        self.not_before = Some(Instant::now() + self.backoff.next_wait());
    }
}

impl<T> Default for SharedAttempt<T> {
    fn default() -> Self {
        let state = AttemptState { made: None, failure: None, backoff: Backoff::default(), not_before: None };
        Self { attempts: AtomicU64::new(0), state: tokio::sync::Mutex::new(state) }
    }
}

impl<T> SharedAttempt<T> {
    /// What was made before, if it is `alive`; otherwise what `make` makes now.
    ///
    /// # Errors
    /// Those of `make`. A caller that waited during another caller's attempt gets the failure of that attempt. A caller
    /// that comes before the next attempt is due gets the last failure, with context `next_attempt_in`.
    ///
    /// # Cancel safety
    /// A dropped attempt counts as none.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use std::sync::Arc;
    /// use polybus_core::{Error, ErrorKind, driver::kit::reconnect::SharedAttempt};
    ///
    /// let shared = SharedAttempt::<String>::default();
    /// let refused = async { Err(Error::new(ErrorKind::Unavailable, "connection refused")) };
    /// assert!(shared.get(|_| true, refused).await.is_err());
    /// let early = shared.get(|_| true, async { Ok(Arc::new("connection".to_owned())) }).await.unwrap_err();
    /// assert!(early.context("next_attempt_in").is_some(), "the pause is not over");
    /// # }
    /// ```
    pub async fn get(&self, alive: impl Fn(&T) -> bool, make: impl Future<Output = Result<Arc<T>>>) -> Result<Arc<T>> {
        // Read before the lock is awaited: if the number is higher afterwards, another caller's attempt has ended
        // meanwhile.
        let seen = self.attempts.load(Ordering::Acquire);
        let mut state = self.state.lock().await;
        if let Some((made, _)) = state.made.as_ref().filter(|(made, _)| alive(made)) {
            return Ok(made.clone());
        }
        if let Some(failure) = state.failure.clone().filter(|_| self.attempts.load(Ordering::Acquire) > seen) {
            return Err(failure);
        }
        state.broke();
        if let Some(failure) = state.pause_error() {
            return Err(failure);
        }
        let answer = make.await;
        self.attempts.fetch_add(1, Ordering::AcqRel);
        match &answer {
            Ok(made) => {
                (state.made, state.failure, state.not_before) = (Some((made.clone(), Instant::now())), None, None);
            }
            Err(failure) => {
                state.failure = Some(failure.clone());
                // After `NotFound` there is no pause: the entity may be created at any moment, and the broker answers
                // such a question cheaply. While connecting there is one, since a login is expensive whatever its
                // answer.
                if failure.kind() != ErrorKind::NotFound || failure.operation() == "connect" {
                    state.pause();
                }
            }
        }
        answer
    }

    /// Whether what was made before is `alive`. False while an attempt is under way.
    ///
    /// ```
    /// let shared = polybus_core::driver::kit::reconnect::SharedAttempt::<String>::default();
    /// assert!(!shared.standing(|_| true), "nothing was made yet");
    /// ```
    pub fn standing(&self, alive: impl Fn(&T) -> bool) -> bool {
        self.state.try_lock().is_ok_and(|state| state.made.as_ref().is_some_and(|(made, _)| alive(made)))
    }

    /// Takes out what was made before, to close it. Waits for an attempt that is under way.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use std::sync::Arc;
    /// # use polybus_core::driver::kit::reconnect::SharedAttempt;
    /// let shared = SharedAttempt::<String>::default();
    /// shared.get(|_| true, async { Ok(Arc::new("connection".to_owned())) }).await?;
    /// assert!(shared.take().await.is_some());
    /// assert!(shared.take().await.is_none());
    /// # Ok(()) }
    /// ```
    pub async fn take(&self) -> Option<Arc<T>> {
        self.state.lock().await.made.take().map(|(made, _)| made)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// Longer than any pause.
    const LONG: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn callers_share_one_attempt_and_its_failure() {
        let (shared, made) = (&SharedAttempt::<usize>::default(), &AtomicUsize::new(0));
        let attempt = |ok: bool| {
            shared.get(|n| *n > 1, async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let n = made.fetch_add(1, Ordering::Relaxed);
                if ok { Ok(Arc::new(n)) } else { Err(Error::new(ErrorKind::Unavailable, "no")) }
            })
        };
        let (a, b) = tokio::join!(attempt(false), attempt(false));
        assert!(a.is_err() && b.is_err() && made.load(Ordering::Relaxed) == 1);
        tokio::time::sleep(LONG).await;
        // What is not alive is made again; what is alive is shared.
        assert_eq!(attempt(true).await.map(|n| *n).ok(), Some(1));
        assert!(attempt(true).await.is_err(), "it broke soon after it was made: the next attempt waits");
        tokio::time::sleep(LONG).await;
        let (a, b) = tokio::join!(attempt(true), attempt(true));
        assert_eq!((a.map(|n| *n).ok(), b.map(|n| *n).ok()), (Some(2), Some(2)));
        assert_eq!(shared.take().await.map(|n| *n), Some(2));
        assert_eq!(attempt(true).await.map(|n| *n).ok(), Some(3));
    }

    /// A hundred callers that ask all the time, for 30 s, of what cannot be made: how many attempts there were.
    async fn attempts(answer: impl Fn() -> Result<Arc<()>>) -> usize {
        let (shared, tried) = (&SharedAttempt::<()>::default(), &AtomicUsize::new(0));
        let answer = &answer;
        let until = Instant::now() + Duration::from_secs(30);
        let caller = |n: u64| async move {
            while Instant::now() < until {
                let _ = shared
                    .get(|()| false, async {
                        tried.fetch_add(1, Ordering::Relaxed);
                        answer()
                    })
                    .await;
                tokio::time::sleep(Duration::from_millis(10 + n % 7)).await;
            }
        };
        let callers: Vec<_> = (0..100).map(|n| Box::pin(caller(n))).collect();
        join_all(callers).await;
        tried.load(Ordering::Relaxed)
    }

    async fn join_all(mut futures: Vec<std::pin::Pin<Box<impl Future<Output = ()>>>>) {
        std::future::poll_fn(|cx| {
            futures.retain_mut(|f| f.as_mut().poll(cx).is_pending());
            if futures.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_callers_make_one_attempt_a_pause() {
        // 50 ms, doubled up to 2 s, each halved at most by the jitter: 6 pauses to get there, then at most one a
        // second.
        let refused = attempts(|| Err(Error::new(ErrorKind::Unavailable, "refused"))).await;
        assert!((15..=36).contains(&refused), "{refused}");
        let thrown_out = attempts(|| Ok(Arc::new(()))).await;
        assert!((100..=260).contains(&thrown_out), "{thrown_out}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_stood_for_long_is_made_again_at_once() {
        let (shared, alive) = (SharedAttempt::<()>::default(), std::sync::atomic::AtomicBool::new(true));
        let get = || shared.get(|()| alive.load(Ordering::Relaxed), async { Ok(Arc::new(())) });
        get().await.unwrap();
        tokio::time::sleep(STEADY).await;
        alive.store(false, Ordering::Relaxed);
        get().await.unwrap();
        let e = get().await.unwrap_err();
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, crate::error::RetrySafety::Safe), "{e}");
        assert!(e.context("next_attempt_in").is_some(), "{e}");
    }
}
