//! Monitors by the paused clock: on a driver that answers as a test says, and on the memory driver.
#![allow(clippy::unwrap_used)]

mod alerts;
mod leader;
#[cfg(feature = "metrics")]
mod metrics_told;
mod on_memory;
mod polls;
mod refusals;
mod scripted;
mod sinks;
