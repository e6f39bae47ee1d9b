//! What is sent and received: the envelope with its headers and payload, typed payloads on top of it, and CloudEvents
//! below.
//!
//! A message begins as an [`Envelope`], or as an [`Event`] that [`Envelope::event`] turns into one. With the options of
//! one publish it is an [`Outgoing`]. An adapter writes it to the wire with [`cloudevents`]; the adapter of the
//! consumer reads it there, and makes an envelope of foreign messages as well. The consumer reads the payload as it is
//! or as an [`Event`] ([`Envelope::decode`]). A bridge makes a received envelope publishable again with
//! [`Envelope::forward`].
//!
//! ```
//! use polybus_core::{Envelope, Event};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Serialize, Deserialize)]
//! struct OrderPlaced {
//!     order: String,
//!     cents: u64,
//! }
//!
//! impl Event for OrderPlaced {
//!     const TYPE: &'static str = "order.placed";
//!     const VERSION: u32 = 1;
//! }
//!
//! let placed = OrderPlaced { order: "o-7".into(), cents: 1250 };
//! let message = Envelope::event(&placed)?.key("o-7");
//! assert_eq!(message.decode::<OrderPlaced>()?.cents, 1250);
//! # Ok::<(), polybus_core::Error>(())
//! ```

pub mod cloudevents;
mod dead_letter;
mod envelope;
mod event;
mod forward;
pub mod headers;
mod json_error;
mod outgoing;
mod reply_to;

pub use self::{
    dead_letter::DeadLetter,
    envelope::{Envelope, EnvelopeFields},
    event::{Codec, Event, JsonCodec},
    headers::Headers,
    outgoing::{Outgoing, Receipt},
    reply_to::ReplyTo,
};
