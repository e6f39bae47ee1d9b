//! Event types: which messages a subscription gets, and what becomes of those that the program does not want.
//!
//! The broker filters by the types of the subscription. Core filters once more by the program's own list.

mod matching;
mod unwanted;

use crate::Scenario;

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [matching::all(), unwanted::all()].concat()
}
