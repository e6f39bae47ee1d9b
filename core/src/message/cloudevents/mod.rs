//! CloudEvents 1.0 on the wire: binary mode, structured mode, and messages that are no CloudEvents.
//!
//! An adapter publishes with [`encode_binary`] (or one of its siblings), or with [`encode_structured`] where the broker
//! has no place for headers. What it receives goes into a [`WireMessage`], and [`decode`] makes an envelope of it,
//! whatever it is. Beside the envelope travels a [`CopyState`]: what polybus must know of a message that it has copied
//! before.

mod attributes;
mod binary;
mod content_type;
mod foreign_view;
mod http_safe_names;
mod internal_headers;
mod json_text;
mod native_headers;
mod native_properties;
mod number_text;
mod packed_headers;
mod structured;
mod wire_names;

use std::borrow::Cow;

use bytes::Bytes;
use time::OffsetDateTime;

pub use self::wire_names::WireNames;
pub(crate) use self::{
    attributes::{KNOWN, MAX_EXTENSION_NAME},
    content_type::is_json,
    native_headers::{NATIVE, is_counter, starts},
};
use crate::{Envelope, message::DeadLetter};

/// The content type of structured mode: `application/cloudevents+json`.
pub const STRUCTURED: &str = "application/cloudevents+json";

/// What polybus itself sends along with a message, in `polybus-…` headers. It is never part of the envelope.
///
/// [`CopyState::copied`] says what each kind of copy carries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CopyState {
    /// How often the message was copied since its publish, by a retry, as a dead letter or by a redrive.
    pub hop: u32,
    /// Deliveries that earlier copies of this message have used up.
    pub attempts: u32,
    /// On dead letters: how the message became one.
    pub dead_letter: Option<Box<DeadLetter>>,
    /// Which redrive made this copy, so that it does not move the message twice. Every later copy keeps it.
    pub mark: Option<Box<str>>,
    /// How often the message was redriven.
    pub redriven: u32,
}

impl CopyState {
    /// The state of a copy in a live source.
    ///
    /// ```
    /// let state = polybus_core::message::cloudevents::CopyState::new(1, 2);
    /// assert_eq!((state.hop, state.attempts, state.redriven), (1, 2, 0));
    /// ```
    pub fn new(hop: u32, attempts: u32) -> Self {
        Self { hop, attempts, ..Self::default() }
    }
}

/// A message as it came over the wire, for [`decode`].
///
/// Build it with `..WireMessage::default()`, since later versions add fields.
#[derive(Clone, Debug, Default)]
pub struct WireMessage<'a> {
    /// The native content type.
    pub content_type: Option<&'a str>,
    /// All readable native headers, in the order and spelling in which they came.
    pub headers: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    /// The body.
    pub body: Bytes,
    /// The broker's own id of the message: the `id` of foreign messages.
    pub id: Option<&'a str>,
    /// The broker's own time of the message: the `time` of foreign messages.
    pub time: Option<OffsetDateTime>,
    /// The address it was read from: the `source` of foreign messages.
    pub address: &'a str,
    /// The native correlation id. It is the envelope's where no attribute of a CloudEvent says otherwise.
    pub correlation_id: Option<&'a str>,
    /// The native subject or label. It is the envelope's subject where no attribute of a CloudEvent says otherwise.
    pub subject: Option<&'a str>,
    /// The other native properties that polybus did not write itself, by their portable names (`reply-to`,
    /// `content-encoding` …). They become headers `native.<name>`.
    ///
    /// A foreign header that cannot be shown, such as one of bytes that are no text, is not dropped unseen: the adapter
    /// gives the names of all such headers, with commas between, as the property `unshown`. The application finds them
    /// in the header `native.unshown`.
    pub native: Vec<(&'static str, Cow<'a, str>)>,
    /// Whether the adapter made [`id`](Self::id) up, from what the message says or from its place in a queue, because
    /// it came without one: see [`Envelope::id_is_made_up`].
    pub id_is_made_up: bool,
}

/// What [`decode`] makes of a message.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DecodedMessage {
    /// The message. It is the foreign view if the message is no CloudEvent or cannot be decoded: type
    /// [`Envelope::FOREIGN_TYPE`], the body as payload, the broker's id and time.
    pub envelope: Envelope,
    /// What polybus sent along with the message.
    pub carried: CopyState,
    /// In structured mode, the body as it came; the envelope's payload is a part of it.
    pub body: Option<Bytes>,
    /// Why the message could not be decoded; `None` if it could.
    pub malformed: Option<Box<str>>,
}

/// Writes a message in binary mode: calls `put` with each native header, first `cloudEvents:<attribute>`, then polybus'
/// own, then the application's.
///
/// The adapter sends the payload as the body, and the envelope's content type as the native one. Some application
/// headers cannot be native headers of their own, such as two that differ in case alone. Where a message has one of
/// these, all go together into one header `polybus-headers`.
///
/// ```
/// use polybus_core::{Envelope, message::cloudevents::{CopyState, encode_binary}};
///
/// let order = Envelope::new("order.placed", r#"{"id":7}"#).source("/shop").header("tenant", "acme");
/// let mut headers = Vec::new();
/// encode_binary(&order, &CopyState::default(), &mut |name, value| headers.push(format!("{name}={value}")));
/// assert!(headers.contains(&"cloudEvents:type=order.placed".to_owned()));
/// assert!(headers.contains(&"tenant=acme".to_owned()));
/// ```
pub fn encode_binary(envelope: &Envelope, carried: &CopyState, put: &mut dyn FnMut(&str, &str)) {
    binary::encode(envelope, carried, &WireNames::AMQP, put);
}

/// [`encode_binary`] for brokers that also hand native headers out as headers of HTTP, in any order and with names in
/// lower case.
///
/// The attributes are `cloudEvents_<attribute>`, since a name of HTTP holds no colon. The spelling and order of the
/// application's names are written beside them. Where HTTP itself has a header of one of these names, all go together
/// into one `polybus-headers`. A reader that gets them from HTTP sorts them by name before [`decode`].
///
/// ```
/// use polybus_core::{Envelope, message::cloudevents::{CopyState, encode_binary_for_http}};
///
/// let order = Envelope::new("order.placed", "{}").source("/shop");
/// let mut names = Vec::new();
/// encode_binary_for_http(&order, &CopyState::default(), &mut |name, _| names.push(name.to_owned()));
/// assert!(names.contains(&"cloudEvents_type".to_owned()));
/// ```
pub fn encode_binary_for_http(envelope: &Envelope, carried: &CopyState, put: &mut dyn FnMut(&str, &str)) {
    binary::encode(envelope, carried, &WireNames::HTTP, put);
}

/// [`encode_binary`] with other names, for brokers that have rules of their own and readers that look for another
/// prefix.
///
/// ```
/// use polybus_core::{Envelope, message::cloudevents::{CopyState, WireNames, encode_binary_named}};
///
/// let order = Envelope::new("order.placed", "{}").source("/shop");
/// let mut names = Vec::new();
/// let put = &mut |name: &str, _: &str| names.push(name.to_owned());
/// encode_binary_named(&order, &CopyState::default(), &WireNames::CE, put);
/// assert!(names.contains(&"ce-type".to_owned()));
/// ```
pub fn encode_binary_named(
    envelope: &Envelope,
    carried: &CopyState,
    names: &WireNames,
    put: &mut dyn FnMut(&str, &str),
) {
    binary::encode(envelope, carried, names, put);
}

/// Writes the headers of a [`CopyState`] alone, for an adapter that copies a message with its native properties and
/// body as they came.
///
/// Such a copy leaves out the old headers for which [`is_carried`] holds, and keeps all other `polybus-…` headers: they
/// are needed to read the message.
///
/// ```
/// use polybus_core::message::cloudevents::{CopyState, encode_carried};
///
/// let mut headers = Vec::new();
/// encode_carried(&CopyState::new(1, 2), &mut |name, value| headers.push(format!("{name}={value}")));
/// assert_eq!(headers, ["polybus-hop=1", "polybus-attempts=2"]);
/// ```
pub fn encode_carried(carried: &CopyState, put: &mut dyn FnMut(&str, &str)) {
    internal_headers::each(carried, put);
}

/// Whether a native header is one that [`encode_carried`] writes.
///
/// ```
/// use polybus_core::message::cloudevents::is_carried;
///
/// assert!(is_carried("polybus-hop") && !is_carried("polybus-headers"));
/// ```
pub fn is_carried(header: &str) -> bool {
    internal_headers::own(header)
        .is_some_and(|own| matches!(own, "hop" | "attempts" | "mark" | "redriven") || own.starts_with("dead-"))
}

/// Writes a message in structured mode: one JSON document, for the content type [`STRUCTURED`].
///
/// It holds no character that XML 1.0 refuses, and with it SQS.
///
/// ```
/// use polybus_core::{Envelope, message::cloudevents::{CopyState, encode_structured}};
///
/// let order = Envelope::new("order.placed", r#"{"id":7}"#).source("/shop");
/// let document = encode_structured(&order, &CopyState::default());
/// assert!(document.starts_with(r#"{"specversion":"1.0","#));
/// assert!(document.ends_with(r#""data":{"id":7}}"#));
/// ```
pub fn encode_structured(envelope: &Envelope, carried: &CopyState) -> String {
    structured::encode(envelope, carried)
}

/// Whether a native header is one in which RabbitMQ itself counts, such as `x-death` or `x-delivery-count`.
///
/// It is no part of a message, and no copy has it. The names are exact: `x-delivery-note` is an application's own.
///
/// ```
/// use polybus_core::message::cloudevents::is_broker_counter;
///
/// assert!(is_broker_counter("x-death") && !is_broker_counter("x-delivery-note"));
/// ```
pub fn is_broker_counter(header: &str) -> bool {
    is_counter(header)
}

/// Decodes either mode, or makes the foreign view. It never fails: [`DecodedMessage::malformed`] says what cannot be
/// decoded.
///
/// - Attributes are native headers `cloudEvents:…`, `cloudEvents_…`, `ce-…` or `ce_…`, ignoring case. They may stand
///   without a prefix, as Knative's RabbitMQ broker writes them, if the four required ones are all there.
/// - A body that is an event in structured mode by its own look (a JSON object with `specversion`, `id`, `source` and
///   `type`) is read as one, whatever its content type, unless headers say that the event is in binary mode. What
///   polybus writes in binary mode always says so; so nobody can put an event into such a payload.
/// - An optional attribute that cannot be read is an extension. A name that no attribute can have is a header.
/// - `polybus-…` headers never reach the envelope. In a CloudEvent, neither do the broker's counters
///   ([`is_broker_counter`]). In structured mode native headers are application headers only if the document carries
///   none of its own.
/// - Native properties become what [`WireMessage`] says. Like every header they are the sender's word. What the broker
///   vouches for, such as a user id, is in [`Delivery::native`](crate::consume::Delivery::native).
///
/// ```
/// use std::borrow::Cow;
/// use polybus_core::{Envelope, message::cloudevents::{WireMessage, decode}};
///
/// let attributes = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/shop"), ("ce-type", "order.placed")];
/// let headers = attributes.into_iter().map(|(name, value)| (Cow::from(name), Cow::from(value))).collect();
/// let order = decode(WireMessage { headers, body: "{}".into(), ..WireMessage::default() });
/// assert_eq!(&*order.envelope.event_type, "order.placed");
///
/// let note = decode(WireMessage { body: "hello".into(), ..WireMessage::default() });
/// assert_eq!(&*note.envelope.event_type, Envelope::FOREIGN_TYPE);
/// ```
pub fn decode(mut wire: WireMessage<'_>) -> DecodedMessage {
    let mut carried = CopyState::default();
    for (name, value) in &wire.headers {
        if let Some(own) = internal_headers::own(name) {
            internal_headers::set(&mut carried, own, value);
        }
    }
    let mut body = None;
    let fields = match wire.content_type {
        Some(content_type) if content_type::claims_structured(content_type) && !binary::is_marked(&wire) => {
            if content_type::is_structured_json(content_type) {
                structured::decode(&wire, &mut carried).map(|fields| {
                    body = Some(std::mem::take(&mut wire.body));
                    Some(fields)
                })
            } else {
                Err(format!("structured mode, but only {STRUCTURED} can be read"))
            }
        }
        // The body is moved, not cloned: a second handle on `Bytes` would cost an allocation.
        _ => binary::decode(&wire).map(|event| match event {
            Some(mut fields) => {
                fields.data = std::mem::take(&mut wire.body);
                Some(fields)
            }
            None if structured::looks_so(&wire.body) && !binary::is_marked(&wire) => {
                let fields = structured::decode(&wire, &mut carried).ok()?;
                body = Some(std::mem::take(&mut wire.body));
                Some(fields)
            }
            None => None,
        }),
    };
    let (fields, malformed) = match fields {
        Ok(Some(mut fields)) => {
            native_properties::fill(&mut fields, &wire);
            (fields, None)
        }
        Ok(None) => (foreign_view::view(wire), None),
        Err(reason) => (foreign_view::view(wire), Some(reason.into())),
    };
    if let Some(letter) = &mut carried.dead_letter {
        letter.redriven = carried.redriven;
    }
    DecodedMessage { envelope: Envelope::from_fields(fields), carried, body, malformed }
}
