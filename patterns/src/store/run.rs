//! Which run of a handler the code is in.

use std::{
    future::Future,
    sync::atomic::{AtomicU64, Ordering},
};

tokio::task_local! {
    static RUN: u64;
}

static RUNS: AtomicU64 = AtomicU64::new(1);

/// The number of the inbox' run that this code is in: of one transaction and the handler that has it. `None` outside of
/// one, and in a task that the handler spawned.
///
/// A store with one writer tells by it a handler that waits for a transaction while it holds its own: it would wait for
/// ever.
///
/// ```
/// assert_eq!(polybus_patterns::store::current_run(), None);
/// ```
pub fn current_run() -> Option<u64> {
    RUN.try_with(|run| *run).ok()
}

/// Runs this as a run of its own.
pub(crate) async fn in_run<F: Future>(future: F) -> F::Output {
    // On the heap: a handler's future may be large, and each layer around it holds it once more on the way.
    RUN.scope(RUNS.fetch_add(1, Ordering::Relaxed), Box::pin(future)).await
}
