//! Envelopes as messages of AMQP 1.0, and back, over both transports.

pub(crate) mod annotations;
pub(crate) mod body;
pub(crate) mod envelope;
pub(crate) mod native_message;
pub(crate) mod native_view;
pub(crate) mod original;
