//! The future behind `Subscription::next`, kept between polls where others can end it.
//!
//! The future holds the receiver, perhaps while nobody polls it: a stream may be polled once and then left alone. So
//! whoever stops the consumer must be able to drop the future.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, MutexGuard};

type BoxedNext<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(crate) struct NextFuture<T>(Mutex<Option<(BoxedNext<T>, Waker)>>);

impl<T> Default for NextFuture<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> NextFuture<T> {
    fn lock(&self) -> MutexGuard<'_, Option<(BoxedNext<T>, Waker)>> {
        self.0.lock()
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

    /// Drops the future, since its caller no longer waits.
    pub(crate) fn cancel(&self) {
        // The future is dropped outside the lock.
        let under_way = self.lock().take();
        drop(under_way);
    }

    /// Drops the future and wakes its caller, which polls a new one.
    pub(crate) fn cancel_and_wake(&self) {
        let under_way = self.lock().take();
        if let Some((future, waker)) = under_way {
            drop(future);
            waker.wake();
        }
    }
}
