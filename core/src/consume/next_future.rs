//! The future that a subscription keeps between polls, where others can end it: it holds the receiver, perhaps with nobody polling it.

use std::{
    future::Future,
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

type BoxedNext<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(crate) struct NextFuture<T>(Mutex<Option<(BoxedNext<T>, Waker)>>);

impl<T> Default for NextFuture<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> NextFuture<T> {
    fn lock(&self) -> MutexGuard<'_, Option<(BoxedNext<T>, Waker)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls the future under way, or a new one.
    pub(crate) fn poll(&self, cx: &mut Context<'_>, make: impl FnOnce() -> BoxedNext<T>) -> Poll<T> {
        let mut slot = self.lock();
        let (future, waker) = slot.get_or_insert_with(|| (make(), cx.waker().clone()));
        waker.clone_from(cx.waker());
        let item = future.as_mut().poll(cx);
        if item.is_ready() {
            *slot = None;
        }
        item
    }

    /// Drops the future, since the one who polled it waits no longer.
    pub(crate) fn give_up(&self) {
        let under_way = self.lock().take();
        drop(under_way);
    }

    /// Drops the future; whoever waits for it polls again.
    pub(crate) fn end(&self) {
        let under_way = self.lock().take();
        if let Some((future, waker)) = under_way {
            drop(future);
            waker.wake();
        }
    }
}
