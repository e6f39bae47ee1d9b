//! Which event types a subscription gets.

use crate::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![]
}
