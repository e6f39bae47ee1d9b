//! Futures that must not stop in the middle.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::runtime::Handle;

/// Runs a future where it is awaited. If that is dropped in the middle, it goes on in a task, and its result is dropped.
///
/// Outside of a runtime there is nobody to go on, and it is dropped as well.
pub(crate) fn finish_on_drop<F>(future: F) -> FinishOnDrop<F>
where
    F: Future<Output: Send> + Send + 'static,
{
    FinishOnDrop { future: Some(Box::pin(future)), begun: false }
}

pub(crate) struct FinishOnDrop<F: Future<Output: Send> + Send + 'static> {
    future: Option<Pin<Box<F>>>,
    begun: bool,
}

impl<F: Future<Output: Send> + Send + 'static> Future for FinishOnDrop<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        this.begun = true;
        let Some(future) = &mut this.future else { return Poll::Pending };
        let ready = future.as_mut().poll(cx);
        if ready.is_ready() {
            this.future = None;
        }
        ready
    }
}

impl<F: Future<Output: Send> + Send + 'static> Drop for FinishOnDrop<F> {
    fn drop(&mut self) {
        // What was never begun has nothing to finish.
        if let (Some(future), true, Ok(runtime)) = (self.future.take(), self.begun, Handle::try_current()) {
            runtime.spawn(async move { drop(future.await) });
        }
    }
}
