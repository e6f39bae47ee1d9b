//! Runs a future on the caller's task as far as it gets, and only then as a task of its own.

use std::{future::Future, pin::Pin, task::Poll};

/// A batch to be run. It is boxed: otherwise the future of each publish would have room for one, and few run one.
pub(crate) type BoxedRun = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Polls the future once on the caller's task. If that does not finish it, the rest runs as a task of its own, so that
/// a caller who gives up does not end a batch that others share. With a driver that answers at once, there is no task
/// switch.
pub(crate) async fn poll_then_spawn(mut future: BoxedRun) {
    let done = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
    if !done {
        tokio::spawn(future);
    }
}
