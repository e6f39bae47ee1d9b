//! Envelopes as AMQP 0-9-1 messages, and back.

pub(crate) mod envelope;
pub(crate) mod packed_copies;
