//! The worker: retry ladder, permanent errors, panics, timeouts, drain.

use crate::Scenario;

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![]
}
