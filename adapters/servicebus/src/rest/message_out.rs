//! A message as it is posted: alone with its properties in headers, or as one of a batch in JSON.
//! <https://learn.microsoft.com/rest/api/servicebus/message-headers-and-properties>

use std::borrow::Cow;

use bytes::Bytes;
use hyper::{
    HeaderMap,
    header::{CONTENT_TYPE, HeaderName, HeaderValue},
};
use polybus_core::{
    Envelope, Error, ErrorKind, Result,
    message::cloudevents::{self, CopyState, STRUCTURED},
};
use serde_json::{Map, Value, json};
use time::{Duration, format_description::well_known::Rfc3339};

use crate::{
    error,
    message::envelope::{self, CopyFields, ORIGINAL_ID, ORIGINAL_TIME, SendOptions, TARGET},
    rest::message_in::{RestOriginal, is_copied},
    topology::sql_filter::TYPE_NAME,
};

/// The content type of a batch.
pub(crate) const BATCH_CONTENT_TYPE: &str = "application/vnd.microsoft.servicebus.json";
/// In bytes: what every message takes beside the parts that are counted.
const MESSAGE_OVERHEAD: usize = 64;

/// A message that is to be posted.
#[derive(Clone, Debug, Default)]
pub(crate) struct PostedMessage {
    content_type: Option<String>,
    broker: Map<String, Value>,
    ttl: Option<Duration>,
    /// Values are JSON, or as they came from the broker.
    properties: Vec<(String, String)>,
    body: Bytes,
}

/// Makes a CloudEvent in structured mode, which alone can hold any body in a batch. The type is a property as well, for
/// rules to read.
pub(crate) fn encode(envelope: &Envelope, carried: &CopyState, options: &SendOptions<'_>) -> Result<PostedMessage> {
    let mut message = PostedMessage {
        content_type: Some(STRUCTURED.to_owned()),
        properties: vec![(TYPE_NAME.to_owned(), quoted(&envelope.event_type))],
        body: cloudevents::encode_structured(envelope, &CopyState::default()).into(),
        ..PostedMessage::default()
    };
    // Native fields are for other tools. polybus reads the attributes in the body.
    message.broker.insert("Label".into(), json!(*envelope.event_type));
    if let Some(id) = envelope::native_correlation(envelope) {
        message.broker.insert("CorrelationId".into(), json!(id));
    }
    if let Some(queue) = envelope::native_reply_queue(envelope) {
        message.broker.insert("ReplyTo".into(), json!(queue));
    }
    message.with_options(envelope, carried, options)
}

/// Makes a copy of a message: as it came, without what the broker or an earlier copy added, and with `carried`.
pub(crate) fn copy(
    native: &RestOriginal,
    envelope: &Envelope,
    carried: &CopyState,
    options: &SendOptions<'_>,
) -> Result<PostedMessage> {
    let mut message = as_it_came(native);
    let foreign = &*envelope.event_type == polybus_core::Envelope::FOREIGN_TYPE;
    // The copy has an id and a time of its own. An event says both itself.
    if native.property(ORIGINAL_ID).is_none()
        && (foreign || carried.hop == 1 && native.message_id().as_deref() != Some(&envelope.id))
    {
        let id = native.message_id().unwrap_or_else(|| Cow::Borrowed(&envelope.id));
        message.properties.push((ORIGINAL_ID.into(), quoted(&id)));
    }
    let enqueued = native.broker.enqueued().and_then(|at| at.format(&Rfc3339).ok());
    if let (true, None, Some(at)) = (foreign, native.property(ORIGINAL_TIME), enqueued) {
        message.properties.push((ORIGINAL_TIME.into(), quoted(&at)));
    }
    message.with_options(envelope, carried, options)
}

/// Makes a copy where there is no room for what polybus adds: the message, and an id that is no longer than the
/// original's, but long enough to be unique.
pub(crate) fn bare(native: &RestOriginal, envelope: &Envelope, options: &SendOptions<'_>) -> Result<PostedMessage> {
    let mut message = as_it_came(native);
    message
        .properties
        .retain(|(name, _)| ![ORIGINAL_ID, ORIGINAL_TIME].iter().any(|own| name.eq_ignore_ascii_case(own)));
    let copy = options.copy.map(|copy| {
        let own = native.broker.message_id.as_ref().map_or(copy.id.len(), String::len);
        CopyFields { id: &copy.id[..own.clamp(16.min(copy.id.len()), copy.id.len())], ..copy }
    });
    message.with_options(envelope, &CopyState::default(), &SendOptions { copy, ..options.clone() })
}

/// The message as it came, without what the broker or an earlier copy added.
fn as_it_came(native: &RestOriginal) -> PostedMessage {
    let properties = native.properties.iter().filter(|(name, _)| is_copied(name));
    let broker = native.broker.copied_properties().map(|(name, value)| (name.to_owned(), json!(value)));
    PostedMessage {
        // A message that came out of a batch may have kept the batch's content type, and must not be taken for one.
        content_type: native.content_type.clone().filter(|own| !own.starts_with(BATCH_CONTENT_TYPE)),
        properties: properties.map(|(name, value)| (name.clone(), as_header(value))).collect(),
        broker: broker.collect(),
        body: native.body.clone(),
        ..PostedMessage::default()
    }
}

/// A property's value as a header. Characters beyond ASCII become escapes of JSON, which mean the same.
fn as_header(value: &str) -> String {
    match value.is_ascii() {
        true => value.to_owned(),
        false if value.starts_with('"') => escaped(value),
        false => quoted(value),
    }
}

/// The value of a property that is text.
fn quoted(text: &str) -> String {
    ascii(&json!(text))
}

impl PostedMessage {
    fn with_options(mut self, envelope: &Envelope, carried: &CopyState, options: &SendOptions<'_>) -> Result<Self> {
        if let Some(copy) = &options.copy {
            self.broker.insert("MessageId".into(), json!(copy.id));
        } else if options.deduplicated || !self.broker.contains_key("MessageId") {
            self.broker.insert("MessageId".into(), json!(envelope::message_id(envelope, carried, options)));
        }
        cloudevents::encode_carried(carried, &mut |name, value| self.properties.push((name.into(), quoted(value))));
        // Only a copy that replaces its original has one: other copies have their original's among its properties.
        if let Some(session) = options.copy.and_then(|copy| copy.session) {
            self.broker.insert("SessionId".into(), json!(session));
        }
        if let Some(target) = options.target {
            self.properties.push((TARGET.into(), quoted(target)));
        }
        if let Some(at) = options.enqueue_at {
            let text = at.format(&Rfc3339);
            let text = text.map_err(|e| error::new(ErrorKind::Unsupported, "publish", format!("the delay: {e}")))?;
            self.broker.insert("ScheduledEnqueueTimeUtc".into(), json!(text));
        }
        self.ttl = envelope::lifetime(envelope, options);
        Ok(self)
    }

    /// The same message without a time to live.
    pub(crate) fn without_expiry(mut self) -> Self {
        self.ttl = None;
        self
    }

    /// The size that the broker stores, in bytes, as estimated.
    fn size(&self) -> usize {
        let properties: usize = self.properties.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let broker: usize = self.broker.values().map(|value| value.as_str().map_or(8, str::len) + 16).sum();
        self.body.len() + properties + broker + MESSAGE_OVERHEAD
    }

    /// Whether it is too large for a copy of `native`, or for a message in its place. The configured limit does not
    /// count where `native` itself is above it: see [`envelope::copy_limit`].
    pub(crate) fn exceeds(&self, limit: usize, native: &RestOriginal) -> bool {
        let size = self.size();
        size > limit && size > envelope::copy_limit(limit, as_it_came(native).size())
    }

    /// Refuses a message that is too large to go in the place of `native`.
    pub(crate) fn check_replacement(&self, limit: usize, native: &RestOriginal) -> Result<()> {
        if self.exceeds(limit, native) { Err(envelope::replacement_too_large(self.size(), limit)) } else { Ok(()) }
    }

    /// Refuses a message that the broker would refuse, or of which it would refuse a copy. Returns its size.
    pub(crate) fn check_size(&self, limit: usize) -> Result<usize> {
        let reserve = envelope::copy_reserve(limit);
        let (own, size) = (self.size(), self.size() + reserve);
        if size <= limit {
            return Ok(own);
        }
        let text = format!(
            "message of {size} bytes, {reserve} of them kept free for what a retry adds: at most {limit} are allowed (max_message_size in the bus URL)"
        );
        Err(error::new(ErrorKind::PayloadTooLarge, "publish", text)
            .with_context("size", size)
            .with_context("limit", limit))
    }

    /// The request that posts it alone: any bytes in the body, the rest in headers.
    pub(crate) fn as_request(&self) -> Result<(HeaderMap, Bytes)> {
        let mut headers = HeaderMap::new();
        if let Some(content_type) = &self.content_type {
            headers.insert(CONTENT_TYPE, header_value(content_type)?);
        }
        let mut broker = self.broker.clone();
        if let Some(ttl) = self.ttl {
            broker.insert("TimeToLive".into(), json!(ttl.as_seconds_f64()));
        }
        headers.insert("brokerproperties", header_value(&ascii(&Value::Object(broker)))?);
        for (name, value) in &self.properties {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                Error::invalid(format!("property {name:?} is no HTTP header")).with_operation("publish")
            })?;
            headers.append(name, header_value(value)?);
        }
        Ok((headers, self.body.clone()))
    }

    /// Its entry in a batch; `None` if JSON cannot hold its body.
    pub(crate) fn as_batch_entry(&self) -> Option<String> {
        let mut broker = self.broker.clone();
        if let Some(content_type) = &self.content_type {
            broker.insert("ContentType".into(), json!(content_type));
        }
        if let Some(ttl) = self.ttl {
            broker.insert("TimeToLiveTimeSpan".into(), json!(timespan(ttl)));
        }
        let mut properties: Map<String, Value> = Map::new();
        if let Some(content_type) = &self.content_type {
            // The service's documentation does not list the content type among the fields of a batch entry, so it is
            // sent as a property too.
            properties.insert(envelope::CONTENT_TYPE.into(), json!(content_type));
        }
        let values = self.properties.iter().map(|(name, value)| (name.clone(), serde_json::from_str(value)));
        for (name, value) in values {
            properties.insert(name, value.ok()?);
        }
        let body = std::str::from_utf8(&self.body).ok()?;
        Some(ascii(&json!({ "Body": body, "BrokerProperties": broker, "UserProperties": properties })))
    }
}

fn header_value(text: &str) -> Result<HeaderValue> {
    HeaderValue::from_str(text).map_err(|_| Error::invalid("a header that HTTP cannot carry").with_operation("publish"))
}

/// JSON in ASCII alone.
pub(crate) fn ascii(value: &Value) -> String {
    escaped(&value.to_string())
}

fn escaped(text: &str) -> String {
    if text.is_ascii() && !text.contains('\u{7f}') {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if c.is_ascii() && c != '\u{7f}' {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// A span as .NET writes it: days, hours, minutes, seconds, ten-millionths of a second.
fn timespan(duration: Duration) -> String {
    let seconds = duration.whole_seconds();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let ticks = duration.subsec_nanoseconds() / 100;
    format!("{days}.{:02}:{:02}:{:02}.{ticks:07}", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use time::OffsetDateTime;

    use super::*;

    #[test]
    fn text_of_any_kind_becomes_a_header() {
        let text = ascii(&json!("grüß \"\u{1f980}\"\r\n\u{7f}"));
        assert_eq!(text, r#""gr\u00fc\u00df \"\ud83e\udd80\"\r\n\u007f""#);
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), "grüß \"\u{1f980}\"\r\n\u{7f}");
    }

    #[test]
    fn spans() {
        assert_eq!(timespan(Duration::milliseconds(40_250)), "0.00:00:40.2500000");
        assert_eq!(timespan(Duration::days(2) + Duration::minutes(61)), "2.01:01:00.0000000");
    }

    #[test]
    fn alone_and_in_a_batch_say_the_same() {
        let now = OffsetDateTime::now_utc();
        let envelope = Envelope::new("order.placed", "ü").id("é").expires_at(now + Duration::seconds(90));
        let options = SendOptions { target: Some("b"), ..SendOptions::default() };
        let message = encode(&envelope, &CopyState::new(2, 3), &options).unwrap();
        let (headers, body) = message.as_request().unwrap();
        let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(header("polybus-attempts"), "\"3\"");
        assert_eq!(header("polybus-target"), "\"b\"");
        assert_eq!(header("content-type"), STRUCTURED);
        let broker: Value = serde_json::from_str(&header("brokerproperties")).unwrap();
        assert_eq!((&broker["MessageId"], &broker["Label"]), (&json!("é"), &json!("order.placed")));
        assert!(broker["TimeToLive"].as_f64().unwrap() > 80.0);
        let entry: Value = serde_json::from_str(&message.as_batch_entry().unwrap()).unwrap();
        assert_eq!(entry["Body"].as_str().unwrap().as_bytes(), body);
        assert_eq!(entry["UserProperties"]["polybus-hop"], "2");
        assert_eq!(entry["UserProperties"]["cloudEvents_type"], "order.placed");
        assert!(entry["BrokerProperties"]["TimeToLiveTimeSpan"].as_str().unwrap().starts_with("0.00:01:"));
        assert_eq!(message.without_expiry().as_batch_entry().unwrap().find("TimeToLive"), None);
    }

    /// A message of another program, with a body of so many bytes.
    fn foreign(bytes: usize) -> RestOriginal {
        RestOriginal { body: vec![b'x'; bytes].into(), ..RestOriginal::default() }
    }

    #[test]
    fn the_configured_limit_is_none_for_copies_of_what_is_larger_itself() {
        let (limit, envelope, options) = (10_000, Envelope::bare("a", ""), SendOptions::default());
        for (bytes, exceeds) in [(5_000, false), (9_900, true), (10_001, false), (100_000, false)] {
            let original = foreign(bytes);
            let copy = copy(&original, &envelope, &CopyState::new(1, 1), &options).unwrap();
            assert_eq!(copy.exceeds(limit, &original), exceeds, "a copy of {bytes} bytes");
        }
        let other = encode(&Envelope::new("a", vec![b'x'; 10_001]), &CopyState::default(), &options).unwrap();
        assert!(other.check_replacement(limit, &foreign(10_001)).is_ok());
        let e = other.check_replacement(limit, &foreign(1)).unwrap_err();
        assert_eq!((e.kind(), e.context("limit")), (ErrorKind::PayloadTooLarge, Some("10000")));
    }

    #[test]
    fn a_replacement_has_the_session_that_it_is_given() {
        let copy = CopyFields { id: "copy", session: Some("new"), left: None, redrive: true };
        let options = SendOptions { copy: Some(copy), ..SendOptions::default() };
        let message = encode(&Envelope::new("a", "x"), &CopyState::default(), &options).unwrap();
        assert_eq!(message.broker.get("SessionId"), Some(&json!("new")));
    }

    #[test]
    fn the_limit_is_exact() {
        let message = encode(&Envelope::new("a", "x"), &CopyState::default(), &SendOptions::default()).unwrap();
        let size = message.size();
        let least = (size..).find(|limit| size + envelope::copy_reserve(*limit) <= *limit).unwrap();
        assert_eq!(message.check_size(least).unwrap(), size);
        assert_eq!(message.check_size(least - 1).unwrap_err().kind(), ErrorKind::PayloadTooLarge);
    }
}
