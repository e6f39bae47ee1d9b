//! For adapters: something that stands or must be made anew, such as a connection, made at one pace that all callers share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::{Error, ErrorKind, Result},
    runtime::backoff::Backoff,
};

/// What stood this long is made anew at once, and after a failure with the shortest pause.
const STEADY: Duration = Duration::from_secs(1);
/// Longest pause after what was made and broke soon: the broker does let clients in.
const BROKEN: Duration = Duration::from_millis(250);

/// A place for what is made when it is first needed, and again when it is gone.
///
/// However many callers ask, it is made in one attempt at a time, and after one that failed the next one waits for a pause that
/// doubles from 50 ms to 2 s. During the pause callers get the failure at once. What breaks soon after it was made is made again after a
/// pause of 250 ms at most, so a broker that lets clients in and throws them out again is not stormed either.
#[derive(Debug)]
pub struct SharedAttempt<T> {
    tries: AtomicU64,
    held: tokio::sync::Mutex<Held<T>>,
}

#[derive(Debug)]
struct Held<T> {
    made: Option<(Arc<T>, Instant)>,
    failure: Option<Error>,
    backoff: Backoff,
    /// No attempt before then.
    not_before: Option<Instant>,
}

impl<T> Held<T> {
    /// What is answered while the next attempt must wait.
    fn waiting(&self) -> Option<Error> {
        let left = self.not_before?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        let broken = || Error::new(ErrorKind::Unavailable, "the connection broke soon after it was made").safe();
        let failure = self.failure.clone().unwrap_or_else(broken);
        Some(failure.with_context("next_attempt_in", format!("{left:?}")))
    }

    /// What stood is gone: after a short life the next attempt waits.
    fn broke(&mut self) {
        let Some((_, since)) = self.made.take() else { return };
        if since.elapsed() >= STEADY {
            self.backoff.reset();
        } else {
            self.not_before = Some(Instant::now() + self.backoff.next().min(BROKEN));
        }
    }

    fn pause(&mut self) {
        self.not_before = Some(Instant::now() + self.backoff.next());
    }
}

impl<T> Default for SharedAttempt<T> {
    fn default() -> Self {
        let held = Held { made: None, failure: None, backoff: Backoff::default(), not_before: None };
        Self { tries: AtomicU64::new(0), held: tokio::sync::Mutex::new(held) }
    }
}

impl<T> SharedAttempt<T> {
    /// What stands, by `alive`, or a new one.
    ///
    /// # Errors
    /// Those of `make`. Who waited while another caller tried, and who comes before the next attempt is due, gets the failure of the
    /// last attempt, with context `next_attempt_in` where it was not made for this caller.
    ///
    /// # Cancel safety
    /// A dropped attempt counts as none.
    pub async fn get(&self, alive: impl Fn(&T) -> bool, make: impl Future<Output = Result<Arc<T>>>) -> Result<Arc<T>> {
        let seen = self.tries.load(Ordering::Acquire);
        let mut held = self.held.lock().await;
        if let Some((made, _)) = held.made.as_ref().filter(|(made, _)| alive(made)) {
            return Ok(made.clone());
        }
        if let Some(failure) = held.failure.clone().filter(|_| self.tries.load(Ordering::Acquire) > seen) {
            return Err(failure);
        }
        held.broke();
        if let Some(failure) = held.waiting() {
            return Err(failure);
        }
        let answer = make.await;
        self.tries.fetch_add(1, Ordering::AcqRel);
        match &answer {
            Ok(made) => (held.made, held.failure, held.not_before) = (Some((made.clone(), Instant::now())), None, None),
            Err(failure) => {
                held.failure = Some(failure.clone());
                // What is not there may be made at any moment, by whoever asks next: only what a broker refuses or does not
                // answer is left in peace for a while. A login costs the broker as much whatever is missing.
                if failure.kind() != ErrorKind::NotFound || failure.operation() == "connect" {
                    held.pause();
                }
            }
        }
        answer
    }

    /// Whether something stands, by `alive`. While an attempt is under way nothing does.
    pub fn standing(&self, alive: impl Fn(&T) -> bool) -> bool {
        self.held.try_lock().is_ok_and(|held| held.made.as_ref().is_some_and(|(made, _)| alive(made)))
    }

    /// Takes out what stands, if anything; waits for an attempt that is under way.
    pub async fn take(&self) -> Option<Arc<T>> {
        self.held.lock().await.made.take().map(|(made, _)| made)
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
        // 50 ms, doubled up to 2 s, each halved at most by the jitter: 6 pauses to get there, then at most one a second.
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
