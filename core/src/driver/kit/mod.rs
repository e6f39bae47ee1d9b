//! What adapters have in common, to build them from: a connection that is made anew at one pace, what was fetched and not
//! handed out yet, locks that a driver keeps alive itself, what a copy carries, names and ids that fit a broker, and
//! durations and sizes as people write them.

mod copies;
pub mod lease;
pub mod names;
pub mod prefetched;
pub mod reconnect;
pub mod size;

pub use crate::runtime::duration;
