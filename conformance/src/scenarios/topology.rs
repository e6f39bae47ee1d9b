//! Topologies that change, vanish, or are declared by many at once.

use crate::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![]
}
