//! The worker: each answer of a handler becomes a settlement.
//!
//! A worker takes messages from a source and calls the handler of the scenario, which notes what it saw.

mod handling;
mod shutdown;

use polybus_core::worker::{WorkerBuilder, WorkerReport};
use tokio::time::timeout;

use crate::{Cx, During, Failure, Outcome, Scenario};

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [handling::all(), shutdown::all()].concat()
}

/// Runs the worker until `shutdown` ends it. Fails after a long patience.
async fn run(
    cx: &Cx,
    worker: WorkerBuilder,
    shutdown: impl Future<Output = ()> + Send,
    handler: impl polybus_core::Handler,
) -> Outcome<WorkerReport> {
    let ran = timeout(cx.patience() * 3, worker.with_graceful_shutdown(shutdown).run(handler)).await;
    ran.map_err(|_| Failure::new("the worker's goal was not reached in time"))?.during("the worker")
}
