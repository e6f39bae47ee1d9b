//! Envelopes as AMQP 1.0 messages and back: CloudEvents binary mode as the CNCF's AMQP binding says.

use std::borrow::Cow;

use bytes::Bytes;
use fe2o3_amqp::types::{
    messaging::{
        ApplicationProperties, Batch, Body, Data, Header, Message, MessageAnnotations, MessageId, Properties,
        annotations::{Annotations, OwnedKey},
        message::__private::Serializable,
    },
    primitives::{Binary, SimpleValue, Symbol, Timestamp, Value},
};
use polybus_core::{
    DeadLetter, Envelope, Error, Kind, Result, Source,
    cloudevents::{self, Carried, Decoded, Wire},
    names,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{BACKEND, body, error};

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
/// What a message takes in a batch beside its own bytes.
pub(crate) const IN_BATCH: usize = 8;

/// A message as it came, kept so that copies are exact.
#[derive(Debug)]
pub(crate) struct Native {
    properties: Properties,
    application: ApplicationProperties,
    annotations: Annotations,
    /// Hand-overs before this one.
    pub(crate) delivery_count: u32,
    body: Body<Value>,
    bytes: Bytes,
}

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
}

/// The session of a key: itself, or what stands for it where it is too long.
pub(crate) fn session(key: &str) -> String {
    if key.len() <= LONGEST_ID { key.to_owned() } else { names::dedup_id("", key, 0) }
}

/// The message id that the broker sees.
pub(crate) fn message_id(envelope: &Envelope, carried: &Carried, postage: &Postage<'_>) -> String {
    if postage.deduplicated || envelope.id.len() > LONGEST_ID {
        return names::dedup_id(&envelope.source, &envelope.id, carried.hop);
    }
    (*envelope.id).into()
}

/// The encoded message of an envelope.
pub(crate) fn encode(envelope: &Envelope, carried: &Carried, postage: &Postage<'_>) -> Result<Vec<u8>> {
    let mut application = ApplicationProperties::default();
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
    let data = Body::Data(Batch::new(vec![Data(Binary::from(envelope.data.to_vec()))]));
    pack(properties, application, data, envelope, carried, postage)
}

/// The encoded copy of a message: as it came, without what the broker or an earlier copy added, and with `carried`.
pub(crate) fn copy(native: &Native, envelope: &Envelope, carried: &Carried, postage: &Postage<'_>) -> Result<Vec<u8>> {
    let mut application = ApplicationProperties::default();
    for (name, value) in native.application.iter().filter(|(name, _)| copied(name)) {
        application.insert(name.clone(), value.clone());
    }
    cloudevents::encode_carried(carried, &mut |name, value| {
        application.insert(name.to_owned(), SimpleValue::String(value.to_owned()));
    });
    let mut properties = native.properties.clone();
    properties.absolute_expiry_time = None;
    let data = match &native.body {
        Body::Empty => Body::Data(Batch::new(vec![Data(Binary::from(native.bytes.to_vec()))])),
        other => other.clone(),
    };
    pack(properties, application, data, envelope, carried, postage)
}

fn pack(
    mut properties: Properties,
    mut application: ApplicationProperties,
    body: Body<Value>,
    envelope: &Envelope,
    carried: &Carried,
    postage: &Postage<'_>,
) -> Result<Vec<u8>> {
    if postage.deduplicated || properties.message_id.is_none() {
        properties.message_id = Some(MessageId::String(message_id(envelope, carried, postage)));
    }
    if postage.ordered {
        properties.group_id = envelope.key.as_deref().map(session);
    }
    if let Some(target) = postage.target {
        application.insert(TARGET.into(), SimpleValue::String(target.into()));
    }
    let mut annotations = Annotations::new();
    if let Some(at) = postage.enqueue_at {
        annotations.insert(OwnedKey::from("x-opt-scheduled-enqueue-time"), Value::Timestamp(timestamp(at)));
    }
    let from = postage.enqueue_at.unwrap_or_else(OffsetDateTime::now_utc);
    let message = Message {
        header: Some(Header {
            durable: true,
            ttl: envelope.expires_at.and_then(|at| ttl(at, from)),
            ..Header::default()
        }),
        delivery_annotations: None,
        message_annotations: (!annotations.is_empty()).then_some(MessageAnnotations(annotations)),
        properties: Some(properties),
        application_properties: Some(application),
        body,
        footer: None,
    };
    serde_amqp::to_vec(&Serializable(&message))
        .map_err(|e| Error::new(Kind::Unexpected, format!("cannot encode the message: {e}")).backend(BACKEND))
}

/// Time to live, counted by the broker from when it enqueues the message. `None` beyond what the field holds, 49 days.
fn ttl(expires_at: OffsetDateTime, enqueued: OffsetDateTime) -> Option<u32> {
    let left = (expires_at - enqueued).whole_milliseconds().max(1);
    u32::try_from(left).ok()
}

pub(crate) fn timestamp(at: OffsetDateTime) -> Timestamp {
    let nanos = at.unix_timestamp_nanos();
    // Up, so that nothing is handed out early.
    let up = i128::from(nanos.rem_euclid(1_000_000) != 0);
    Timestamp::from_milliseconds(i64::try_from(nanos.div_euclid(1_000_000) + up).unwrap_or(i64::MAX))
}

fn instant(at: &Timestamp) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.milliseconds()) * 1_000_000).ok()
}

/// Refuses what the broker would; else tells the size on the wire.
pub(crate) fn check_size(encoded: &[u8], limit: usize) -> Result<usize> {
    let size = encoded.len() + IN_BATCH;
    if size <= limit {
        return Ok(size);
    }
    let text = format!("message of {size} bytes: at most {limit} are allowed (max_message_size in the bus URL)");
    Err(error::new(Kind::PayloadTooLarge, "publish", text).with("size", size).with("limit", limit))
}

impl Native {
    pub(crate) fn new(message: Message<Body<Value>>) -> Self {
        let (body, bytes) = body::split(message.body);
        Self {
            properties: message.properties.unwrap_or_default(),
            application: message.application_properties.unwrap_or_default(),
            annotations: message.message_annotations.map(|a| a.0).unwrap_or_default(),
            delivery_count: message.header.map_or(0, |h| h.delivery_count),
            body,
            bytes,
        }
    }

    /// Of a message that the client could not read at all.
    pub(crate) fn unreadable() -> Self {
        Self {
            properties: Properties::new(),
            application: ApplicationProperties::default(),
            annotations: Annotations::new(),
            delivery_count: 0,
            body: Body::Empty,
            bytes: Bytes::new(),
        }
    }

    fn annotation(&self, name: &str) -> Option<&Value> {
        self.annotations.iter().find_map(|(key, value)| match key {
            OwnedKey::Symbol(symbol) if symbol.as_str() == name => Some(value),
            _ => None,
        })
    }

    fn application(&self, name: &str) -> Option<Cow<'_, str>> {
        self.application.get(name).and_then(text)
    }
}

/// Reads a message of any origin; never fails.
pub(crate) fn decode(native: &Native, source: &Source) -> Decoded {
    let dead = source.is_dead_letters();
    let own = |name: &str| !(dead && matches!(name, REASON | DETAIL));
    let readable = native.application.iter().filter(|(name, _)| own(name));
    let headers: Vec<_> =
        readable.filter_map(|(name, value)| Some((Cow::Borrowed(name.as_str()), text(value)?))).collect();
    let long = native.application(CONTENT_TYPE);
    let id = match &native.properties.message_id {
        Some(MessageId::String(id)) => Some(Cow::Borrowed(id.as_str())),
        Some(MessageId::Ulong(id)) => Some(id.to_string().into()),
        Some(MessageId::Uuid(id)) => Some(uuid::Uuid::from_bytes(*id.as_inner()).to_string().into()),
        Some(MessageId::Binary(id)) => Some(id.iter().map(|b| format!("{b:02x}")).collect::<String>().into()),
        None => match native.annotation("x-opt-sequence-number") {
            Some(Value::Long(n)) => Some(n.to_string().into()),
            _ => None,
        },
    };
    let enqueued = native.annotation("x-opt-enqueued-time").and_then(|at| match at {
        Value::Timestamp(at) => instant(at),
        _ => None,
    });
    cloudevents::decode(Wire {
        content_type: long.as_deref().or(native.properties.content_type.as_ref().map(Symbol::as_str)),
        headers,
        body: native.bytes.clone(),
        id: id.as_deref(),
        time: native.properties.creation_time.as_ref().and_then(instant).or(enqueued),
        address: &source.address().to_string(),
    })
}

/// How often these dead letters were handed out, this time included.
pub(crate) fn dead_attempt(native: &Native) -> u32 {
    let before: Option<u32> = native.application(DELIVERIES).and_then(|n| n.parse().ok());
    // One that counts from the beginning again is taken at its word.
    let before = before.filter(|before| *before <= native.delivery_count).unwrap_or(0);
    (native.delivery_count - before).saturating_add(1)
}

/// How a message came to the dead letters of `source`: as polybus told, completed by what the broker tells.
pub(crate) fn death(native: &Native, told: Option<Box<DeadLetter>>, source: &Source) -> Box<DeadLetter> {
    let mut death = told.unwrap_or_default();
    let reason = native.application(REASON).map(|reason| named(&reason).into());
    death.reason = reason.or(death.reason);
    death.detail = native.application(DETAIL).filter(|d| !d.is_empty()).map(Into::into).or(death.detail);
    death.origin = death.origin.or_else(|| Some(source.live().to_string().into()));
    death
}

/// The broker's own words for what polybus has words for.
pub(crate) fn named(reason: &str) -> &str {
    match reason {
        "TTLExpiredException" => "expired",
        "MaxDeliveryCountExceeded" => "max-deliveries-exceeded",
        other => other,
    }
}

/// Whether a copy keeps this application property.
pub(crate) fn copied(name: &str) -> bool {
    !cloudevents::is_carried(name) && !matches!(name, TARGET | REASON | DETAIL)
}

/// A property's value as text; `None` for bytes that are no text, and for nothing.
fn text(value: &SimpleValue) -> Option<Cow<'_, str>> {
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
mod tests {
    #![allow(clippy::unwrap_used)]
    use fe2o3_amqp::types::messaging::message::__private::Deserializable;
    use time::Duration;

    use super::*;

    fn read(encoded: &[u8]) -> Message<Body<Value>> {
        serde_amqp::from_slice::<Deserializable<Message<Body<Value>>>>(encoded).unwrap().0
    }

    fn sent(envelope: &Envelope, postage: &Postage<'_>) -> Message<Body<Value>> {
        read(&encode(envelope, &Carried::default(), postage).unwrap())
    }

    fn full() -> Envelope {
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
    fn a_round_trip_is_exact() {
        for envelope in [
            full(),
            Envelope::new("a", "").source("s"),
            full().id("x".repeat(3000)).content_type("text/plain; x=ü").correlation_id("y".repeat(500)),
            full().edit(|p| p.content_type = None),
            full().content_type("application/cloudevents+json"),
        ] {
            let decoded = decode(&Native::new(sent(&envelope, &Postage::default())), &Source::queue("q"));
            assert_eq!((decoded.malformed, decoded.envelope), (None, envelope));
        }
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
            .map(|hop| p_id(&read(&encode(&full(), &Carried::new(hop, 0), &postage).unwrap()).properties.unwrap()))
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
    fn copies_lose_what_earlier_copies_and_the_broker_added() {
        let mut message = sent(&full(), &Postage { target: Some("other"), ..Postage::default() });
        let a = message.application_properties.as_mut().unwrap();
        for (name, value) in [(REASON, "r"), (DETAIL, "d"), ("polybus-attempts", "4"), ("polybus-dead-time", "x")] {
            a.insert(name.into(), SimpleValue::String(value.into()));
        }
        let native = Native::new(message);
        let envelope = decode(&native, &Source::queue("q").dead_letters()).envelope;
        assert_eq!(envelope, full().id(&*envelope.id));
        let copied = copy(&native, &envelope, &Carried::new(2, 3), &Postage::default()).unwrap();
        let again = read(&copied);
        let a = again.application_properties.as_ref().unwrap();
        assert!([REASON, DETAIL, TARGET, "polybus-dead-time"].iter().all(|name| a.get(*name).is_none()), "{a:?}");
        let decoded = decode(&Native::new(again), &Source::queue("q"));
        assert_eq!((decoded.carried, decoded.envelope), (Carried::new(2, 3), envelope));
    }

    #[test]
    fn the_brokers_words_for_dead_letters_become_ours() {
        let mut message = sent(&full(), &Postage::default());
        let a = message.application_properties.as_mut().unwrap();
        a.insert(REASON.into(), SimpleValue::String("TTLExpiredException".into()));
        let dead = Source::queue("q").dead_letters();
        let death = death(&Native::new(message), None, &dead);
        assert_eq!((death.reason.as_deref(), death.origin.as_deref()), (Some("expired"), Some("queue:q")));
        assert_eq!((death.detail, death.time), (None, None));
    }

    #[test]
    fn foreign_messages_and_their_odd_values_are_tolerated() {
        let mut application = ApplicationProperties::default();
        application.insert("n".into(), SimpleValue::Int(7));
        application.insert("none".into(), SimpleValue::Null);
        application.insert("raw".into(), SimpleValue::Binary(Binary::from(vec![0xff])));
        let message = Message {
            header: None,
            delivery_annotations: None,
            message_annotations: None,
            properties: None,
            application_properties: Some(application),
            body: Body::Value(fe2o3_amqp::types::messaging::AmqpValue(Value::String("hello".into()))),
            footer: None,
        };
        let native = Native::new(message);
        let decoded = decode(&native, &Source::subscription("t", "s"));
        let e = &decoded.envelope;
        assert_eq!((&*e.event_type, &*e.source, &e.data[..]), (polybus_core::FOREIGN, "topic:t", &b"hello"[..]));
        assert_eq!(e.headers.iter().collect::<Vec<_>>(), [("n", "7")]);
        let copied = read(&copy(&native, e, &Carried::new(1, 1), &Postage::default()).unwrap());
        assert!(matches!(copied.body, Body::Value(_)));
    }

    #[test]
    fn long_keys_are_stood_for_in_sessions() {
        assert_eq!(session("k"), "k");
        assert_eq!(session(&"k".repeat(129)).len(), 64);
    }
}
