//! Refusals: what a driver does not declare is `Unsupported` before any I/O.
//!
//! Each scenario is the negative twin of a capability: it runs where that capability is missing. A
//! [`CallCounter`](crate::CallCounter) around the driver proves that no call reached it.

mod capabilities;
mod limits;

use crate::Scenario;

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    [capabilities::all(), limits::all()].concat()
}
