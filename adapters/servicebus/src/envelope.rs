//! Envelopes as AMQP 1.0 messages and back: CloudEvents binary mode as the CNCF's AMQP binding says.

use std::borrow::Cow;

use fe2o3_amqp::types::{
    messaging::{
        ApplicationProperties, Batch, Body, Data, Header, Message, MessageAnnotations, MessageId, Properties,
        annotations::{Annotations, OwnedKey},
        message::__private::Serializable,
    },
    primitives::{Binary, SimpleValue, Symbol, Timestamp, Value},
};
use polybus_core::{
    Envelope, Error, Kind, Result,
    cloudevents::{self, Carried},
    names,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

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
/// What a message takes in a batch beside its own bytes.
pub(crate) const IN_BATCH: usize = 8;

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
    let data = Body::Data(Batch::new(vec![Data(Binary::from(envelope.data.to_vec()))]));
    pack(properties, application, data, envelope, carried, postage)
}

pub(crate) fn pack(
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

pub(crate) fn instant(at: &Timestamp) -> Option<OffsetDateTime> {
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
    use fe2o3_amqp::types::messaging::message::__private::Deserializable;
    use time::Duration;

    use super::*;

    pub(crate) fn read(encoded: &[u8]) -> Message<Body<Value>> {
        serde_amqp::from_slice::<Deserializable<Message<Body<Value>>>>(encoded).unwrap().0
    }

    pub(crate) fn sent(envelope: &Envelope, postage: &Postage<'_>) -> Message<Body<Value>> {
        read(&encode(envelope, &Carried::default(), postage).unwrap())
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
    fn long_keys_are_stood_for_in_sessions() {
        assert_eq!(session("k"), "k");
        assert_eq!(session(&"k".repeat(129)).len(), 64);
    }
}
