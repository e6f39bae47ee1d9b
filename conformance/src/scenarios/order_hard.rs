//! Order, the hard ones.

use crate::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![]
}
