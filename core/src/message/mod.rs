//! What is sent and received: the envelope with its headers and payload, the typed layer on top of it, and how both become CloudEvents.
//!
//! A message begins as an [`Envelope`](envelope::Envelope), or as an [`Event`](event::Event) that is turned into one. With the options of
//! one publish it is an [`Outgoing`](outgoing::Outgoing). Adapters write and read it with [`cloudevents`], and everything of others that is
//! no CloudEvent becomes an envelope there as well.

pub mod cloudevents;
pub(crate) mod envelope;
pub(crate) mod event;
pub(crate) mod forward;
pub mod headers;
pub(crate) mod outgoing;
