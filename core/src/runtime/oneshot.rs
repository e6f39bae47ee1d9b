//! A one-shot reply that also tells whether its request was sent. One allocation, no task.
//!
//! The caller that gives up must be told the truth: either its request may have been carried out, or it never will be.
//! Both sides decide that under one lock: [`ReplySender::mark_sent`] fails once the caller has given up, and
//! [`ReplyWaiter::give_up`] answers `sent` once the mark is set.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, MutexGuard};

struct SharedReply<T>(Mutex<ReplyState<T>>);

enum ReplyState<T> {
    Waiting {
        waker: Option<Waker>,
        /// The request may have been carried out: it was handed to the driver.
        sent: bool,
    },
    Answered(T),
    /// The answer was taken, or one side is gone.
    Over,
}

impl<T> SharedReply<T> {
    fn lock(&self) -> MutexGuard<'_, ReplyState<T>> {
        self.0.lock()
    }
}

/// The side that answers. If it is dropped without an answer, the other side gets `None`.
pub(crate) struct ReplySender<T>(Arc<SharedReply<T>>);

/// The side that waits. Dropping it gives up the answer.
pub(crate) struct ReplyWaiter<T>(Arc<SharedReply<T>>);

pub(crate) fn reply<T>() -> (ReplySender<T>, ReplyWaiter<T>) {
    let shared = Arc::new(SharedReply(Mutex::new(ReplyState::Waiting { waker: None, sent: false })));
    (ReplySender(shared.clone()), ReplyWaiter(shared))
}

impl<T> ReplySender<T> {
    /// Answers. The answer comes back as an error if nobody waits any more.
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

    /// Marks the request as sent: from now on it may have been carried out. False if the caller has given up. It was
    /// told that the request is not sent, so the request must not be sent then.
    pub(crate) fn mark_sent(&self) -> bool {
        self.set_sent(true)
    }

    /// Takes the mark back: the request was surely not carried out.
    pub(crate) fn mark_unsent(&self) {
        self.set_sent(false);
    }

    fn set_sent(&self, yes: bool) -> bool {
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
    /// Takes the answer, if it is there.
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

    /// Stops waiting. Answers with the reply if it has come after all, else with whether the request may have been
    /// carried out. A request that was not sent by now never will be.
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
        assert!(r.mark_sent());
        drop(w);
        assert!(!r.mark_sent());
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
        assert!(r.mark_sent());
        r.answer(7).unwrap();
        assert_eq!(waiting.await.unwrap(), Some(7));
    }

    #[test]
    fn who_gives_up_is_told_what_became_of_the_request() {
        let (r, w) = reply::<u8>();
        assert_eq!(w.give_up(), Err(false));
        assert!(!r.mark_sent(), "said not to be sent, and sent");

        let (r, w) = reply::<u8>();
        assert!(r.mark_sent());
        assert_eq!(w.give_up(), Err(true));

        let (r, w) = reply::<u8>();
        assert!(r.mark_sent());
        r.mark_unsent();
        assert_eq!(w.give_up(), Err(false));

        let (r, w) = reply();
        r.answer(7).unwrap();
        assert_eq!(w.give_up(), Ok(7));
    }

    /// Both sides at once, many times: a request that is said not to be sent is not sent.
    #[test]
    fn giving_up_and_sending_agree() {
        for _ in 0..2_000 {
            let (r, w) = reply::<u8>();
            let (sent, marked) = std::thread::scope(|s| {
                let marked = s.spawn(|| r.mark_sent());
                let sent = w.give_up() == Err(true);
                (sent, marked.join().unwrap())
            });
            assert_eq!(sent, marked);
        }
    }
}
