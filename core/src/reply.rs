//! A one-shot answer that also tells whether the request has gone out: one allocation, no task.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

struct Shared<T> {
    state: Mutex<State<T>>,
    sent: AtomicBool,
}

enum State<T> {
    Waiting(Option<Waker>),
    Answered(T),
    /// Answered and taken, or one side is gone.
    Over,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side that answers. Dropped without an answer, the other side sees `None`.
pub(crate) struct Reply<T>(Arc<Shared<T>>);

/// The side that waits. Dropped, the answer is given up.
pub(crate) struct Waiting<T>(Arc<Shared<T>>);

pub(crate) fn reply<T>() -> (Reply<T>, Waiting<T>) {
    let shared = Arc::new(Shared { state: Mutex::new(State::Waiting(None)), sent: AtomicBool::new(false) });
    (Reply(shared.clone()), Waiting(shared))
}

impl<T> Reply<T> {
    /// Answers; gives the answer back if nobody waits any more.
    pub(crate) fn answer(self, value: T) -> Result<(), T> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Over) {
            State::Waiting(waker) => {
                *state = State::Answered(value);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
                Ok(())
            }
            _ => Err(value),
        }
    }

    /// Whether nobody waits any more.
    pub(crate) fn is_given_up(&self) -> bool {
        matches!(*self.0.lock(), State::Over)
    }

    /// From now on the request may have been carried out.
    pub(crate) fn mark_sent(&self) {
        self.0.sent.store(true, Ordering::Release);
    }

    /// The request was surely not carried out so far.
    pub(crate) fn mark_unsent(&self) {
        self.0.sent.store(false, Ordering::Release);
    }
}

impl<T> Drop for Reply<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let State::Waiting(waker) = &mut *state {
            let waker = waker.take();
            *state = State::Over;
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> Waiting<T> {
    /// The answer, if it is there.
    pub(crate) fn try_take(&mut self) -> Option<T> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Over) {
            State::Answered(value) => Some(value),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Whether the request may have been carried out.
    pub(crate) fn is_sent(&self) -> bool {
        self.0.sent.load(Ordering::Acquire)
    }
}

impl<T> Future for Waiting<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, State::Over) {
            State::Waiting(_) => {
                *state = State::Waiting(Some(cx.waker().clone()));
                Poll::Pending
            }
            State::Answered(value) => Poll::Ready(Some(value)),
            State::Over => Poll::Ready(None),
        }
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        // The answer is dropped outside the lock: it may hold a delivery whose drop takes other locks.
        let old = std::mem::replace(&mut *self.0.lock(), State::Over);
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_side_notices_that_the_other_is_gone() {
        let (r, w) = reply::<u8>();
        assert!(!r.is_given_up());
        drop(w);
        assert!(r.is_given_up());
        assert_eq!(r.answer(1), Err(1));

        let (r, w) = reply::<u8>();
        drop(r);
        assert_eq!(w.await, None);
    }

    #[tokio::test]
    async fn answers_cross_tasks() {
        let (r, w) = reply();
        r.mark_sent();
        assert!(w.is_sent());
        let waiting = tokio::spawn(w);
        tokio::task::yield_now().await;
        r.answer(7).unwrap();
        assert_eq!(waiting.await.unwrap(), Some(7));
    }
}
