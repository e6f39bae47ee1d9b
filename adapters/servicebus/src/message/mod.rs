//! Envelopes as AMQP 1.0 messages, and back.
//!
//! Out: [`envelope`] encodes an envelope. In: [`received`] reads a message of any origin, with its [`body`], the
//! broker's [`annotations`], and in [`native_view`] the native properties of foreign messages. What is needed to settle
//! and copy it is kept as an [`original`]: nothing but a few numbers if the message is [`written_by_polybus`], else
//! all its sections, which applications see as a [`native_message`].
//!
//! The transport over HTTP has messages of its own shape, in `rest`, and shares names, limits and rules with these.

pub(crate) mod annotations;
pub(crate) mod body;
pub(crate) mod envelope;
pub(crate) mod native_message;
pub(crate) mod native_view;
pub(crate) mod original;
pub(crate) mod received;
#[cfg(test)]
mod round_trip_tests;
mod written_by_polybus;
