//! For adapters: something that stands or must be made anew, such as a connection, made in one attempt that callers share.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::{Error, Result};

/// A place for what is made when it is first needed, and again when it is gone.
#[derive(Debug)]
pub struct Shared<T> {
    tries: AtomicU64,
    held: tokio::sync::Mutex<Held<T>>,
}

#[derive(Debug)]
struct Held<T> {
    made: Option<Arc<T>>,
    failure: Option<Error>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { tries: AtomicU64::new(0), held: tokio::sync::Mutex::new(Held { made: None, failure: None }) }
    }
}

impl<T> Shared<T> {
    /// What stands, by `alive`, or a new one. One attempt: who waited while another caller tried gets that caller's answer.
    /// Cancel safe: a dropped attempt counts as none.
    pub async fn get(&self, alive: impl Fn(&T) -> bool, make: impl Future<Output = Result<Arc<T>>>) -> Result<Arc<T>> {
        let seen = self.tries.load(Ordering::Acquire);
        let mut held = self.held.lock().await;
        if let Some(made) = held.made.as_ref().filter(|made| alive(made)) {
            return Ok(made.clone());
        }
        if let Some(failure) = held.failure.clone().filter(|_| self.tries.load(Ordering::Acquire) > seen) {
            return Err(failure);
        }
        held.made = None;
        let answer = make.await;
        self.tries.fetch_add(1, Ordering::AcqRel);
        *held = Held { made: answer.as_ref().ok().cloned(), failure: answer.as_ref().err().cloned() };
        answer
    }

    /// Whether something stands, by `alive`. While an attempt is under way nothing does.
    pub fn standing(&self, alive: impl Fn(&T) -> bool) -> bool {
        self.held.try_lock().is_ok_and(|held| held.made.as_ref().is_some_and(|made| alive(made)))
    }

    /// Takes out what stands, if anything; waits for an attempt that is under way.
    pub async fn take(&self) -> Option<Arc<T>> {
        self.held.lock().await.made.take()
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, time::Duration};

    use super::*;
    use crate::Kind;

    #[tokio::test(start_paused = true)]
    async fn callers_share_one_attempt_and_its_failure() {
        let (shared, made) = (&Shared::<usize>::default(), &AtomicUsize::new(0));
        let attempt = |ok: bool| {
            shared.get(|n| *n > 1, async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                let n = made.fetch_add(1, Ordering::Relaxed);
                if ok { Ok(Arc::new(n)) } else { Err(Error::new(Kind::Unavailable, "no")) }
            })
        };
        let (a, b) = tokio::join!(attempt(false), attempt(false));
        assert!(a.is_err() && b.is_err() && made.load(Ordering::Relaxed) == 1);
        // What is not alive is made again; what is alive is shared.
        assert_eq!(attempt(true).await.map(|n| *n).ok(), Some(1));
        let (a, b) = tokio::join!(attempt(true), attempt(true));
        assert_eq!((a.map(|n| *n).ok(), b.map(|n| *n).ok()), (Some(2), Some(2)));
        assert_eq!(shared.take().await.map(|n| *n), Some(2));
        assert_eq!(attempt(true).await.map(|n| *n).ok(), Some(3));
    }
}
