//! How the broker tells a connection that a link has something to send.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;

use futures_util::task::AtomicWaker;

use crate::broker::Wake;

/// Names a link within its connection. A handle is used again once its link is gone, a serial never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkKey {
    pub(crate) channel: u16,
    pub(crate) handle: u32,
    pub(crate) serial: u64,
}

/// The links of one connection that were woken and not looked at yet.
#[derive(Default)]
pub(crate) struct Wakes {
    keys: Mutex<Vec<LinkKey>>,
    waker: AtomicWaker,
}

impl Wakes {
    /// Takes what was woken, or has the task woken when something is.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Vec<LinkKey> {
        // Before looking, or a wake in between would not be heard.
        self.waker.register(context.waker());
        self.take()
    }

    /// Takes what was woken.
    pub(crate) fn take(&self) -> Vec<LinkKey> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Wakes one link.
pub(crate) struct LinkWake {
    pub(crate) wakes: Arc<Wakes>,
    pub(crate) key: LinkKey,
}

impl Wake for LinkWake {
    fn wake(&self) {
        self.wakes.keys.lock().unwrap_or_else(PoisonError::into_inner).push(self.key);
        self.wakes.waker.wake();
    }
}
