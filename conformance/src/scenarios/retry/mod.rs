//! Retries: a message that is given back with `retry_after` comes again after that time, whatever happens meanwhile.

mod delays;
mod interruptions;
mod topics;

use std::time::Duration;

use crate::Scenario;

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [delays::all(), interruptions::all(), topics::all()].concat()
}

const SECOND: Duration = Duration::from_secs(1);
