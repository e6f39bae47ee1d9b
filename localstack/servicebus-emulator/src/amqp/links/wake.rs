//! Wakes a connection when the broker has messages for one of its links.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;

use futures_util::task::AtomicWaker;

use crate::broker::Wake;

/// Identifies a link within its connection. A handle is reused after its link is gone, a serial never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkKey {
    pub(crate) channel: u16,
    pub(crate) handle: u32,
    pub(crate) serial: u64,
}

/// The links of one connection that were woken and not handled yet.
#[derive(Default)]
pub(crate) struct WokenLinks {
    keys: Mutex<Vec<LinkKey>>,
    waker: AtomicWaker,
}

impl WokenLinks {
    /// Takes the woken links, and registers the task to be woken by the next one.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Vec<LinkKey> {
        // The waker is registered before the list is read. In the other order a wake in between would be lost.
        self.waker.register(context.waker());
        self.take()
    }

    /// Takes the woken links.
    pub(crate) fn take(&self) -> Vec<LinkKey> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The wake of one link, which the broker calls.
pub(crate) struct LinkWake {
    pub(crate) wakes: Arc<WokenLinks>,
    pub(crate) key: LinkKey,
}

impl Wake for LinkWake {
    fn wake(&self) {
        self.wakes.keys.lock().unwrap_or_else(PoisonError::into_inner).push(self.key);
        self.wakes.waker.wake();
    }
}
