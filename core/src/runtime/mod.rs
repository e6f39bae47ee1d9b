//! Helpers around futures and time that know nothing of messages.

pub(crate) mod backoff;
pub(crate) mod catch_panic;
pub(crate) mod clock;
pub mod duration;
pub(crate) mod oneshot;
pub(crate) mod poll_then_spawn;
