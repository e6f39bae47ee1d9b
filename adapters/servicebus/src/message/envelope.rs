//! Envelopes as AMQP 1.0 messages and back: CloudEvents binary mode as the CNCF's AMQP binding says.

use std::borrow::Cow;

use fe2o3_amqp::types::{
    messaging::{
        ApplicationProperties, Batch, Body, Data, Footer, Header, Message, MessageAnnotations, MessageId, Priority,
        Properties,
        annotations::{Annotations, OwnedKey},
        message::__private::{Deserializable, Serializable},
    },
    primitives::{Binary, SimpleValue, Symbol, Timestamp, Value},
};
use polybus_core::{
    Envelope, Error, ErrorKind, Result,
    driver::kit::names,
    message::cloudevents::{self, CopyState},
};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{BACKEND, error};

/// The one subscription that a copy on a topic is meant for. Every rule that polybus makes reads it.
pub(crate) const TARGET: &str = "polybus-target";
/// A content type that the native property, which is ASCII, cannot hold.
pub(crate) const CONTENT_TYPE: &str = "polybus-content-type";
/// On dead letters: the broker's count of deliveries when it was given up, which goes on there.
pub(crate) const DELIVERIES: &str = "polybus-dead-deliveries";
/// What the broker adds when a message is dead-lettered.
pub(crate) const REASON: &str = "DeadLetterReason";
pub(crate) const DETAIL: &str = "DeadLetterErrorDescription";
/// The longest message id and session id: <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
pub(crate) const LONGEST_ID: usize = 128;
/// Room for the properties that most messages have.
const USUAL: usize = 12;
/// On copies: the message id that the original came with, since a copy must have one of its own.
pub(crate) const ORIGINAL_ID: &str = "polybus-message-id";
/// On copies of foreign messages: when the original was enqueued, where nothing else says its time.
pub(crate) const ORIGINAL_TIME: &str = "polybus-enqueued-time";
/// Most bytes of several messages in one transfer, also where a single one may be larger.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
pub(crate) const LARGEST_BATCH: usize = 1 << 20;
/// What a message takes in a batch beside its own bytes.
pub(crate) const IN_BATCH: usize = 8;
/// What a copy of a message has more than the message: id, counters, the mark of a redrive, the subscription it is meant for, when it
/// is due, and the request that schedules it.
const COPIES_ADD: usize = 1024;

/// What belongs to one way of sending a message and not to the message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Postage<'a> {
    /// Sessions keep the order of ordered addresses.
    pub(crate) ordered: bool,
    /// The broker drops what has the id of an earlier message.
    pub(crate) deduplicated: bool,
    /// Not handed out before.
    pub(crate) enqueue_at: Option<OffsetDateTime>,
    /// On a topic: for this subscription alone.
    pub(crate) target: Option<&'a str>,
    /// Of a copy.
    pub(crate) copy: Option<CopyOf<'a>>,
}

/// What a copy has of its original beside the envelope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyOf<'a> {
    /// The copy's own message id: see [`copy_id`].
    pub(crate) id: &'a str,
    /// The session of the original, for an envelope that names none.
    pub(crate) session: Option<&'a str>,
    /// How long the original has left to live by its sender's word, where the envelope says nothing.
    pub(crate) left: Option<Duration>,
    /// It was given up before, so that a time which has run out meanwhile is no reason to lose it now.
    pub(crate) redrive: bool,
}

/// The message id of a copy. It names the place of the original and this hand-over of it, never the id that the producer gave: where the
/// broker deduplicates, whether or not anybody told this side, a copy under the original's id would be accepted and dropped, and so would one of a second
/// message of that id. It is the same for each try to make this copy.
pub(crate) fn copy_id(path: &str, sequence: &str, delivery: &str, hop: u32) -> String {
    names::dedup_id(path, &format!("{sequence} {delivery}"), hop)
}

/// The session of a key: itself, or what stands for it where it is too long.
pub(crate) fn session(key: &str) -> String {
    if key.len() <= LONGEST_ID { key.to_owned() } else { names::dedup_id("", key, 0) }
}

/// The message id that the broker sees.
pub(crate) fn message_id(envelope: &Envelope, carried: &CopyState, postage: &Postage<'_>) -> String {
    if postage.deduplicated || envelope.id.len() > LONGEST_ID {
        return names::dedup_id(&envelope.source, &envelope.id, carried.hop);
    }
    (*envelope.id).into()
}

/// The encoded message of an envelope.
pub(crate) fn encode(envelope: &Envelope, carried: &CopyState, postage: &Postage<'_>) -> Result<Vec<u8>> {
    let mut application = ApplicationProperties::default();
    application.0.as_inner_mut().reserve(USUAL);
    // Readers over HTTP get application properties as headers.
    cloudevents::encode_binary_for_http(envelope, carried, &mut |name, value| {
        application.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
    });
    let mut properties = Properties::new();
    if let Some(content_type) = &envelope.content_type {
        if content_type.is_ascii() {
            properties.content_type = Some(Symbol::from(&**content_type));
        } else {
            application.insert(CONTENT_TYPE.into(), SimpleValue::String((**content_type).into()));
        }
    }
    // For other tools; the attributes themselves are application properties.
    properties.subject = Some((*envelope.event_type).into());
    let correlation = envelope.correlation_id.as_deref().filter(|id| id.len() <= LONGEST_ID);
    properties.correlation_id = correlation.map(|id| MessageId::String(id.to_owned()));
    properties.creation_time = envelope.time.map(timestamp);
    let body = Body::Data(Batch::new(vec![Data(Binary::from(envelope.data.to_vec()))]));
    pack(properties, application, Rest::body(body), envelope, carried, postage)
}

/// Puts the sections together. `rest` has those that polybus writes nothing of its own into, and the annotations of an original.
pub(crate) fn pack(
    mut properties: Properties,
    mut application: ApplicationProperties,
    rest: Rest,
    envelope: &Envelope,
    carried: &CopyState,
    postage: &Postage<'_>,
) -> Result<Vec<u8>> {
    if let Some(copy) = &postage.copy {
        properties.message_id = Some(MessageId::String(copy.id.into()));
    } else if postage.deduplicated || properties.message_id.is_none() {
        properties.message_id = Some(MessageId::String(message_id(envelope, carried, postage)));
    }
    if properties.group_id.is_none() {
        let own = envelope.key.as_deref().filter(|_| postage.ordered).map(session);
        properties.group_id = own.or_else(|| postage.copy?.session.map(Into::into));
    }
    if let Some(target) = postage.target {
        application.insert(TARGET.into(), SimpleValue::String(target.into()));
    }
    let Rest { priority, annotations, body, footer } = rest;
    let mut annotations = annotations.unwrap_or_default();
    if let Some(at) = postage.enqueue_at {
        annotations.insert(OwnedKey::from("x-opt-scheduled-enqueue-time"), Value::Timestamp(timestamp(at)));
    }
    let message = Message {
        header: Some(Header {
            durable: true,
            priority,
            ttl: lifetime(envelope, postage).and_then(ttl),
            ..Header::default()
        }),
        delivery_annotations: None,
        message_annotations: (!annotations.is_empty()).then_some(MessageAnnotations(annotations)),
        properties: Some(properties),
        application_properties: Some(application),
        body,
        footer,
    };
    serde_amqp::to_vec(&Serializable(&message))
        .map_err(|e| Error::new(ErrorKind::Unexpected, format!("cannot encode the message: {e}")).with_backend(BACKEND))
}

/// An encoded message taken apart again, to be sent alone.
pub(crate) fn decode(encoded: &[u8]) -> Result<Message<Body<Value>>> {
    let decoded = serde_amqp::from_slice::<Deserializable<Message<Body<Value>>>>(encoded);
    decoded.map(|decoded| decoded.0).map_err(|e| {
        Error::new(ErrorKind::Unexpected, format!("cannot take the message apart that was encoded: {e}"))
            .with_backend(BACKEND)
    })
}

/// The sections beside properties and application properties.
pub(crate) struct Rest {
    pub(crate) priority: Priority,
    pub(crate) annotations: Option<Annotations>,
    pub(crate) body: Body<Value>,
    pub(crate) footer: Option<Footer>,
}

impl Rest {
    /// As polybus writes it.
    fn body(body: Body<Value>) -> Self {
        Self { priority: Priority::default(), annotations: None, body, footer: None }
    }
}

/// How long a message may live, counted by the broker from when it enqueues it: at least a millisecond. `None` for ever.
pub(crate) fn lifetime(envelope: &Envelope, postage: &Postage<'_>) -> Option<Duration> {
    let now = OffsetDateTime::now_utc();
    let waits = postage.enqueue_at.map_or(Duration::ZERO, |at| at - now);
    let left = match (envelope.expires_at, postage.copy) {
        (Some(at), _) => at - now,
        (None, Some(copy)) => copy.left?,
        (None, None) => return None,
    };
    // Core is the one to say that it has run out, and where it goes then.
    if postage.copy.is_some_and(|copy| copy.redrive) && left <= waits {
        return None;
    }
    Some((left - waits).max(Duration::MILLISECOND))
}

/// `None` beyond what the field holds, 49 days.
fn ttl(left: Duration) -> Option<u32> {
    u32::try_from(left.whole_milliseconds()).ok()
}

pub(crate) fn timestamp(at: OffsetDateTime) -> Timestamp {
    let nanos = at.unix_timestamp_nanos();
    // Up, so that nothing is handed out early.
    let up = i128::from(nanos.rem_euclid(1_000_000) != 0);
    Timestamp::from_milliseconds(i64::try_from(nanos.div_euclid(1_000_000) + up).unwrap_or(i64::MAX))
}

pub(crate) fn instant(at: &Timestamp) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.milliseconds()) * 1_000_000).ok()
}

/// The room that is left free in a message so that a copy of it fits where it did.
pub(crate) fn reserve(limit: usize) -> usize {
    COPIES_ADD.min(limit / 16)
}

/// Refuses what the broker would, of this message or of a copy of it; else tells the size on the wire.
pub(crate) fn check_size(encoded: &[u8], limit: usize) -> Result<usize> {
    let own = encoded.len() + IN_BATCH;
    let size = own + reserve(limit);
    if size <= limit {
        return Ok(own);
    }
    let text = format!(
        "message of {size} bytes, {} of them kept free for what a retry adds: at most {limit} are allowed (max_message_size in the bus URL)",
        reserve(limit)
    );
    Err(error::new(ErrorKind::PayloadTooLarge, "publish", text).with_context("size", size).with_context("limit", limit))
}

/// The broker's own words for what polybus has words for.
pub(crate) fn named(reason: &str) -> &str {
    match reason {
        "TTLExpiredException" => "expired",
        "MaxDeliveryCountExceeded" => "max-deliveries-exceeded",
        other => other,
    }
}

/// A property's value as text; `None` for bytes that are no text, and for nothing.
pub(crate) fn text(value: &SimpleValue) -> Option<Cow<'_, str>> {
    Some(match value {
        SimpleValue::String(s) => Cow::Borrowed(s.as_str()),
        SimpleValue::Symbol(s) => Cow::Borrowed(s.as_str()),
        SimpleValue::Bool(v) => v.to_string().into(),
        SimpleValue::Ubyte(v) => v.to_string().into(),
        SimpleValue::Ushort(v) => v.to_string().into(),
        SimpleValue::Uint(v) => v.to_string().into(),
        SimpleValue::Ulong(v) => v.to_string().into(),
        SimpleValue::Byte(v) => v.to_string().into(),
        SimpleValue::Short(v) => v.to_string().into(),
        SimpleValue::Int(v) => v.to_string().into(),
        SimpleValue::Long(v) => v.to_string().into(),
        SimpleValue::Float(v) => v.to_string().into(),
        SimpleValue::Double(v) => v.to_string().into(),
        SimpleValue::Char(v) => v.to_string().into(),
        SimpleValue::Timestamp(at) => instant(at)?.format(&Rfc3339).ok()?.into(),
        SimpleValue::Uuid(id) => uuid::Uuid::from_bytes(*id.as_inner()).to_string().into(),
        SimpleValue::Binary(bytes) => Cow::Borrowed(std::str::from_utf8(bytes).ok()?),
        _ => return None,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    pub(crate) fn read(encoded: &[u8]) -> Message<Body<Value>> {
        serde_amqp::from_slice::<Deserializable<Message<Body<Value>>>>(encoded).unwrap().0
    }

    pub(crate) fn sent(envelope: &Envelope, postage: &Postage<'_>) -> Message<Body<Value>> {
        read(&encode(envelope, &CopyState::default(), postage).unwrap())
    }

    pub(crate) fn full() -> Envelope {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        Envelope::new("order.placed", &b"\0\xff{}"[..])
            .source("/shop")
            .time(now)
            .subject("s")
            .schema_version(3)
            .correlation_id("c")
            .causation_id("d")
            .key("k")
            .sequence(7)
            .header("zeta", "ü")
            .header("Alpha", "")
    }

    #[test]
    fn native_fields_are_set_for_other_tools() {
        let postage = Postage { ordered: true, ..Postage::default() };
        let message = sent(&full(), &postage);
        let p = message.properties.unwrap();
        assert_eq!(p.message_id, Some(MessageId::String(full().id(&*p_id(&p)).id.to_string())));
        assert_eq!((p.subject.as_deref(), p.group_id.as_deref()), (Some("order.placed"), Some("k")));
        assert_eq!(p.content_type, Some(Symbol::from("application/json")));
        let a = message.application_properties.unwrap();
        assert_eq!(a.get("cloudEvents_type"), Some(&SimpleValue::String("order.placed".into())));
        assert!(message.header.unwrap().durable);
    }

    fn p_id(p: &Properties) -> String {
        match &p.message_id {
            Some(MessageId::String(id)) => id.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn where_the_broker_deduplicates_each_hop_has_an_id_of_its_own() {
        let postage = Postage { deduplicated: true, ..Postage::default() };
        let ids: Vec<String> = [0, 1]
            .map(|hop| p_id(&read(&encode(&full(), &CopyState::new(hop, 0), &postage).unwrap()).properties.unwrap()))
            .into();
        assert!(ids[0] != ids[1] && ids.iter().all(|id| id.len() == 64), "{ids:?}");
        let e = full().id("same");
        let again: Vec<String> = (0..2).map(|_| p_id(&sent(&e, &postage).properties.unwrap())).collect();
        assert_eq!(again[0], again[1]);
    }

    #[test]
    fn time_to_live_is_counted_from_when_the_broker_enqueues() {
        let now = OffsetDateTime::now_utc();
        let e = full().expires_at(now + Duration::seconds(100));
        let at = |enqueue_at| sent(&e, &Postage { enqueue_at, ..Postage::default() }).header.unwrap().ttl.unwrap();
        assert!((99_000..=100_000).contains(&at(None)));
        assert_eq!(at(Some(now + Duration::seconds(60))), 40_000);
        assert_eq!(at(Some(now + Duration::seconds(200))), 1);
        let far = full().expires_at(now + Duration::days(100));
        assert_eq!(sent(&far, &Postage::default()).header.unwrap().ttl, None);
    }

    #[test]
    fn long_keys_are_stood_for_in_sessions() {
        assert_eq!(session("k"), "k");
        assert_eq!(session(&"k".repeat(129)).len(), 64);
    }
}
