//! Helpers around futures and time that know nothing of messages.

pub(crate) mod backoff;
pub mod clock;
pub mod duration;
pub(crate) mod edit_distance;
pub(crate) mod oneshot;
pub(crate) mod poll_then_spawn;
