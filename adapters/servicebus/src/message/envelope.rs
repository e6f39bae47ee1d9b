//! Envelopes as AMQP 1.0 messages: CloudEvents in binary mode, as the CNCF's AMQP binding says.

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

/// On copies to a topic: the one subscription that the copy is for. Every rule that polybus makes reads it.
pub(crate) const TARGET: &str = "polybus-target";
/// The content type, where it is not ASCII as the native property must be.
pub(crate) const CONTENT_TYPE: &str = "polybus-content-type";
/// On dead letters: the broker's count of deliveries when the message was dead-lettered. The broker counts on from
/// there.
pub(crate) const DELIVERIES: &str = "polybus-dead-deliveries";
/// What the broker adds to a message that is dead-lettered.
pub(crate) const REASON: &str = "DeadLetterReason";
pub(crate) const DETAIL: &str = "DeadLetterErrorDescription";
/// The longest message id and session id, in characters:
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
pub(crate) const MAX_ID_LENGTH: usize = 128;
/// How many application properties most messages have.
const USUAL_PROPERTIES: usize = 12;
/// On copies: the message id of the original, since a copy has an id of its own.
pub(crate) const ORIGINAL_ID: &str = "polybus-message-id";
/// On copies of foreign messages: when the original was enqueued, if nothing else tells its time.
pub(crate) const ORIGINAL_TIME: &str = "polybus-enqueued-time";
/// The most bytes of several messages in one transfer, though a single message may be larger.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
pub(crate) const MAX_BATCH_BYTES: usize = 1 << 20;
/// In bytes: what a message takes in a batch beside its own bytes.
pub(crate) const BATCH_OVERHEAD: usize = 8;
/// In bytes: what a copy has more than its original. That is its id, counters, the mark of a redrive, the subscription
/// that it is for, when it is due, and the request that schedules it.
const COPY_OVERHEAD: usize = 1024;

/// How a message is sent, as opposed to what it says.
#[derive(Clone, Debug, Default)]
pub(crate) struct SendOptions<'a> {
    /// Whether the address is ordered: then the key is the session.
    pub(crate) ordered: bool,
    /// Whether the broker detects duplicates by their message ids.
    pub(crate) deduplicated: bool,
    /// The broker hands it out from then on.
    pub(crate) enqueue_at: Option<OffsetDateTime>,
    /// On a topic: the one subscription that it is for.
    pub(crate) target: Option<&'a str>,
    /// For a copy: what it has of its original.
    pub(crate) copy: Option<CopyFields<'a>>,
}

/// What a copy has of its original beside the envelope.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyFields<'a> {
    /// The copy's own message id: see [`copy_id`].
    pub(crate) id: &'a str,
    /// The session of the original, used if the envelope gives none.
    pub(crate) session: Option<&'a str>,
    /// How long the original has left to live by its sender's word, used if the envelope says nothing.
    pub(crate) left: Option<Duration>,
    /// Whether it comes from the dead letters: a time to live that has ended there is no reason to lose the message
    /// now.
    pub(crate) redrive: bool,
}

/// The message id of a copy: made from the place of the original and this hand-over of it, never from the id that the
/// producer gave. A broker that detects duplicates, whether or not this side knows that it does, would accept and drop
/// a copy under the original's id, and also one of a second message with that id. Each try to make the same copy gives
/// the same id.
pub(crate) fn copy_id(path: &str, sequence: &str, delivery: &str, hop: u32) -> String {
    names::dedup_id(path, &format!("{sequence} {delivery}"), hop)
}

/// The session of a key: the key itself, or a hash of one that is too long.
pub(crate) fn session(key: &str) -> String {
    if key.len() <= MAX_ID_LENGTH { key.to_owned() } else { names::dedup_id("", key, 0) }
}

/// The session of a message that goes in another's place. An ordered entity finds it by its own key. So does one whose
/// original was in the session of its key, though this side does not know the entity as ordered. A session that another
/// program chose, and that no key tells, stays.
pub(crate) fn replacement_session(
    replacement: &Envelope,
    original: &Envelope,
    original_session: Option<&str>,
    ordered: bool,
) -> Option<String> {
    let of_key = |envelope: &Envelope| envelope.key.as_deref().map(session);
    let by_key = ordered || original_session.is_some() && original_session == of_key(original).as_deref();
    of_key(replacement).filter(|_| by_key).or_else(|| original_session.map(Into::into))
}

/// The message id of an envelope. Where the broker detects duplicates it is a hash of source and id, since two sources
/// may use the same id.
pub(crate) fn message_id(envelope: &Envelope, carried: &CopyState, options: &SendOptions<'_>) -> String {
    if options.deduplicated || envelope.id.len() > MAX_ID_LENGTH {
        return names::dedup_id(&envelope.source, &envelope.id, carried.hop);
    }
    (*envelope.id).into()
}

/// The native correlation id: that of the conversation, or for a request its own id, which other programs send back.
pub(crate) fn native_correlation(envelope: &Envelope) -> Option<&str> {
    let own = envelope.native_reply().map(|(_, id)| id);
    own.or(envelope.correlation_id.as_deref()).filter(|id| id.len() <= MAX_ID_LENGTH)
}

/// The native `ReplyTo` of a request.
pub(crate) fn native_reply_queue(envelope: &Envelope) -> Option<&str> {
    envelope.native_reply().map(|(queue, _)| queue)
}

/// Encodes an envelope.
pub(crate) fn encode(envelope: &Envelope, carried: &CopyState, options: &SendOptions<'_>) -> Result<Vec<u8>> {
    let mut application = ApplicationProperties::default();
    application.0.as_inner_mut().reserve(USUAL_PROPERTIES);
    // Consumers over HTTP get application properties as headers, so the names must be safe for HTTP.
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
    // Native fields are for other tools. polybus reads the application properties.
    properties.subject = Some((*envelope.event_type).into());
    properties.correlation_id = native_correlation(envelope).map(|id| MessageId::String(id.to_owned()));
    properties.reply_to = native_reply_queue(envelope).map(Into::into);
    properties.creation_time = envelope.time.map(timestamp);
    let body = Body::Data(Batch::new(vec![Data(Binary::from(envelope.data.to_vec()))]));
    encode_sections(properties, application, OtherSections::body(body), envelope, carried, options)
}

/// Encodes a message from its sections. `others` are those that polybus writes nothing of its own into, and the
/// annotations of an original.
pub(crate) fn encode_sections(
    mut properties: Properties,
    mut application: ApplicationProperties,
    others: OtherSections,
    envelope: &Envelope,
    carried: &CopyState,
    options: &SendOptions<'_>,
) -> Result<Vec<u8>> {
    if let Some(copy) = &options.copy {
        properties.message_id = Some(MessageId::String(copy.id.into()));
    } else if options.deduplicated || properties.message_id.is_none() {
        properties.message_id = Some(MessageId::String(message_id(envelope, carried, options)));
    }
    if properties.group_id.is_none() {
        let own = envelope.key.as_deref().filter(|_| options.ordered).map(session);
        properties.group_id = own.or_else(|| options.copy?.session.map(Into::into));
    }
    if let Some(target) = options.target {
        application.insert(TARGET.into(), SimpleValue::String(target.into()));
    }
    let OtherSections { priority, annotations, body, footer } = others;
    let mut annotations = annotations.unwrap_or_default();
    if let Some(at) = options.enqueue_at {
        annotations.insert(OwnedKey::from("x-opt-scheduled-enqueue-time"), Value::Timestamp(timestamp(at)));
    }
    let message = Message {
        header: Some(Header {
            durable: true,
            priority,
            ttl: lifetime(envelope, options).and_then(ttl),
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

/// Decodes a message that was encoded here, to send it alone.
pub(crate) fn decode(encoded: &[u8]) -> Result<Message<Body<Value>>> {
    let decoded = serde_amqp::from_slice::<Deserializable<Message<Body<Value>>>>(encoded);
    decoded.map(|decoded| decoded.0).map_err(|e| {
        Error::new(ErrorKind::Unexpected, format!("cannot take the message apart that was encoded: {e}"))
            .with_backend(BACKEND)
    })
}

/// The sections other than properties and application properties.
pub(crate) struct OtherSections {
    pub(crate) priority: Priority,
    pub(crate) annotations: Option<Annotations>,
    pub(crate) body: Body<Value>,
    pub(crate) footer: Option<Footer>,
}

impl OtherSections {
    /// As polybus writes them, with this body.
    fn body(body: Body<Value>) -> Self {
        Self { priority: Priority::default(), annotations: None, body, footer: None }
    }
}

/// How long a message may live, counted by the broker from when it enqueues it: at least a millisecond. `None` for
/// ever.
pub(crate) fn lifetime(envelope: &Envelope, options: &SendOptions<'_>) -> Option<Duration> {
    let now = OffsetDateTime::now_utc();
    let waits = options.enqueue_at.map_or(Duration::ZERO, |at| at - now);
    let left = match (envelope.expires_at, options.copy) {
        (Some(at), _) => at - now,
        (None, Some(copy)) => copy.left?,
        (None, None) => return None,
    };
    // An expired message that is redriven must reach core, which tells that it has expired and moves it where such
    // messages go.
    if options.copy.is_some_and(|copy| copy.redrive) && left <= waits {
        return None;
    }
    Some((left - waits).max(Duration::MILLISECOND))
}

/// In milliseconds. `None` beyond what the field holds, 49 days: the message then never expires at the broker.
fn ttl(left: Duration) -> Option<u32> {
    u32::try_from(left.whole_milliseconds()).ok()
}

pub(crate) fn timestamp(at: OffsetDateTime) -> Timestamp {
    let nanos = at.unix_timestamp_nanos();
    // Rounded up, so that nothing is handed out early.
    let up = i128::from(nanos.rem_euclid(1_000_000) != 0);
    Timestamp::from_milliseconds(i64::try_from(nanos.div_euclid(1_000_000) + up).unwrap_or(i64::MAX))
}

pub(crate) fn instant(at: &Timestamp) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(at.milliseconds()) * 1_000_000).ok()
}

/// The bytes that a message leaves free, so that a copy of it fits as well.
pub(crate) fn copy_reserve(limit: usize) -> usize {
    COPY_OVERHEAD.min(limit / 16)
}

/// The limit for a copy of a message of so many bytes: the configured one, or none where the message itself is larger.
/// The broker holds such a message, so it allows more than was configured, and it alone knows whether a copy fits.
pub(crate) fn copy_limit(configured: usize, original: usize) -> usize {
    if original <= configured { configured } else { usize::MAX }
}

/// The error of a message in another's place that is larger than is allowed.
pub(crate) fn replacement_too_large(size: usize, limit: usize) -> Error {
    let text = format!("message of {size} bytes: at most {limit} are allowed (max_message_size in the bus URL)");
    error::new(ErrorKind::PayloadTooLarge, "settle", text).with_context("size", size).with_context("limit", limit)
}

/// Refuses a message that the broker would refuse, or of which it would refuse a copy. Returns the size on the wire.
pub(crate) fn check_size(encoded: &[u8], limit: usize) -> Result<usize> {
    let own = encoded.len() + BATCH_OVERHEAD;
    let size = own + copy_reserve(limit);
    if size <= limit {
        return Ok(own);
    }
    let text = format!(
        "message of {size} bytes, {} of them kept free for what a retry adds: at most {limit} are allowed (max_message_size in the bus URL)",
        copy_reserve(limit)
    );
    Err(error::new(ErrorKind::PayloadTooLarge, "publish", text).with_context("size", size).with_context("limit", limit))
}

/// The value of a property as text. `None` for null, for bytes that are no text, and for types that have no form as
/// text.
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

    pub(crate) fn sent(envelope: &Envelope, options: &SendOptions<'_>) -> Message<Body<Value>> {
        read(&encode(envelope, &CopyState::default(), options).unwrap())
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
        let options = SendOptions { ordered: true, ..SendOptions::default() };
        let message = sent(&full(), &options);
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
        let options = SendOptions { deduplicated: true, ..SendOptions::default() };
        let ids: Vec<String> = [0, 1]
            .map(|hop| p_id(&read(&encode(&full(), &CopyState::new(hop, 0), &options).unwrap()).properties.unwrap()))
            .into();
        assert!(ids[0] != ids[1] && ids.iter().all(|id| id.len() == 64), "{ids:?}");
        let e = full().id("same");
        let again: Vec<String> = (0..2).map(|_| p_id(&sent(&e, &options).properties.unwrap())).collect();
        assert_eq!(again[0], again[1]);
    }

    #[test]
    fn time_to_live_is_counted_from_when_the_broker_enqueues() {
        let now = OffsetDateTime::now_utc();
        let e = full().expires_at(now + Duration::seconds(100));
        let at =
            |enqueue_at| sent(&e, &SendOptions { enqueue_at, ..SendOptions::default() }).header.unwrap().ttl.unwrap();
        assert!((99_000..=100_000).contains(&at(None)));
        assert_eq!(at(Some(now + Duration::seconds(60))), 40_000);
        assert_eq!(at(Some(now + Duration::seconds(200))), 1);
        let far = full().expires_at(now + Duration::days(100));
        assert_eq!(sent(&far, &SendOptions::default()).header.unwrap().ttl, None);
    }

    #[test]
    fn a_message_in_anothers_place_goes_by_its_own_key() {
        let (old, new) = (Envelope::new("a", "").key("old"), Envelope::new("a", "").key("new"));
        let keyless = Envelope::new("a", "");
        for (replacement, original, session, ordered, wanted) in [
            (&new, &old, Some("old"), true, Some("new")),
            (&new, &keyless, Some("theirs"), true, Some("new")),
            (&new, &old, Some("old"), false, Some("new")),
            (&new, &old, Some("theirs"), false, Some("theirs")),
            (&keyless, &old, Some("old"), true, Some("old")),
            (&new, &keyless, None, false, None),
        ] {
            let found = replacement_session(replacement, original, session, ordered);
            assert_eq!(found.as_deref(), wanted, "{session:?}, ordered: {ordered}");
        }
    }

    #[test]
    fn a_copy_may_be_larger_than_configured_where_the_message_itself_is() {
        assert_eq!([copy_limit(100, 99), copy_limit(100, 100), copy_limit(100, 101)], [100, 100, usize::MAX]);
    }

    #[test]
    fn long_keys_are_stood_for_in_sessions() {
        assert_eq!(session("k"), "k");
        assert_eq!(session(&"k".repeat(129)).len(), 64);
    }
}
