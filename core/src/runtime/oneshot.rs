//! A one-shot answer that also tells whether the request has gone out: one allocation, no task.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

struct SharedReply<T>(Mutex<ReplyState<T>>);

enum ReplyState<T> {
    Waiting {
        waker: Option<Waker>,
        /// The request may have been carried out.
        sent: bool,
    },
    Answered(T),
    /// Answered and taken, or one side is gone.
    Over,
}

impl<T> SharedReply<T> {
    fn lock(&self) -> MutexGuard<'_, ReplyState<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The side that answers. Dropped without an answer, the other side sees `None`.
pub(crate) struct ReplySender<T>(Arc<SharedReply<T>>);

/// The side that waits. Dropped, the answer is given up.
pub(crate) struct ReplyWaiter<T>(Arc<SharedReply<T>>);

pub(crate) fn reply<T>() -> (ReplySender<T>, ReplyWaiter<T>) {
    let shared = Arc::new(SharedReply(Mutex::new(ReplyState::Waiting { waker: None, sent: false })));
    (ReplySender(shared.clone()), ReplyWaiter(shared))
}

impl<T> ReplySender<T> {
    /// Answers; gives the answer back if nobody waits any more.
    pub(crate) fn answer(self, value: T) -> Result<(), T> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, ReplyState::Over) {
            ReplyState::Waiting { waker, .. } => {
                *state = ReplyState::Answered(value);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
                Ok(())
            }
            _ => Err(value),
        }
    }

    /// From now on the request may have been carried out. False if nobody waits any more: who gave up was told that it
    /// was not sent, so it must not be.
    pub(crate) fn begin(&self) -> bool {
        self.mark(true)
    }

    /// The request was surely not carried out so far.
    pub(crate) fn mark_unsent(&self) {
        self.mark(false);
    }

    fn mark(&self, yes: bool) -> bool {
        match &mut *self.0.lock() {
            ReplyState::Waiting { sent, .. } => {
                *sent = yes;
                true
            }
            _ => false,
        }
    }
}

impl<T> Drop for ReplySender<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        if let ReplyState::Waiting { waker, .. } = &mut *state {
            let waker = waker.take();
            *state = ReplyState::Over;
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

impl<T> ReplyWaiter<T> {
    /// The answer, if it is there.
    pub(crate) fn try_take(&mut self) -> Option<T> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, ReplyState::Over) {
            ReplyState::Answered(value) => Some(value),
            other => {
                *state = other;
                None
            }
        }
    }

    /// Waits no longer: the answer that came after all, or whether the request may have been carried out. What was not
    /// sent by now never will be.
    pub(crate) fn give_up(self) -> Result<T, bool> {
        match std::mem::replace(&mut *self.0.lock(), ReplyState::Over) {
            ReplyState::Waiting { sent, .. } => Err(sent),
            ReplyState::Answered(value) => Ok(value),
            ReplyState::Over => Err(true),
        }
    }
}

impl<T> Future for ReplyWaiter<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, ReplyState::Over) {
            ReplyState::Waiting { sent, .. } => {
                *state = ReplyState::Waiting { waker: Some(cx.waker().clone()), sent };
                Poll::Pending
            }
            ReplyState::Answered(value) => Poll::Ready(Some(value)),
            ReplyState::Over => Poll::Ready(None),
        }
    }
}

impl<T> Drop for ReplyWaiter<T> {
    fn drop(&mut self) {
        // The answer is dropped outside the lock: it may hold a delivery whose drop takes other locks.
        let old = std::mem::replace(&mut *self.0.lock(), ReplyState::Over);
        drop(old);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_side_notices_that_the_other_is_gone() {
        let (r, w) = reply::<u8>();
        assert!(r.begin());
        drop(w);
        assert!(!r.begin());
        assert_eq!(r.answer(1), Err(1));

        let (r, w) = reply::<u8>();
        drop(r);
        assert_eq!(w.await, None);
    }

    #[tokio::test]
    async fn answers_cross_tasks() {
        let (r, w) = reply();
        let waiting = tokio::spawn(w);
        tokio::task::yield_now().await;
        // The waker outlives the mark.
        assert!(r.begin());
        r.answer(7).unwrap();
        assert_eq!(waiting.await.unwrap(), Some(7));
    }

    #[test]
    fn who_gives_up_is_told_what_became_of_the_request() {
        let (r, w) = reply::<u8>();
        assert_eq!(w.give_up(), Err(false));
        assert!(!r.begin(), "said not to be sent, and sent");

        let (r, w) = reply::<u8>();
        assert!(r.begin());
        assert_eq!(w.give_up(), Err(true));

        let (r, w) = reply::<u8>();
        assert!(r.begin());
        r.mark_unsent();
        assert_eq!(w.give_up(), Err(false));

        let (r, w) = reply();
        r.answer(7).unwrap();
        assert_eq!(w.give_up(), Ok(7));
    }

    /// Both at once, many times: what says that it was not sent is not sent.
    #[test]
    fn giving_up_and_beginning_agree() {
        for _ in 0..2_000 {
            let (r, w) = reply::<u8>();
            let (sent, begun) = std::thread::scope(|s| {
                let begun = s.spawn(|| r.begin());
                let sent = w.give_up() == Err(true);
                (sent, begun.join().unwrap())
            });
            assert_eq!(sent, begun);
        }
    }
}
