//! Futures and time, without any knowledge of messages.
//!
//! | file | |
//! |---|---|
//! | `poll_then_spawn.rs` | runs a future on the caller's task first, and only then as a task |
//! | `oneshot.rs` | a reply that also tells whether its request was sent |
//! | `backoff.rs` | growing waits between attempts |
//! | `clock.rs` | the wall clock of a bus |
//! | `duration.rs` | durations as text, and deadlines |
//! | `wait_until.rs` | waiting for a condition that others change |
//! | `edit_distance.rs` | the distance of two words, for hints about misspelt names |

pub mod backoff;
pub mod clock;
pub mod duration;
pub(crate) mod edit_distance;
pub(crate) mod oneshot;
pub(crate) mod poll_then_spawn;
pub(crate) mod wait_until;
