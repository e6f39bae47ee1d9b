//! Buses and brokers over time: closing, restarts, cuts, kills, counts, and bounded memory.

mod bounds;
mod close;
mod lost_peers;
mod restarts;
mod stats;

use polybus_core::{ErrorKind, RetrySafety, SettleError};

use crate::{Failure, Outcome, Scenario};

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [close::all(), stats::all(), restarts::all(), lost_peers::all(), bounds::all()].concat()
}

/// Fails unless an ack while connections are lost is Ok, LockLost (the message comes again), or may be tried again.
fn acked_or_lost(result: Result<(), SettleError>) -> Outcome {
    let Err(e) = result else { return Ok(()) };
    match (e.error().kind(), e.error().retry()) {
        (ErrorKind::LockLost, RetrySafety::Never)
        | (ErrorKind::Unavailable, RetrySafety::Safe | RetrySafety::MayDuplicate) => Ok(()),
        _ => Err(Failure::from(e).during("an ack around a lost connection")),
    }
}
