//! Monitors by the paused clock: on a driver that answers as a test says, and on the memory driver.
#![allow(clippy::unwrap_used)]

mod alerts;
mod leader;
#[path = "../rows/log.rs"]
mod log;
#[cfg(feature = "metrics")]
mod metrics_told;
mod on_memory;
mod polls;
mod refusals;
mod scripted;
mod sinks;
