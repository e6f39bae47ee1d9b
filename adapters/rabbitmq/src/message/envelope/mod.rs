//! Envelopes as AMQP 0-9-1 properties and headers, and back. Bodies travel untouched (CloudEvents binary mode).

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

mod view;

/// Numbers a mandatory message within its channel, to know it again when it is returned.
pub(crate) const SEQ: &str = "polybus-seq";
/// Which of 64 slots an ordered message's key falls into.
pub(crate) const SLOT: &str = "polybus-slot";
/// A content type that is longer than the native property takes.
const CONTENT_TYPE: &str = "polybus-content-type";
/// In `CC` and `BCC` a publisher tells the broker further routing keys: <https://www.rabbitmq.com/docs/sender-selected>
pub(crate) const AMQP_NAMES: WireNames = WireNames { reserved: &["CC", "BCC"], ..WireNames::AMQP };
/// The same with the other prefix.
pub(crate) const CE_NAMES: WireNames = WireNames { reserved: &["CC", "BCC"], ..WireNames::CE };
/// When a message that had a native `expiration` ends, in milliseconds since 1970, and what that property said: a delay queue would let it
/// go at that time instead of its own, and takes the property away, so copies carry it like this.
const EXPIRES: &str = "polybus-expires";
const EXPIRATION: &str = "polybus-expiration";
/// By what a foreign message was routed, since copies go to their queue by its name.
const ROUTING_KEY: &str = "polybus-routing-key";

/// A message as it came, kept so that copies are exact.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
    /// Empty for the default exchange, and then the routing key is a queue's name.
    pub(crate) exchange: ShortString,
    pub(crate) routing_key: ShortString,
    /// When it came, by this machine's clock.
    pub(crate) arrived: OffsetDateTime,
}

/// Properties on their way out, the headers apart, so that adding one copies nothing.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    properties: BasicProperties,
    headers: FieldTable,
}

impl Head {
    pub(crate) fn new(properties: BasicProperties, headers: FieldTable) -> Self {
        Self { properties, headers }
    }

    /// Adds headers; those that are there give way.
    pub(crate) fn add(&mut self, headers: &FieldTable) {
        for (name, value) in headers.inner() {
            self.headers.insert(name.clone(), value.clone());
        }
    }

    /// The broker takes it out of its queue after this time.
    pub(crate) fn expire(&mut self, left: Duration) {
        let millis = left.as_millis().clamp(1, u128::from(u32::MAX));
        self.properties = std::mem::take(&mut self.properties).with_expiration(millis.to_string().into());
    }

    /// Adds the number by which a mandatory message is known when it is returned.
    pub(crate) fn number(&mut self, seq: u64) {
        self.headers.insert(SEQ.into(), AMQPValue::LongLongInt(seq as i64));
    }

    /// Adds an ordered message's slot.
    pub(crate) fn slot(&mut self, slot: u8) {
        put_slot(&mut self.headers, slot);
    }

    pub(crate) fn finish(self) -> BasicProperties {
        self.properties.with_headers(self.headers)
    }

    /// Refuses what the broker would close the connection or channel for; else tells the size on the wire.
    pub(crate) fn check_sizes(&self, body: usize, max_size: usize, frame_max: usize) -> Result<usize> {
        let too_large = |text: String, size: usize, limit: usize| {
            Err(error::new(ErrorKind::PayloadTooLarge, "publish", text)
                .with_context("size", size)
                .with_context("limit", limit))
        };
        // 64 for the headers that are added at sending.
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

pub(crate) fn put_slot(headers: &mut FieldTable, slot: u8) {
    headers.insert(SLOT.into(), AMQPValue::LongString(slot.to_string().into()));
}

/// The properties and headers of an envelope.
pub(crate) fn encode(envelope: &Envelope, carried: &CopyState, names: &WireNames) -> Result<Head> {
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
    // For other tools; the attributes themselves are headers.
    if let Ok(id) = ShortString::try_new(&*envelope.id) {
        properties = properties.with_message_id(id);
    }
    if let Some(Ok(id)) = envelope.correlation_id.as_deref().map(ShortString::try_new) {
        properties = properties.with_correlation_id(id);
    }
    if let Ok(kind) = ShortString::try_new(&*envelope.event_type) {
        properties = properties.with_type(kind);
    }
    if let Some(seconds) = envelope.time.and_then(|t| u64::try_from(t.unix_timestamp()).ok()) {
        properties = properties.with_timestamp(seconds);
    }
    Ok(Head { properties, headers })
}

/// Reads a message of any origin; never fails.
pub(crate) fn decode(native: &Native, address: &str) -> DecodedMessage {
    let properties = &native.properties;
    let headers = properties.headers().as_ref().map(readable).unwrap_or_default();
    let named = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.to_string());
    let long = named(CONTENT_TYPE);
    let expires = named(EXPIRES).and_then(|ms| instant_of_millis(ms.parse().ok()?));
    let shown = view::shown(native, &headers);
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
        ..WireMessage::default()
    });
    if expires.is_some() && decoded.envelope.expires_at.is_none() {
        decoded.envelope = decoded.envelope.edit(|parts| parts.expires_at = expires);
    }
    decoded
}

fn readable(table: &FieldTable) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
    let told = table.inner().iter().filter(|(key, _)| !is_brokers(key.as_str()));
    told.filter_map(|(key, value)| Some((Cow::Borrowed(key.as_str()), text(value)?))).collect()
}

pub(crate) fn is_brokers(name: &str) -> bool {
    cloudevents::is_broker_counter(name)
}

/// The id of a foreign message that has none: the same at every delivery, and of every copy.
fn fingerprint(native: &Native) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(&native.body);
    let properties = &native.properties;
    part(&properties.timestamp().unwrap_or(0).to_be_bytes());
    // Two requests that differ in where their answers go, or in what they ask, are two messages.
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
    for (name, value) in native.properties.headers().as_ref().map(readable).unwrap_or_default() {
        if copied(&name) {
            part(name.as_bytes());
            part(value.as_bytes());
        }
    }
    hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// A header's value as text; `None` for tables, arrays and bytes that are no text.
pub(crate) fn text(value: &AMQPValue) -> Option<Cow<'_, str>> {
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

pub(crate) fn integer(value: &AMQPValue) -> Option<u64> {
    text(value)?.parse().ok()
}

pub(crate) fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// How often the broker says a delivery of the message has failed, of one that it says it delivers again.
///
/// Up to RabbitMQ 4.2 that is how often it was taken back, for whatever reason. From 4.3 on a `basic.nack` and what exceeded
/// `consumer_timeout` are not counted, a `basic.reject` and a lost channel are, and `x-acquired-count` tells all hand-overs:
/// <https://www.rabbitmq.com/docs/4.3/nack>. There no count means that none failed.
pub(crate) fn returns(properties: &BasicProperties) -> Option<u32> {
    let count = |name| header(properties, name).and_then(integer).map(|n| n.min(u64::from(u32::MAX)) as u32);
    count("x-delivery-count").or_else(|| count("x-acquired-count").map(|_| 0))
}

/// The number that [`Head::number`] gave a returned message.
pub(crate) fn seq(properties: &BasicProperties) -> Option<u64> {
    header(properties, SEQ).and_then(integer)
}

/// What is left of a message's own time to live, and the headers by which its copies carry that.
///
/// The broker does not say how long a message has been in its queue, so its time counts from its own timestamp where that makes sense, else
/// from its first arrival here.
fn lifetime(native: &Native) -> Option<(OffsetDateTime, FieldTable)> {
    let header = |name| header(&native.properties, name).and_then(text);
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

/// A copy to be made of a message as it came.
pub(crate) struct Copy {
    /// The message's own properties and headers, without what the broker or an earlier copy added.
    pub(crate) head: Head,
    /// The headers that the copy carries beside them.
    pub(crate) added: FieldTable,
    /// When the message's own time to live ends.
    pub(crate) ends: Option<OffsetDateTime>,
}

/// What a copy is made of: the message's own, and `carried`.
///
/// `user` is who this connection logs in as: the broker refuses a message that names another.
pub(crate) fn copy(native: &Native, carried: &CopyState, user: &str) -> Copy {
    let from = &native.properties;
    let mut headers = FieldTable::default();
    if let Some(table) = from.headers() {
        for (key, value) in table.inner().iter().filter(|(key, _)| copied(key.as_str())) {
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
    Copy { head: Head { properties: to, headers }, added, ends }
}

/// By what a message was routed that does not say so itself: its routing key, unless that is its type or a queue's name.
fn routing_key(native: &Native) -> Option<Cow<'_, str>> {
    if let Some(carried) = header(&native.properties, ROUTING_KEY).and_then(text) {
        return Some(carried);
    }
    let key =
        Some(native.routing_key.as_str()).filter(|key| !key.is_empty() && !native.exchange.as_str().is_empty())?;
    let is_type = native.properties.kind().as_ref().is_some_and(|kind| kind.as_str() == key);
    (!is_type).then_some(Cow::Borrowed(key))
}

/// Whether a copy keeps this header. `CC` and `BCC` would send the copy to other queues too.
fn copied(name: &str) -> bool {
    let own = name.strip_prefix("polybus-").unwrap_or("");
    let own = matches!(
        own,
        "hop" | "attempts" | "seq" | "mark" | "redriven" | "expires" | "expiration" | "routing-key" | "packed"
    ) || own.starts_with("dead-");
    !own && !matches!(name, "CC" | "BCC") && !is_brokers(name)
}

/// What the broker tells of a message that it dead-lettered itself from the queues of `source`.
pub(crate) fn death(properties: &BasicProperties, source: &Source) -> Option<Box<DeadLetter>> {
    let AMQPValue::FieldArray(deaths) = header(properties, "x-death")? else { return None };
    let AMQPValue::FieldTable(last) = deaths.as_slice().first()? else { return None };
    let mut told = DeadLetter::default();
    told.reason = last.inner().get("reason").and_then(text).map(|t| t.into());
    told.origin = Some(source.live().to_string().into());
    told.time = match last.inner().get("time") {
        Some(AMQPValue::Timestamp(seconds)) => instant(*seconds),
        _ => None,
    };
    Some(Box::new(told))
}

/// Bytes of a content header frame without its headers: all must fit into one frame, or the broker closes the connection.
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
    // Frame, class, weight, body size, flags; the three fixed-size properties.
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

    fn native(head: Head, body: &Bytes) -> Native {
        let (exchange, routing_key) = Default::default();
        let arrived = OffsetDateTime::UNIX_EPOCH;
        Native { properties: head.finish(), body: body.clone(), exchange, routing_key, arrived }
    }

    fn round(envelope: &Envelope) -> DecodedMessage {
        decode(&native(encode(envelope, &CopyState::default(), &AMQP_NAMES).unwrap(), &envelope.data), "queue:q")
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
