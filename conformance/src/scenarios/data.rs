//! What is published is what arrives, byte for byte and header for header.

use crate::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![]
}
