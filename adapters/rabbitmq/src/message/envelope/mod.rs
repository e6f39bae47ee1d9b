//! Envelopes as AMQP 0-9-1 properties and headers, and back.
//!
//! Attributes are headers and the body is untouched, which is the binary mode of CloudEvents. Some attributes are
//! written as AMQP properties as well, for other tools. [`decode`] reads messages of any program. [`copy_of`] makes
//! the copies for retries, dead letters and redrives.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use polybus_core::{
    Envelope, Error, ErrorKind, Result, Source,
    driver::DeadLetter,
    message::cloudevents::{self, CopyState, DecodedMessage, WireMessage, WireNames},
};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{BACKEND, error};

mod native_properties;

/// The header with the sequence number of a mandatory message on its channel. It identifies a returned message.
pub(crate) const SEQUENCE: &str = "polybus-seq";
/// The header with the slot, one of 64, into which an ordered message's key falls.
pub(crate) const SLOT: &str = "polybus-slot";
/// The header with a content type that is too long for the native property, which takes 255 bytes.
const CONTENT_TYPE: &str = "polybus-content-type";
/// The names of the AMQP binding. `CC` and `BCC` are reserved, since in them a publisher tells the broker further
/// routing keys: <https://www.rabbitmq.com/docs/sender-selected>.
pub(crate) const AMQP_NAMES: WireNames = WireNames { reserved: &["CC", "BCC"], ..WireNames::AMQP };
/// The same with the prefix `ce-`.
pub(crate) const CE_NAMES: WireNames = WireNames { reserved: &["CC", "BCC"], ..WireNames::CE };
/// The header with the end of a message that had a native `expiration`, in milliseconds since 1970.
///
/// Copies carry it, since a delay queue would apply a native `expiration` in place of its own delay and then remove it.
const EXPIRES: &str = "polybus-expires";
/// The header with what the native `expiration` said, beside [`EXPIRES`].
const EXPIRATION: &str = "polybus-expiration";
/// The header with the original routing key of a foreign message, since a copy is routed by its queue's name.
const ROUTING_KEY: &str = "polybus-routing-key";

/// A message as it came from the broker, kept so that copies are exact.
#[derive(Debug)]
pub(crate) struct AmqpMessage {
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    /// Empty for the default exchange. Then the routing key is the name of a queue.
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    /// When it arrived, by this machine's clock.
    pub(crate) arrived: OffsetDateTime,
}

impl AmqpMessage {
    /// The limit for a message in this one's place: the configured one, or none where this message itself is larger.
    /// The broker holds such a message, so it allows more than was configured.
    pub(crate) fn replacement_limit(&self, configured: usize) -> usize {
        let headers = self.properties.headers().clone().unwrap_or_default();
        let own = ContentHeader::new(self.properties.clone(), headers);
        match own.check_sizes(self.body.len(), configured, usize::MAX) {
            Ok(_) => configured,
            Err(_) => usize::MAX,
        }
    }
}

/// The properties of a message to publish. The headers are kept apart, so that adding one copies nothing.
#[derive(Clone, Debug)]
pub(crate) struct ContentHeader {
    properties: BasicProperties,
    headers: FieldTable,
}

impl ContentHeader {
    pub(crate) fn new(properties: BasicProperties, headers: FieldTable) -> Self {
        Self { properties, headers }
    }

    /// Adds headers. They replace those of the same name.
    pub(crate) fn add_headers(&mut self, headers: &FieldTable) {
        for (name, value) in headers.inner() {
            self.headers.insert(name.clone(), value.clone());
        }
    }

    /// Sets the time, at least 1 ms, after which the broker drops the message from its queue.
    pub(crate) fn set_expiration(&mut self, left: Duration) {
        let millis = left.as_millis().clamp(1, u128::from(u32::MAX));
        self.properties = std::mem::take(&mut self.properties).with_expiration(millis.to_string().into());
    }

    /// Adds the number that identifies a mandatory message when it is returned.
    pub(crate) fn set_sequence_number(&mut self, seq: u64) {
        self.headers.insert(SEQUENCE.into(), AMQPValue::LongLongInt(seq as i64));
    }

    /// Adds the slot of an ordered message.
    pub(crate) fn set_slot(&mut self, slot: u8) {
        put_slot(&mut self.headers, slot);
    }

    /// Puts the headers into the properties.
    pub(crate) fn into_properties(self) -> BasicProperties {
        self.properties.with_headers(self.headers)
    }

    /// Checks the sizes, in bytes, for which the broker would close the connection or the channel, and answers the
    /// size of the whole message. What is too large is `PayloadTooLarge`, with the context `size` and `limit`.
    pub(crate) fn check_sizes(&self, body: usize, max_size: usize, frame_max: usize) -> Result<usize> {
        let too_large = |text: String, size: usize, limit: usize| {
            Err(error::new(ErrorKind::PayloadTooLarge, "publish", text)
                .with_context("size", size)
                .with_context("limit", limit))
        };
        // 64 bytes are for the header with the sequence number, which is added later.
        let header = property_size(&self.properties) + table_size(&self.headers) + 64;
        if header > frame_max {
            let text =
                format!("attributes and headers of {header} bytes: the broker takes frames of at most {frame_max}");
            return too_large(text, header, frame_max);
        }
        let size = body + header;
        if size > max_size {
            let text =
                format!("message of {size} bytes: at most {max_size} are allowed (max_message_size in the bus URL)");
            return too_large(text, size, max_size);
        }
        Ok(size)
    }
}

/// Adds the header with the slot.
pub(crate) fn put_slot(headers: &mut FieldTable, slot: u8) {
    headers.insert(SLOT.into(), AMQPValue::LongString(slot.to_string().into()));
}

/// The properties and headers of an envelope.
pub(crate) fn encode(envelope: &Envelope, carried: &CopyState, names: &WireNames) -> Result<ContentHeader> {
    let mut headers = FieldTable::default();
    let mut wrong = None;
    cloudevents::encode_binary_named(envelope, carried, names, &mut |name, value| match ShortString::try_new(name) {
        Ok(key) => {
            headers.insert(key, AMQPValue::LongString(value.into()));
        }
        Err(_) => wrong = Some(format!("attribute name of {} bytes: AMQP takes 255", name.len())),
    });
    let mut properties = BasicProperties::default().with_delivery_mode(2);
    if let Some(content_type) = &envelope.content_type {
        match ShortString::try_new(&**content_type) {
            Ok(text) => properties = properties.with_content_type(text),
            Err(_) => {
                headers.insert(CONTENT_TYPE.into(), AMQPValue::LongString((&**content_type).into()));
            }
        }
    }
    if let Some(wrong) = wrong {
        return Err(Error::invalid(wrong).with_backend(BACKEND));
    }
    // The properties below are for other tools: polybus reads the attributes from the headers.
    if let Ok(id) = ShortString::try_new(&*envelope.id) {
        properties = properties.with_message_id(id);
    }
    let asked = envelope.native_reply();
    let correlation = asked.map(|(_, id)| id).or(envelope.correlation_id.as_deref());
    if let Some(Ok(id)) = correlation.map(ShortString::try_new) {
        properties = properties.with_correlation_id(id);
    }
    // That one name asks the broker for a name of the publisher's own, which consumes none here: it would close the
    // channel.
    let queue = asked.map(|(queue, _)| queue).filter(|queue| *queue != "amq.rabbitmq.reply-to");
    if let Some(Ok(queue)) = queue.map(ShortString::try_new) {
        properties = properties.with_reply_to(queue);
    }
    if let Ok(kind) = ShortString::try_new(&*envelope.event_type) {
        properties = properties.with_type(kind);
    }
    if let Some(seconds) = envelope.time.and_then(|t| u64::try_from(t.unix_timestamp()).ok()) {
        properties = properties.with_timestamp(seconds);
    }
    Ok(ContentHeader { properties, headers })
}

/// Reads a message of any program. It never fails: what cannot be read is told in `malformed`.
pub(crate) fn decode(native: &AmqpMessage, address: &str) -> DecodedMessage {
    let properties = &native.properties;
    let headers = properties.headers().as_ref().map(readable_headers).unwrap_or_default();
    let named = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.to_string());
    let long = named(CONTENT_TYPE);
    let expires = named(EXPIRES).and_then(|ms| instant_of_millis(ms.parse().ok()?));
    let shown = native_properties::native_properties(native, &headers);
    let id = match properties.message_id() {
        Some(id) => Cow::Borrowed(id.as_str()),
        None => Cow::Owned(fingerprint(native)),
    };
    let mut decoded = cloudevents::decode(WireMessage {
        content_type: long.as_deref().or(properties.content_type().as_ref().map(ShortString::as_str)),
        headers,
        body: native.body.clone(),
        id: Some(&id),
        time: properties.timestamp().and_then(instant),
        address,
        correlation_id: properties.correlation_id().as_ref().map(ShortString::as_str),
        native: shown,
        id_is_made_up: properties.message_id().is_none(),
        ..WireMessage::default()
    });
    if expires.is_some() && decoded.envelope.expires_at.is_none() {
        decoded.envelope = decoded.envelope.edit(|parts| parts.expires_at = expires);
    }
    decoded
}

/// The headers that have a value of text, without those of the broker.
fn readable_headers(table: &FieldTable) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
    let told = table.inner().iter().filter(|(key, _)| !is_broker_header(key.as_str()));
    told.filter_map(|(key, value)| Some((Cow::Borrowed(key.as_str()), value_as_text(value)?))).collect()
}

/// Whether a broker adds headers of this name, which a copy must not keep.
pub(crate) fn is_broker_header(name: &str) -> bool {
    cloudevents::is_broker_counter(name)
}

/// An id for a foreign message that has none. It is the same at every delivery and for every copy of the message.
fn fingerprint(native: &AmqpMessage) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(&native.body);
    let properties = &native.properties;
    part(&properties.timestamp().unwrap_or(0).to_be_bytes());
    // Two requests are two messages if they differ in the body or in where their answers go.
    for text in [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.kind(),
        properties.app_id(),
    ] {
        part(text.as_ref().map_or(&[], |text| text.as_str().as_bytes()));
    }
    for (name, value) in native.properties.headers().as_ref().map(readable_headers).unwrap_or_default() {
        if is_copied_header(&name) {
            part(name.as_bytes());
            part(value.as_bytes());
        }
    }
    hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// The value of a header as text; `None` for tables, arrays and bytes that are not UTF-8.
pub(crate) fn value_as_text(value: &AMQPValue) -> Option<Cow<'_, str>> {
    Some(match value {
        AMQPValue::LongString(s) => Cow::Borrowed(std::str::from_utf8(s.as_bytes()).ok()?),
        AMQPValue::ShortString(s) => Cow::Borrowed(s.as_str()),
        AMQPValue::Boolean(v) => v.to_string().into(),
        AMQPValue::ShortShortInt(v) => v.to_string().into(),
        AMQPValue::ShortShortUInt(v) => v.to_string().into(),
        AMQPValue::ShortInt(v) => v.to_string().into(),
        AMQPValue::ShortUInt(v) => v.to_string().into(),
        AMQPValue::LongInt(v) => v.to_string().into(),
        AMQPValue::LongUInt(v) => v.to_string().into(),
        AMQPValue::LongLongInt(v) => v.to_string().into(),
        AMQPValue::Float(v) => v.to_string().into(),
        AMQPValue::Double(v) => v.to_string().into(),
        AMQPValue::Timestamp(v) => instant(*v)?.format(&Rfc3339).ok()?.into(),
        _ => return None,
    })
}

fn instant(seconds: u64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).ok()?).ok()
}

fn instant_of_millis(millis: i64) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000).ok()
}

/// The value of a header as a number, of whatever type it is.
pub(crate) fn value_as_integer(value: &AMQPValue) -> Option<u64> {
    value_as_text(value)?.parse().ok()
}

/// The header of this name.
pub(crate) fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// How many deliveries of the message have failed, as a quorum queue counts. Only a message that is delivered again
/// has a count of the broker's.
///
/// Up to RabbitMQ 4.2 the queue counts every return, whatever its reason. From 4.3 on it counts a `basic.reject` and
/// a lost channel, but neither a `basic.nack` nor a message that exceeded `consumer_timeout`:
/// <https://www.rabbitmq.com/docs/4.3/nack>. There `x-acquired-count` counts all deliveries, and where it stands
/// alone none has failed.
pub(crate) fn failed_deliveries(properties: &BasicProperties) -> Option<u32> {
    let count = |name| header(properties, name).and_then(value_as_integer).map(|n| n.min(u64::from(u32::MAX)) as u32);
    count("x-delivery-count").or_else(|| count("x-acquired-count").map(|_| 0))
}

/// The sequence number of a returned message, as [`ContentHeader::set_sequence_number`] wrote it.
pub(crate) fn sequence_number(properties: &BasicProperties) -> Option<u64> {
    header(properties, SEQUENCE).and_then(value_as_integer)
}

/// The end of a message's native time to live, and the headers in which its copies carry it.
///
/// The broker does not tell how long a message has waited. So its time counts from its own timestamp, if that is
/// plausible, and else from its first arrival here.
fn lifetime(native: &AmqpMessage) -> Option<(OffsetDateTime, FieldTable)> {
    let header = |name| header(&native.properties, name).and_then(value_as_text);
    let own = || native.properties.expiration().as_ref().map(|e| Cow::Borrowed(e.as_str()));
    let (ends, told) = match header(EXPIRES).and_then(|ms| instant_of_millis(ms.parse().ok()?)) {
        Some(ends) => (ends, header(EXPIRATION).or_else(own)?),
        None => {
            let told = own()?;
            let time = time::Duration::milliseconds(told.parse::<u32>().ok()?.into());
            let sent = native.properties.timestamp().and_then(instant);
            let sent = sent.filter(|sent| (native.arrived - time..=native.arrived).contains(sent));
            (sent.unwrap_or(native.arrived) + time, told)
        }
    };
    let mut headers = FieldTable::default();
    let millis = (ends.unix_timestamp_nanos() / 1_000_000).to_string();
    headers.insert(EXPIRES.into(), AMQPValue::LongString(millis.into()));
    headers.insert(EXPIRATION.into(), AMQPValue::LongString((&*told).into()));
    Some((ends, headers))
}

/// A copy of a message, before it is decided whether it is packed.
pub(crate) struct MessageCopy {
    /// The properties and headers of the original, without those that the broker or an earlier copy added.
    pub(crate) head: ContentHeader,
    /// The headers that this copy adds.
    pub(crate) added: FieldTable,
    /// The end of the native time to live.
    pub(crate) ends: Option<OffsetDateTime>,
}

/// Makes a copy of a message, which carries the state `carried`.
///
/// `user` is the login of this connection. The broker refuses a message that names another user, so another user id
/// is left out.
pub(crate) fn copy_of(native: &AmqpMessage, carried: &CopyState, user: &str) -> MessageCopy {
    let from = &native.properties;
    let mut headers = FieldTable::default();
    if let Some(table) = from.headers() {
        for (key, value) in table.inner().iter().filter(|(key, _)| is_copied_header(key.as_str())) {
            headers.insert(key.clone(), value.clone());
        }
    }
    let lifetime = lifetime(native);
    let ends = lifetime.as_ref().map(|(ends, _)| *ends);
    let mut added = lifetime.map(|(_, headers)| headers).unwrap_or_default();
    if let Some(key) = routing_key(native) {
        added.insert(ROUTING_KEY.into(), AMQPValue::LongString(key.into_owned().into()));
    }
    cloudevents::encode_carried(carried, &mut |name, value| {
        if let Ok(key) = ShortString::try_new(name) {
            added.insert(key, AMQPValue::LongString(LongString::from(value)));
        }
    });
    let mut to = BasicProperties::default().with_delivery_mode(2);
    macro_rules! keep {
        ($($get:ident => $set:ident),*) => {
            $(if let Some(value) = from.$get() { to = to.$set(value.clone()); })*
        };
    }
    keep!(content_type => with_content_type, content_encoding => with_content_encoding, priority => with_priority,
        correlation_id => with_correlation_id, reply_to => with_reply_to, message_id => with_message_id,
        timestamp => with_timestamp, kind => with_type, app_id => with_app_id, cluster_id => with_cluster_id);
    if let Some(named) = from.user_id().clone().filter(|named| named.as_str() == user) {
        to = to.with_user_id(named);
    }
    MessageCopy { head: ContentHeader { properties: to, headers }, added, ends }
}

/// The routing key of the original message, unless it is the message's type or the name of a queue.
fn routing_key(native: &AmqpMessage) -> Option<Cow<'_, str>> {
    if let Some(carried) = header(&native.properties, ROUTING_KEY).and_then(value_as_text) {
        return Some(carried);
    }
    let key =
        Some(native.routing_key.as_str()).filter(|key| !key.is_empty() && !native.exchange.as_str().is_empty())?;
    let is_type = native.properties.kind().as_ref().is_some_and(|kind| kind.as_str() == key);
    (!is_type).then_some(Cow::Borrowed(key))
}

/// Whether a copy keeps a header of this name. `CC` and `BCC` would send the copy to other queues too.
fn is_copied_header(name: &str) -> bool {
    let own = name.strip_prefix("polybus-").unwrap_or("");
    let own = matches!(
        own,
        "hop" | "attempts" | "seq" | "mark" | "redriven" | "expires" | "expiration" | "routing-key" | "packed"
    ) || own.starts_with("dead-");
    !own && !matches!(name, "CC" | "BCC") && !is_broker_header(name)
}

/// The dead-letter information of a message that the broker itself dead-lettered from the queues of `source`.
pub(crate) fn broker_dead_letter(properties: &BasicProperties, source: &Source) -> Option<Box<DeadLetter>> {
    let AMQPValue::FieldArray(deaths) = header(properties, "x-death")? else { return None };
    let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
    let mut told = DeadLetter::default();
    told.reason = last.inner().get("reason").and_then(value_as_text).map(|t| t.into());
    told.origin = Some(source.live().to_string().into());
    told.time = match last.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => instant(*seconds),
        _ => None,
    };
    Some(Box::new(told))
}

/// The size in bytes of a content header frame without its headers. The broker closes the connection if it exceeds a
/// frame.
fn property_size(properties: &BasicProperties) -> usize {
    let strings = [
        properties.content_type(),
        properties.content_encoding(),
        properties.correlation_id(),
        properties.reply_to(),
        properties.message_id(),
        properties.kind(),
        properties.user_id(),
        properties.app_id(),
    ];
    // The frame, then class, weight, body size and flags, then the three properties of a fixed size.
    let fixed = 8 + 14 + 1 + 1 + 8;
    fixed + strings.iter().filter_map(|s| s.as_ref()).map(|s| s.as_str().len() + 1).sum::<usize>()
}

fn table_size(table: &FieldTable) -> usize {
    4 + table.inner().iter().map(|(key, value)| 1 + key.as_str().len() + value_size(value)).sum::<usize>()
}

fn value_size(value: &AMQPValue) -> usize {
    1 + match value {
        AMQPValue::LongString(s) => 4 + s.len(),
        AMQPValue::ShortString(s) => 1 + s.as_str().len(),
        AMQPValue::ByteArray(b) => 4 + b.len(),
        AMQPValue::FieldTable(table) => table_size(table),
        AMQPValue::FieldArray(array) => 4 + array.as_slice().iter().map(value_size).sum::<usize>(),
        // Every other value has at most eight bytes.
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn native(head: ContentHeader, body: &Bytes) -> AmqpMessage {
        let (exchange, routing_key) = Default::default();
        let arrived = OffsetDateTime::UNIX_EPOCH;
        AmqpMessage { properties: head.into_properties(), body: body.clone(), exchange, routing_key, arrived }
    }

    fn round(envelope: &Envelope) -> DecodedMessage {
        decode(&native(encode(envelope, &CopyState::default(), &AMQP_NAMES).unwrap(), &envelope.data), "queue:q")
    }

    #[test]
    fn a_message_in_the_place_of_a_large_one_may_be_large() {
        let original =
            |bytes: usize| native(ContentHeader::new(Default::default(), Default::default()), &vec![0; bytes].into());
        for (bytes, limit) in [(100, 10_000), (10_001, usize::MAX)] {
            assert_eq!(original(bytes).replacement_limit(10_000), limit, "{bytes} bytes");
        }
    }

    #[test]
    fn what_is_longer_than_amqps_short_strings_is_kept() {
        let long = |n: usize| "long-".repeat(n / 5 + 1)[..n].to_owned();
        let base = || Envelope::new("test.long", "x").source("s");
        for envelope in [
            base().id(long(2000)),
            base().content_type(format!("text/plain; x={}", long(400))),
            base().correlation_id(long(1000)).causation_id(long(1000)).subject(long(2000)).key(long(256)),
            base().edit(|p| p.extensions.push("x".repeat(200), long(1000))),
            base().edit(|p| p.tracestate = Some(long(512).into())).traceparent("00-not-checked"),
            base().header("CC", "another-queue").header("x-delivery-note", "7").header("x-opt-tenant", "acme"),
        ] {
            let decoded = round(&envelope);
            assert_eq!((decoded.malformed.as_deref(), decoded.envelope), (None, envelope));
        }
    }
}
