//! Dead letters: reason, metadata, consuming them, redrive.

use crate::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![]
}
