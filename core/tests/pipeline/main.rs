//! Core's pipelines over a driver that follows a script, for what a real broker does too rarely to be tested with.
#![allow(clippy::unwrap_used)]

mod closing;
mod consume;
mod declare;
mod keys;
mod locks;
mod publish;
#[path = "../common/recorder.rs"]
mod recorder;
mod script;
mod settle;
mod settle_for_long;
mod worker_report;
