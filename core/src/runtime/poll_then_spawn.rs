//! Runs a future on the caller's time as far as it gets, and only then makes it a task.

use std::{future::Future, pin::Pin, task::Poll};

/// Boxed before it gets here: every caller's future would have room for it otherwise, and few run one.
pub(crate) type BoxedRun = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Polls once on the caller's task; if that does not finish it, the rest runs as a task of its own, so that a caller who
/// gives up cannot take down a batch that others share. A driver that answers at once costs no task switch.
pub(crate) async fn here_or_spawned(mut future: BoxedRun) {
    let done = std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_ready())).await;
    if !done {
        tokio::spawn(future);
    }
}
