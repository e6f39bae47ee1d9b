//! Core's pipelines against a driver that follows a script: what a real broker does too rarely to be tested with.
#![allow(clippy::unwrap_used)]

mod consume;
mod publish;
mod script;
mod settle;
