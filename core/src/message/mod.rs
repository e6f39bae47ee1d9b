//! What is sent and received: the envelope with its headers and payload, the typed layer on top of it, and how both become CloudEvents.
//!
//! A message begins as an [`Envelope`](envelope::Envelope), or as an [`Event`](event::Event) that is turned into one. With the options of
//! one publish it is an [`Outgoing`](outgoing::Outgoing). Adapters write and read it with [`cloudevents`], and everything of others that is
//! no CloudEvent becomes an envelope there as well.

pub mod cloudevents;
mod dead_letter;
mod envelope;
mod event;
mod forward;
pub mod headers;
mod outgoing;

pub use self::{
    dead_letter::DeadLetter,
    envelope::{Envelope, EnvelopeFields},
    event::{Codec, Event, JsonCodec},
    headers::Headers,
    outgoing::{Outgoing, Receipt},
};
