//! The in-process broker: for tests, for programs of one process, and the reference for every promise of the contract.
//!
//! A publish goes from the sender to a queue, or to a topic, which copies it to the queue of each subscription that
//! wants it. A queue has two message stores, one of live messages and one of dead letters. In a store a message is
//! waiting or locked: `waiting_messages` decides which one is next, the store hands it out under a lock to a
//! consumer's receiver, and the settler removes it, puts it back or moves it to the other store.
//!
//! No task runs in the background. Every receive, settlement and count first puts back the messages whose locks have
//! ended and ends the delays that are over; a consumer that waits sleeps until the next of these times. So everything
//! works under tokio's paused clock.

mod broker;
mod connection;
mod connector;
mod driver;
mod lock_deadlines;
mod message_store;
mod queue;
mod raw_message;
mod receiver;
mod sender;
mod settler;
mod slot_table;
mod stored_message;
mod topic;
mod waiting_messages;

use crate::{Error, ErrorKind};

pub use connector::MemoryConnector;
pub use driver::MemoryDriver;
pub use raw_message::RawMessage;

const BACKEND: &str = "memory";

fn fail(kind: ErrorKind, message: impl Into<String>) -> Error {
    Error::new(kind, message).with_backend(BACKEND)
}
