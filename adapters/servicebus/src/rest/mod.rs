//! The driver over HTTPS alone: one request for each message that is received or settled.

pub(crate) mod client;
pub(crate) mod consumer;
pub(crate) mod driver;
pub(crate) mod hold;
pub(crate) mod message_in;
pub(crate) mod message_out;
pub(crate) mod receiver;
pub(crate) mod sender;
pub(crate) mod settler;
