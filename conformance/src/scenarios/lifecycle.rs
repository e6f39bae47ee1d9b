//! Declare, verify, stats, close, restart, lost connections, killed consumers.

use crate::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![]
}
