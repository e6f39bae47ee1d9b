//! The memory driver, on the driver traits themselves.
#![allow(clippy::unwrap_used)]

#[path = "memory_driver/support.rs"]
mod support;

#[path = "memory_driver/locks.rs"]
mod locks;
#[path = "memory_driver/settle.rs"]
mod settle;
