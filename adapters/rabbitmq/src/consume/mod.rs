//! Consuming one source, and settling what was delivered.
//!
//! A message comes from the broker on a [`consumer_channel`]. The [`receiver`] decodes it and hands it to core. Core
//! settles it by the [`settler`], on the same channel: AMQP takes an acknowledgement only on the channel that
//! delivered the message, so a new channel makes the deliveries of the old one `LockLost`. [`acks`] merges
//! acknowledgements into few frames. Retries, delays and dead letters leave as copies by [`crate::publish`], and then
//! the original is acknowledged.

pub(crate) mod acks;
pub(crate) mod consumer_channel;
pub(crate) mod receiver;
pub(crate) mod settler;
