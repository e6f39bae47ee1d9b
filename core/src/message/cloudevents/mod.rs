//! CloudEvents 1.0 on the wire: binary mode, structured mode, and messages that are no CloudEvents at all.

mod attributes;
mod binary;
mod content_type;
mod foreign;
mod http_safe_names;
mod internal_headers;
mod json_text;
mod names;
mod native;
mod number_text;
mod packed_headers;
mod structured;

use std::borrow::Cow;

use bytes::Bytes;
use time::OffsetDateTime;

pub use self::names::WireNames;
pub(crate) use self::{
    attributes::{KNOWN, MAX_EXTENSION_NAME},
    content_type::is_json,
    packed_headers::{NATIVE, is_counter, starts},
};
use crate::message::{DeadLetter, Envelope};

/// Content type of structured mode.
pub const STRUCTURED: &str = "application/cloudevents+json";

/// What polybus itself sends along with a message, under `polybus-…` headers. Never part of the envelope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyState {
    /// 0 at publish, one more with every copy (retry, dead letter, redrive).
    pub hop: u32,
    /// Deliveries that earlier copies of this message had already used up.
    pub attempts: u32,
    /// Set on dead letters.
    pub dead_letter: Option<Box<DeadLetter>>,
    /// Which redrive made this copy, so that it does not move what it has moved already. Goes with every later copy.
    pub mark: Option<Box<str>>,
    /// How often it was redriven.
    pub redriven: u32,
}

impl CopyState {
    /// What a live copy carries.
    pub fn new(hop: u32, attempts: u32) -> Self {
        Self { hop, attempts, ..Self::default() }
    }
}

/// A message as it came over the wire.
///
/// Build it with `..WireMessage::default()`: it gains fields.
#[derive(Clone, Debug, Default)]
pub struct WireMessage<'a> {
    /// The native content type.
    pub content_type: Option<&'a str>,
    /// All readable native headers in order, in whatever spelling they came.
    pub headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The body.
    pub body: Bytes,
    /// The broker's own id of the message, for foreign messages.
    pub id: Option<&'a str>,
    /// The broker's own time of the message, for foreign messages.
    pub time: Option<OffsetDateTime>,
    /// The address it was read from: the `source` of foreign messages.
    pub address: &'a str,
    /// The native correlation id: the envelope's, where no attribute of a CloudEvent says otherwise.
    pub correlation_id: Option<&'a str>,
    /// The native subject or label: the envelope's subject, where no attribute of a CloudEvent says otherwise.
    pub subject: Option<&'a str>,
    /// The other native properties that polybus did not write itself, by their portable names (`reply-to`, `content-encoding`, …). They
    /// become headers `native.<name>`.
    pub native: Vec<(&'static str, Cow<'a, str>)>,
}

/// A decoded message.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DecodedMessage {
    /// The message; the foreign view if it is no CloudEvent or cannot be decoded.
    pub envelope: Envelope,
    /// What polybus sent along.
    pub carried: CopyState,
    /// The body as it came, where the envelope's data is only a part of it: in structured mode.
    pub body: Option<Bytes>,
    /// Why it could not be decoded, if so.
    pub malformed: Option<Box<str>>,
}

/// Binary mode: calls `put` with each native header, `cloudEvents:<attribute>` first, then polybus' own, then the application's.
/// The payload travels as the body, `content_type` as the native content type (absent if `None`).
///
/// Application headers that a native header cannot carry apart from the others (a foreign message's, named `cloudEvents:id`
/// for example, or two that differ in case alone) go together into one `polybus-headers`.
pub fn encode_binary(envelope: &Envelope, carried: &CopyState, put: &mut dyn FnMut(&str, &str)) {
    binary::encode(envelope, carried, &WireNames::AMQP, put);
}

/// [`encode_binary`] for brokers that also hand native headers out as headers of HTTP, in any order, their names in lower case.
///
/// The attributes are `cloudEvents_<attribute>`, since a name of HTTP takes no colon; the spelling and the order of the application's
/// names go beside them; and where HTTP itself has a header of one of these names, all go together into one `polybus-headers`.
/// Who reads them from HTTP sorts them by name before [`decode`].
pub fn encode_binary_for_http(envelope: &Envelope, carried: &CopyState, put: &mut dyn FnMut(&str, &str)) {
    binary::encode(envelope, carried, &WireNames::HTTP, put);
}

/// [`encode_binary`] with other names: for brokers that have rules of their own, and readers that look for another prefix.
pub fn encode_binary_named(
    envelope: &Envelope,
    carried: &CopyState,
    names: &WireNames,
    put: &mut dyn FnMut(&str, &str),
) {
    binary::encode(envelope, carried, names, put);
}

/// Only the headers of `carried`: for an adapter that copies a message with its native properties and body as they came. It leaves out
/// those for which [`is_carried`] holds and keeps all other `polybus-…` headers: reading the message takes them.
pub fn encode_carried(carried: &CopyState, put: &mut dyn FnMut(&str, &str)) {
    internal_headers::each(carried, put);
}

/// Whether a native header is one of [`encode_carried`]'s.
pub fn is_carried(header: &str) -> bool {
    internal_headers::own(header)
        .is_some_and(|own| matches!(own, "hop" | "attempts" | "mark" | "redriven") || own.starts_with("dead-"))
}

/// Structured mode: one JSON document, for the content type [`STRUCTURED`]. It holds no character that XML 1.0, and with it SQS,
/// refuses.
pub fn encode_structured(envelope: &Envelope, carried: &CopyState) -> String {
    structured::encode(envelope, carried)
}

/// Whether a native header is one in which RabbitMQ itself counts (`x-death`, `x-delivery-count` …): it is no part of a message and no copy has it.
/// Exact names: `x-delivery-note` is an application's.
pub fn is_broker_counter(header: &str) -> bool {
    is_counter(header)
}

/// Decodes either mode, or makes the foreign view. Never fails: what cannot be decoded is told in [`DecodedMessage::malformed`].
///
/// - Attributes are native headers `cloudEvents:…`, `cloudEvents_…`, `ce-…` or `ce_…`, in any case, or those four that are required and the
///   other known ones without any prefix, as Knative's RabbitMQ broker writes them.
/// - A body that is an event in structured mode by its own look (a JSON object with `specversion`, `id`, `source` and `type`) is read as one,
///   whatever its content type, where no header says that the event is in binary mode. What polybus writes in binary mode always says
///   so: nobody can put an event of his own into such a payload.
/// - Optional attributes that cannot be read are extensions, and names that no attribute can have are headers.
/// - `polybus-…` headers never reach the envelope; neither do the broker's counters ([`is_broker_counter`]) in a CloudEvent. In structured
///   mode native headers are application headers only if the document carries none of its own.
/// - Native properties become what [`WireMessage`] says. Like every header, they are the sender's word: what the broker vouches for (a user id) is
///   to be read from [`Delivery::native`](crate::consume::Delivery::native).
pub fn decode(mut wire: WireMessage<'_>) -> DecodedMessage {
    let mut carried = CopyState::default();
    for (name, value) in &wire.headers {
        if let Some(own) = internal_headers::own(name) {
            internal_headers::set(&mut carried, own, value);
        }
    }
    let mut body = None;
    let parts = match wire.content_type {
        Some(content_type) if content_type::claims_structured(content_type) && !binary::is_marked(&wire) => {
            if content_type::is_structured_json(content_type) {
                structured::decode(&wire, &mut carried).map(|parts| {
                    body = Some(std::mem::take(&mut wire.body));
                    Some(parts)
                })
            } else {
                Err(format!("structured mode, but only {STRUCTURED} can be read"))
            }
        }
        // Moved, since a second handle on bytes would cost an allocation.
        _ => binary::decode(&wire).map(|event| match event {
            Some(mut parts) => {
                parts.data = std::mem::take(&mut wire.body);
                Some(parts)
            }
            None if structured::looks_so(&wire.body) && !binary::is_marked(&wire) => {
                let parts = structured::decode(&wire, &mut carried).ok()?;
                body = Some(std::mem::take(&mut wire.body));
                Some(parts)
            }
            None => None,
        }),
    };
    let (parts, malformed) = match parts {
        Ok(Some(mut parts)) => {
            native::fill(&mut parts, &wire);
            (parts, None)
        }
        Ok(None) => (foreign::view(wire), None),
        Err(reason) => (foreign::view(wire), Some(reason.into())),
    };
    if let Some(letter) = &mut carried.dead_letter {
        letter.redriven = carried.redriven;
    }
    DecodedMessage { envelope: Envelope::from_parts(parts), carried, body, malformed }
}
