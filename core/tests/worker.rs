//! The worker over the in-process broker, under a paused clock where time matters.

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "worker/ending.rs"]
mod ending;
#[path = "worker/limits.rs"]
mod limits;
#[path = "worker/observed.rs"]
mod observed;
#[path = "worker/outcomes.rs"]
mod outcomes;
#[path = "worker/own_limits.rs"]
mod own_limits;
#[path = "common/recorder.rs"]
mod recorder;
#[path = "worker/starting.rs"]
mod starting;
#[path = "worker/support.rs"]
mod support;
#[path = "worker/tower.rs"]
mod tower;
