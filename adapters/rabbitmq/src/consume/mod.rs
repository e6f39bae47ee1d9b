//! Consuming one source: a channel brings deliveries, and only it can acknowledge them.

pub(crate) mod acks;
pub(crate) mod consumer_channel;
pub(crate) mod receiver;
pub(crate) mod settler;
