//! Event types by version: upcasters, the router, what it refuses, and samples.
#![allow(clippy::unwrap_used)]

mod chains;
mod events;
mod inbox;
mod marks;
mod reading;
#[cfg(feature = "metrics")]
#[path = "../../../core/tests/common/recorder.rs"]
mod recorder;
mod rollback;
mod router;
mod samples;
mod start;
