//! The wire format of AMQP: frames, performatives, delivery states and errors.
//!
//! `frame.rs` cuts frames out of the input, `performative.rs` decodes their bodies, and `writer.rs` encodes the frames
//! that the server sends. `delivered_message.rs` encodes a message of the broker for its receiver.

pub(crate) mod delivered_message;
mod delivery_state;
pub(crate) mod error;
pub(crate) mod frame;
pub(crate) mod performative;
pub(crate) mod writer;

pub(crate) use delivery_state::DeliveryState;
pub(crate) use error::AmqpError;
pub(crate) use frame::Frame;
pub(crate) use performative::{Attach, Begin, Detach, Disposition, Flow, Open, Performative, Transfer};
