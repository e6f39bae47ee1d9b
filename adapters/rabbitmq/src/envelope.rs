//! Envelopes as AMQP 0-9-1 properties and headers, and back. Bodies travel untouched (CloudEvents binary mode).

use std::borrow::Cow;

use bytes::Bytes;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, LongString, ShortString},
};
use polybus_core::{
    DeadLetter, Envelope, Error, Kind, Result, Source,
    cloudevents::{self, Carried, Decoded, Wire},
};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{BACKEND, error};

/// Numbers a mandatory message within its channel, to know it again when it is returned.
pub(crate) const SEQ: &str = "polybus-seq";
/// Which of 64 slots an ordered message's key falls into.
pub(crate) const SLOT: &str = "polybus-slot";
/// A content type that is longer than the native property takes.
const CONTENT_TYPE: &str = "polybus-content-type";
/// Headers that a broker adds; no part of a message, and not copied.
const BROKERS: [&str; 5] = ["x-death", "x-first-death-", "x-last-death-", "x-delivery-count", "x-opt-deaths"];

/// A message as it came, kept so that copies are exact.
#[derive(Debug)]
pub(crate) struct Native {
    pub(crate) properties: BasicProperties,
    pub(crate) body: Bytes,
}

/// Properties on their way out, the headers apart, so that adding one copies nothing.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    properties: BasicProperties,
    headers: FieldTable,
}

impl Head {
    /// Adds the number by which a mandatory message is known when it is returned.
    pub(crate) fn number(&mut self, seq: u64) {
        self.headers.insert(SEQ.into(), AMQPValue::LongLongInt(seq as i64));
    }

    /// Adds an ordered message's slot.
    pub(crate) fn slot(&mut self, slot: u8) {
        self.headers.insert(SLOT.into(), AMQPValue::LongString(slot.to_string().into()));
    }

    pub(crate) fn finish(self) -> BasicProperties {
        self.properties.with_headers(self.headers)
    }

    /// Refuses what the broker would close the connection or channel for; else tells the size on the wire.
    pub(crate) fn check_sizes(&self, body: usize, max_size: usize, frame_max: usize) -> Result<usize> {
        let too_large = |text: String, size: usize, limit: usize| {
            Err(error::new(Kind::PayloadTooLarge, "publish", text).with("size", size).with("limit", limit))
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

/// The properties and headers of an envelope.
pub(crate) fn encode(envelope: &Envelope, carried: &Carried) -> Result<Head> {
    let mut headers = FieldTable::default();
    let mut wrong = None;
    cloudevents::encode_binary(envelope, carried, &mut |name, value| match ShortString::try_new(name) {
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
        return Err(Error::invalid(wrong).backend(BACKEND));
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
pub(crate) fn decode(native: &Native, address: &str) -> Decoded {
    let properties = &native.properties;
    let headers = properties.headers().as_ref().map(readable).unwrap_or_default();
    let long = headers.iter().find(|(name, _)| name == CONTENT_TYPE).map(|(_, value)| value.to_string());
    let id = match properties.message_id() {
        Some(id) => Cow::Borrowed(id.as_str()),
        None => Cow::Owned(fingerprint(native)),
    };
    cloudevents::decode(Wire {
        content_type: long.as_deref().or(properties.content_type().as_ref().map(ShortString::as_str)),
        headers,
        body: native.body.clone(),
        id: Some(&id),
        time: properties.timestamp().and_then(instant),
        address,
    })
}

fn readable(table: &FieldTable) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
    let told = table.inner().iter().filter(|(key, _)| !is_brokers(key.as_str()));
    told.filter_map(|(key, value)| Some((Cow::Borrowed(key.as_str()), text(value)?))).collect()
}

fn is_brokers(name: &str) -> bool {
    BROKERS.iter().any(|b| name.starts_with(b))
}

/// The id of a foreign message that has none: the same at every delivery, and of every copy.
fn fingerprint(native: &Native) -> String {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(&native.body);
    part(&native.properties.timestamp().unwrap_or(0).to_be_bytes());
    for (name, value) in native.properties.headers().as_ref().map(readable).unwrap_or_default() {
        if copied(&name) {
            part(name.as_bytes());
            part(value.as_bytes());
        }
    }
    hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect()
}

/// A header's value as text; `None` for tables, arrays and bytes that are no text.
fn text(value: &AMQPValue) -> Option<Cow<'_, str>> {
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

fn integer(value: &AMQPValue) -> Option<u64> {
    text(value)?.parse().ok()
}

fn header<'a>(properties: &'a BasicProperties, name: &str) -> Option<&'a AMQPValue> {
    properties.headers().as_ref()?.inner().get(name)
}

/// How often the broker says it has taken the message back, of one that it says it delivers again.
pub(crate) fn returns(properties: &BasicProperties) -> Option<u32> {
    header(properties, "x-delivery-count").and_then(integer).map(|n| n.min(u64::from(u32::MAX)) as u32)
}

/// The number that [`Head::number`] gave a returned message.
pub(crate) fn seq(properties: &BasicProperties) -> Option<u64> {
    header(properties, SEQ).and_then(integer)
}

/// The properties of a copy: the message's own, without what the broker or an earlier copy added, and with `carried`.
///
/// `user` is who this connection logs in as: the broker refuses a message that names another.
pub(crate) fn copy(native: &Native, carried: &Carried, user: &str) -> Head {
    let from = &native.properties;
    let mut headers = FieldTable::default();
    if let Some(table) = from.headers() {
        for (key, value) in table.inner().iter().filter(|(key, _)| copied(key.as_str())) {
            headers.insert(key.clone(), value.clone());
        }
    }
    cloudevents::encode_carried(carried, &mut |name, value| {
        if let Ok(key) = ShortString::try_new(name) {
            headers.insert(key, AMQPValue::LongString(LongString::from(value)));
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
        timestamp => with_timestamp, kind => with_type, app_id => with_app_id);
    if let Some(named) = from.user_id().clone().filter(|named| named.as_str() == user) {
        to = to.with_user_id(named);
    }
    Head { properties: to, headers }
}

/// Whether a copy keeps this header. `CC` and `BCC` would send the copy to other queues too.
fn copied(name: &str) -> bool {
    let own = name.strip_prefix("polybus-").unwrap_or("");
    let own = matches!(own, "hop" | "attempts" | "seq") || own.starts_with("dead-");
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
        Native { properties: head.finish(), body: body.clone() }
    }

    fn round(envelope: &Envelope) -> Decoded {
        decode(&native(encode(envelope, &Carried::default()).unwrap(), &envelope.data), "queue:q")
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
        ] {
            let decoded = round(&envelope);
            assert_eq!((decoded.malformed.as_deref(), decoded.envelope), (None, envelope));
        }
    }
}
