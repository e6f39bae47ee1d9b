//! Runs the handler of a request, and catches its panic: the caller is told of it before the worker is.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

use polybus_core::{Envelope, HandlerError, Result};

/// How a handler ended.
pub(super) enum Handled {
    Answer(Envelope),
    Error(HandlerError),
    Panic(Box<dyn Any + Send>),
}

/// Calls `answer`, and runs its future.
pub(super) async fn run_caught<F, Fut>(answer: F) -> Handled
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<Envelope, HandlerError>>,
{
    // The handler is called inside the future, so that a panic before its first await is caught as well.
    let mut running = pin!(async move { answer().await });
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(Ok(answer))) => Poll::Ready(Handled::Answer(answer)),
        Ok(Poll::Ready(Err(e))) => Poll::Ready(Handled::Error(e)),
        Err(panic) => Poll::Ready(Handled::Panic(panic)),
    })
    .await
}
