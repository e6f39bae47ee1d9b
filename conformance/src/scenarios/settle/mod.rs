//! Settling: what each settlement does to a message, also when its lock or its connection is lost.
//!
//! A delivery is acked, released, retried or dropped, and the next consumer shows where its message went.

mod locks;
mod lost_connections;
mod outcomes;

use crate::Scenario;

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [outcomes::all(), locks::all(), lost_connections::all()].concat()
}
