//! What adapters have in common, to build them from: a connection that is made anew at one pace, what was fetched and not handed out yet,
//! locks that a driver keeps alive itself, and sizes as people write them.

pub mod lease;
pub mod prefetched;
pub mod reconnect;
pub mod size;
