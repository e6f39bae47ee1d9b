//! The memory driver, on the driver traits themselves.
#![allow(clippy::unwrap_used)]

#[path = "memory_driver/support.rs"]
mod support;

#[path = "memory_driver/cancel.rs"]
mod cancel;
#[path = "memory_driver/consumers.rs"]
mod consumers;
#[path = "memory_driver/dead_letters.rs"]
mod dead_letters;
#[path = "memory_driver/locks.rs"]
mod locks;
#[path = "memory_driver/order.rs"]
mod order;
#[path = "memory_driver/publish.rs"]
mod publish;
#[path = "memory_driver/settle.rs"]
mod settle;
#[path = "memory_driver/topology.rs"]
mod topology;
