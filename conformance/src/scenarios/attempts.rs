//! Counting attempts, and max_deliveries exactly.

use crate::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![]
}
