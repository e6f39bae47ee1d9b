//! The in-process broker: the reference for every promise of the contract.
//!
//! No task runs in the background: delays and locks are looked at whenever somebody asks for messages, settles or counts,
//! and a consumer that waits sleeps until the next of them. Everything works under tokio's paused clock.

mod backlog;
mod broker;
mod connection;
mod connector;
mod driver;
mod lock_deadlines;
mod message;
mod message_store;
mod queue;
mod raw_message;
mod receiver;
mod sender;
mod settler;
mod slab;
mod topic;

use crate::error::{Error, ErrorKind};

pub use connector::MemoryConnector;
pub use driver::MemoryDriver;
pub use raw_message::Raw;

const BACKEND: &str = "memory";

fn fail(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, message).with_backend(BACKEND)
}
