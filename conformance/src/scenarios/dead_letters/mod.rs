//! Dead letters: what they tell, how they are consumed, and that no move to them loses a message.
//!
//! A message goes from a source to its dead letters, and is consumed there.

mod letters;
mod lost_connections;

use crate::Scenario;

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [letters::all(), lost_connections::all()].concat()
}
