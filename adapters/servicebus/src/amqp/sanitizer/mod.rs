//! Makes what the broker sends safe for fe2o3-amqp, which would overflow the stack over values that are nested too
//! deeply.
//!
//! [`stream`] wraps the connection's byte stream. [`nesting`] cuts it into frames ([`performative`]) and messages, and
//! [`walk`] goes through the values of each message and makes the deep ones harmless, in place.

pub(crate) mod nesting;
pub(crate) mod performative;
pub(crate) mod stream;
pub(crate) mod walk;
