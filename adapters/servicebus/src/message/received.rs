//! Reading a received message of any origin: its envelope, its attempt, and how it came to the dead letters.

use std::{borrow::Cow, sync::Arc, time::Duration};

use fe2o3_amqp::types::{
    messaging::{ApplicationProperties, Body, Header, Message, MessageAnnotations, Properties},
    primitives::{SimpleValue, Symbol, Value},
};
use polybus_core::{
    Envelope, Source,
    driver::DeadLetter,
    message::cloudevents::{self, CopyState, DecodedMessage, WireMessage},
};
use tokio::time::Instant;

use crate::message::{
    annotations::BrokerAnnotations,
    body,
    envelope::{self, CONTENT_TYPE, DELIVERIES, DETAIL, ORIGINAL_ID, ORIGINAL_TIME, REASON, text},
    native_message::{MessageSections, NativeMessage},
    native_view,
    original::{OriginalMessage, TimeToLive},
    written_by_polybus,
};

/// A message that was read.
pub(crate) struct MessageContent {
    pub(crate) original: OriginalMessage,
    pub(crate) envelope: Envelope,
    /// 1-based.
    pub(crate) attempt: u32,
    pub(crate) malformed: Option<Box<str>>,
    /// How it came to the dead letters that it was received from.
    pub(crate) dead_letter: Option<Box<DeadLetter>>,
}

/// The consumer that a message is read for.
#[derive(Clone, Copy)]
pub(crate) struct ReadContext<'a> {
    pub(crate) source: &'a Source,
    /// The source's address as text.
    pub(crate) address: &'a str,
    /// How long the broker's locks are.
    pub(crate) lock: Duration,
}

/// The sections that are read, all by reference: they are large, and of most messages they are not kept.
pub(super) struct SectionRefs<'a> {
    pub(super) header: Option<&'a Header>,
    pub(super) annotations: Option<&'a MessageAnnotations>,
    pub(super) properties: &'a Properties,
    pub(super) application: &'a ApplicationProperties,
}

/// Reads a message of any origin; never fails.
pub(crate) fn read(mut message: Message<Body<Value>>, context: ReadContext<'_>) -> MessageContent {
    let (body, bytes) = body::split(std::mem::replace(&mut message.body, Body::Empty));
    let properties = message.properties.get_or_insert_default();
    let application = message.application_properties.get_or_insert_default();
    let (header, annotations) = (message.header.as_ref(), message.message_annotations.as_ref());
    let broker = BrokerAnnotations::of(annotations);
    let is_data = matches!(body, Body::Empty);
    let sections = SectionRefs { header, annotations, properties, application };
    let decoded = decode(&sections, bytes, broker, context);
    let delivery_count = header.map_or(0, |h| h.delivery_count);
    let dead = context.source.is_dead_letters();
    let attempt = match dead {
        true => dead_letter_attempt(application, delivery_count),
        false => decoded.carried.attempts.saturating_add(delivery_count).saturating_add(1),
    };
    let dead_letter = dead.then(|| {
        let (reason, detail) = (property(application, REASON), property(application, DETAIL));
        dead_letter_of(&decoded.carried, reason, detail, context.source)
    });
    let time_to_live = broker.remaining_life(header, context.lock).map(|left| TimeToLive {
        until: Instant::now() + Duration::try_from(left).unwrap_or_default(),
        whole: time::Duration::milliseconds(header.and_then(|h| h.ttl).unwrap_or_default().into()),
    });
    let is_as_written = is_data && message.footer.is_none() && written_by_polybus::is_as_written(&sections, &decoded);
    let in_session = is_as_written && properties.group_id.is_some();
    let DecodedMessage { envelope, carried, malformed, body: whole_body, .. } = decoded;
    let native = (!is_as_written).then(|| {
        written_by_polybus::note_identity(properties, application, &envelope, carried.hop, broker);
        NativeMessage(Arc::new(MessageSections {
            header: message.header.take(),
            annotations: message.message_annotations.take(),
            properties: std::mem::take(properties),
            application: std::mem::take(application),
            body,
            bytes: whole_body.unwrap_or_else(|| envelope.data.clone()),
            footer: message.footer.take(),
        }))
    });
    let original = OriginalMessage {
        delivery_count,
        sequence: broker.sequence.unwrap_or(0),
        carried,
        broker,
        native,
        in_session,
        time_to_live,
        unreadable: false,
    };
    MessageContent { original, envelope, attempt, malformed, dead_letter }
}

/// Stands for a message that the client could not read at all.
pub(crate) fn unreadable(why: &str, context: ReadContext<'_>) -> MessageContent {
    let empty = Message::builder().body(Body::Empty).build();
    let content = read(empty, context);
    let original = OriginalMessage { unreadable: true, ..content.original };
    MessageContent { malformed: Some(why.into()), original, ..content }
}

fn property<'a>(application: &'a ApplicationProperties, name: &str) -> Option<Cow<'a, str>> {
    application.get(name).and_then(text)
}

fn decode(
    sections: &SectionRefs<'_>,
    body: bytes::Bytes,
    broker: BrokerAnnotations,
    context: ReadContext<'_>,
) -> DecodedMessage {
    let SectionRefs { properties, application, .. } = sections;
    let dead = context.source.is_dead_letters();
    let own = |name: &str| !(dead && matches!(name, REASON | DETAIL));
    let mut headers = Vec::with_capacity(application.len());
    let readable = application.iter().filter(|(name, _)| own(name));
    headers.extend(readable.filter_map(|(name, value)| Some((Cow::Borrowed(name.as_str()), text(value)?))));
    let long = property(application, CONTENT_TYPE);
    let id = property(application, ORIGINAL_ID).or_else(|| properties.message_id.as_ref().map(native_view::id_text));
    // A queue that is deleted and made again counts from 1 again.
    let id_is_made_up = id.is_none();
    let id = id.or_else(|| broker.sequence.map(|number| number.to_string().into()));
    let enqueued = match application.get(ORIGINAL_TIME) {
        Some(SimpleValue::Timestamp(at)) => envelope::instant(at),
        _ => broker.enqueued,
    };
    let correlation = properties.correlation_id.as_ref().map(native_view::id_text);
    cloudevents::decode(WireMessage {
        content_type: long.as_deref().or(properties.content_type.as_ref().map(Symbol::as_str)),
        headers,
        body,
        id: id.as_deref(),
        time: properties.creation_time.as_ref().and_then(envelope::instant).or(enqueued),
        address: context.address,
        correlation_id: correlation.as_deref(),
        subject: native_view::subject(properties, application),
        native: native_view::native_properties(sections.header, sections.annotations, properties, application),
        id_is_made_up,
    })
}

/// How often a dead letter was handed out from the dead letters, this time included.
fn dead_letter_attempt(application: &ApplicationProperties, delivery_count: u32) -> u32 {
    let before: Option<u32> = property(application, DELIVERIES).and_then(|n| n.parse().ok());
    // A broker may go on counting, or begin again at 0 when it dead-letters: a count below the one before has begun
    // again.
    let before = before.filter(|before| *before <= delivery_count).unwrap_or(0);
    (delivery_count - before).saturating_add(1)
}

/// How a message came to the dead letters of `source`: as polybus noted on it, completed by what the broker tells.
pub(crate) fn dead_letter_of(
    carried: &CopyState,
    reason: Option<Cow<'_, str>>,
    detail: Option<Cow<'_, str>>,
    source: &Source,
) -> Box<DeadLetter> {
    let mut dead_letter = carried.dead_letter.clone().unwrap_or_default();
    carried.tell_redriven(&mut dead_letter);
    dead_letter.reason = reason.map(|reason| portable_reason(&reason).into()).or(dead_letter.reason);
    dead_letter.detail = detail.filter(|d| !d.is_empty()).map(Into::into).or(dead_letter.detail);
    dead_letter.origin = dead_letter.origin.or_else(|| Some(source.live().to_string().into()));
    dead_letter
}

/// The broker's own reasons in the words that polybus has for them on every backend.
fn portable_reason(reason: &str) -> &str {
    match reason {
        "TTLExpiredException" => "expired",
        "MaxDeliveryCountExceeded" => "max-deliveries-exceeded",
        other => other,
    }
}
