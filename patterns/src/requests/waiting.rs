//! The calls that wait for an answer.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use polybus_core::{Envelope, Error};
use tokio::sync::{oneshot, watch};

use super::{RequestError, RequestStats};

/// The calls that wait, by their number. A call leaves when it is answered, when it ends, and when its future is
/// dropped.
pub(super) struct WaitingCalls {
    table: Mutex<CallTable>,
    limit: usize,
    is_closed: watch::Sender<bool>,
    pub(super) counts: ReplyCounts,
}

#[derive(Default)]
struct CallTable {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Envelope>>,
    /// Why no answers come any more.
    closed: Option<Error>,
}

#[derive(Default)]
pub(super) struct ReplyCounts {
    pub(super) answered: AtomicU64,
    pub(super) late: AtomicU64,
    pub(super) left_over: AtomicU64,
    pub(super) stray: AtomicU64,
    pub(super) not_replies: AtomicU64,
}

/// The place of one call.
pub(super) struct WaitingCall<'a> {
    pub(super) number: u64,
    calls: &'a WaitingCalls,
    /// Closed without an answer when the calls are closed.
    pub(super) answer: oneshot::Receiver<Envelope>,
}

impl WaitingCalls {
    pub(super) fn new(limit: usize) -> Self {
        let is_closed = watch::Sender::new(false);
        Self { table: Mutex::default(), limit, is_closed, counts: ReplyCounts::default() }
    }

    /// Takes a place.
    pub(super) fn begin(&self) -> Result<WaitingCall<'_>, RequestError> {
        let mut table = self.table.lock();
        if let Some(cause) = &table.closed {
            return Err(RequestError::Closed { sent: super::Sent::No, cause: cause.clone() });
        }
        if table.waiting.len() >= self.limit {
            return Err(RequestError::TooManyWaiting { limit: self.limit });
        }
        let number = table.next;
        table.next += 1;
        let (sender, answer) = oneshot::channel();
        table.waiting.insert(number, sender);
        Ok(WaitingCall { number, calls: self, answer })
    }

    /// Gives a reply to the call of this number. Answers whether it waits.
    pub(super) fn answer(&self, number: u64, reply: Envelope) -> bool {
        let waiting = self.table.lock().waiting.remove(&number);
        waiting.is_some_and(|call| call.send(reply).is_ok())
    }

    /// Ends all calls, and refuses new ones. The first cause stays.
    pub(super) fn close(&self, cause: Error) {
        let ended = {
            let mut table = self.table.lock();
            table.closed.get_or_insert(cause);
            std::mem::take(&mut table.waiting)
        };
        drop(ended);
        self.is_closed.send_replace(true);
    }

    pub(super) async fn until_closed(&self) {
        let mut closed = self.is_closed.subscribe();
        // The sender lives as long as this.
        let _ = closed.wait_for(|closed| *closed).await;
    }

    pub(super) fn cause(&self) -> Option<Error> {
        self.table.lock().closed.clone()
    }

    pub(super) fn stats(&self) -> RequestStats {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RequestStats {
            waiting: self.table.lock().waiting.len(),
            answered: read(&self.counts.answered),
            late: read(&self.counts.late),
            left_over: read(&self.counts.left_over),
            stray: read(&self.counts.stray),
            not_replies: read(&self.counts.not_replies),
        }
    }
}

impl Drop for WaitingCall<'_> {
    fn drop(&mut self) {
        self.calls.table.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use polybus_core::ErrorKind;

    use super::*;

    #[test]
    fn a_call_leaves_when_it_is_answered_or_dropped() {
        let calls = WaitingCalls::new(2);
        let (mut one, two) = (calls.begin().unwrap(), calls.begin().unwrap());
        assert!(matches!(calls.begin(), Err(RequestError::TooManyWaiting { limit: 2 })));
        assert!(calls.answer(one.number, Envelope::new("a", "")));
        assert!(one.answer.try_recv().is_ok());
        assert!(!calls.answer(one.number, Envelope::new("a", "")), "a second answer is late");
        drop(two);
        assert_eq!(calls.stats().waiting, 0);
        assert!(!calls.answer(1, Envelope::new("a", "")));
    }

    #[tokio::test]
    async fn closing_ends_what_waits() {
        let calls = WaitingCalls::new(2);
        let mut one = calls.begin().unwrap();
        calls.close(Error::new(ErrorKind::NotFound, "gone"));
        calls.close(Error::new(ErrorKind::Closed, "closed"));
        assert!((&mut one.answer).await.is_err());
        assert_eq!(calls.cause().map(|cause| cause.kind()), Some(ErrorKind::NotFound));
        assert!(matches!(calls.begin(), Err(RequestError::Closed { .. })));
    }
}
