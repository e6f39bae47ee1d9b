//! Time: messages with a delay, and messages that expire.

mod delay;
mod expiry;

use std::time::Duration;

use polybus_core::{Envelope, Outgoing};

use crate::Scenario;

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [delay::all(), expiry::all()].concat()
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn after(message: Envelope, delay: Duration) -> Outgoing {
    Outgoing::from(message).delay(delay)
}
