//! Runs the handler of a request, and catches its panic: the caller is told of it before the worker is.

use std::future::Future;

use polybus_core::{Envelope, HandlerError, Result};

use crate::catch_panic::{Panic, caught};

/// How a handler ended.
pub(super) enum Handled {
    Answer(Envelope),
    Error(HandlerError),
    Panic(Panic),
}

/// Calls `answer`, and runs its future.
pub(super) async fn run_caught<F, Fut>(answer: F) -> Handled
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<Envelope, HandlerError>>,
{
    // The handler is called inside the future, so that a panic before its first await is caught as well.
    match caught(async move { answer().await }).await {
        Ok(Ok(answer)) => Handled::Answer(answer),
        Ok(Err(e)) => Handled::Error(e),
        Err(panic) => Handled::Panic(panic),
    }
}
