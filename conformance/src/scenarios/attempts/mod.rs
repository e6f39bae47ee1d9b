//! Attempts: what counts as one, and what happens at the last.
//!
//! A delivery is given back in some way, and the next delivery of its message tells its attempt.

mod counting;
mod limit;

use crate::Scenario;

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [counting::all(), limit::all()].concat()
}
