//! Reading a message from an HTTP answer.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::{HeaderMap, header::CONTENT_TYPE};
use polybus_core::{
    Source,
    driver::DeadLetter,
    message::cloudevents::{self, CopyState, DecodedMessage, STRUCTURED, WireMessage},
};
use serde::Deserialize;
use time::{
    OffsetDateTime,
    format_description::well_known::{Rfc2822, Rfc3339},
};

use crate::{
    message::{annotations::BrokerAnnotations, envelope, received},
    topology::sql_filter::TYPE_NAME,
};

/// Headers of HTTP and of the service itself. All others are properties of the message.
const HTTP_HEADERS: &[&str] = &[
    "brokerproperties",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expires",
    "keep-alive",
    "location",
    "pragma",
    "server",
    "strict-transport-security",
    "transfer-encoding",
    "vary",
    "via",
];

/// A message as it came, kept so that copies are exact.
#[derive(Debug, Default)]
pub(crate) struct RestOriginal {
    pub(crate) content_type: Option<String>,
    pub(crate) broker: BrokerProperties,
    /// As they came: text is in quotes, other values are not.
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

/// The header `BrokerProperties`. Numbers are as wide as the service makes them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct BrokerProperties {
    /// How often the message was handed out, this time included.
    pub(crate) delivery_count: Option<u32>,
    pub(crate) sequence_number: Option<i64>,
    pub(crate) lock_token: Option<String>,
    locked_until_utc: Option<String>,
    enqueued_time_utc: Option<String>,
    time_to_live: Option<f64>,
    pub(crate) message_id: Option<String>,
    label: Option<String>,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    reply_to_session_id: Option<String>,
    to: Option<String>,
    pub(crate) session_id: Option<String>,
    partition_key: Option<String>,
}

impl BrokerProperties {
    /// The properties that a copy keeps.
    pub(crate) fn copied_properties(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let fields = [
            ("MessageId", &self.message_id),
            ("Label", &self.label),
            ("CorrelationId", &self.correlation_id),
            ("ReplyTo", &self.reply_to),
            ("ReplyToSessionId", &self.reply_to_session_id),
            ("To", &self.to),
            ("SessionId", &self.session_id),
            ("PartitionKey", &self.partition_key),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
    }

    pub(crate) fn enqueued(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(self.enqueued_time_utc.as_deref()?, &Rfc2822).ok()
    }

    pub(crate) fn annotations(&self) -> BrokerAnnotations {
        let until = self.locked_until_utc.as_deref();
        let locked_until = until.and_then(|at| OffsetDateTime::parse(at, &Rfc2822).ok());
        BrokerAnnotations { sequence: self.sequence_number, enqueued: self.enqueued(), locked_until }
    }

    /// The time to live that its sender gave it; `None` for ever.
    pub(crate) fn time_to_live_span(&self) -> Option<time::Duration> {
        // Where there is no limit the service writes its largest span, ten thousand years.
        self.time_to_live.filter(|s| (0.0..1e10).contains(s)).map(time::Duration::seconds_f64)
    }
}

impl RestOriginal {
    pub(crate) fn new(headers: &HeaderMap, body: Bytes) -> Self {
        let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let found = headers.get("brokerproperties").map(text);
        let broker = found.and_then(|found| {
            let read = serde_json::from_str(&found);
            read.inspect_err(|e| tracing::warn!(error = %e, "the broker's properties of a message cannot be read")).ok()
        });
        let properties = headers.iter().filter(|(name, _)| !HTTP_HEADERS.contains(&name.as_str()));
        Self {
            content_type: headers.get(CONTENT_TYPE).map(text),
            broker: broker.unwrap_or_default(),
            properties: properties.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
            body,
        }
    }

    /// Reads what the broker tells of a message from the headers of the answer alone.
    pub(crate) fn annotations(headers: &HeaderMap) -> BrokerAnnotations {
        let json = headers.get("brokerproperties");
        let read = json.and_then(|json| serde_json::from_slice::<BrokerProperties>(json.as_bytes()).ok());
        read.map(|broker| broker.annotations()).unwrap_or_default()
    }

    pub(crate) fn property(&self, name: &str) -> Option<Cow<'_, str>> {
        let found = self.properties.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| property_text(value))
    }

    /// The message id that the producer gave, as far as it is known.
    pub(crate) fn message_id(&self) -> Option<Cow<'_, str>> {
        self.property(envelope::ORIGINAL_ID).or(self.broker.message_id.as_deref().map(Cow::Borrowed))
    }
}

/// The text of a property's value, which is in quotes if it was sent as text.
fn property_text(value: &str) -> Cow<'_, str> {
    if !value.starts_with('"') {
        return value.into();
    }
    serde_json::from_str::<String>(value).map_or_else(|_| value.trim_matches('"').into(), Cow::Owned)
}

/// Reads a message of any origin; never fails.
pub(crate) fn decode(native: &RestOriginal, source: &Source) -> DecodedMessage {
    let own = |name: &str| {
        !(source.is_dead_letters()
            && [envelope::REASON, envelope::DETAIL].iter().any(|broker| name.eq_ignore_ascii_case(broker)))
    };
    let mut headers: Vec<_> = native.properties.iter().filter(|(name, _)| own(name)).collect();
    // Headers of HTTP have no order. Names in order are read back in order; others carry their order with them.
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
    let sequence = native.broker.sequence_number.map(|n| n.to_string());
    let id = native.message_id();
    let found = native.property(envelope::ORIGINAL_TIME);
    let time = found.and_then(|at| OffsetDateTime::parse(&at, &Rfc3339).ok()).or_else(|| native.broker.enqueued());
    let long = native.property(envelope::CONTENT_TYPE);
    cloudevents::decode(WireMessage {
        content_type: long.as_deref().or(native.content_type.as_deref()),
        headers: headers.into_iter().map(|(name, value)| (Cow::Borrowed(&**name), property_text(value))).collect(),
        body: native.body.clone(),
        id: id.as_deref().or(sequence.as_deref()),
        time,
        address: &source.address().to_string(),
        correlation_id: native.broker.correlation_id.as_deref(),
        subject: native.broker.label.as_deref().filter(|label| native.property(TYPE_NAME).as_deref() != Some(label)),
        native: native_properties(native),
        id_is_made_up: id.is_none(),
    })
}

/// The native properties that have no field in an envelope and that polybus does not write, by their portable names.
fn native_properties(native: &RestOriginal) -> Vec<(&'static str, Cow<'_, str>)> {
    let broker = &native.broker;
    let fields = [
        ("reply-to", &broker.reply_to),
        ("reply-to-session-id", &broker.reply_to_session_id),
        ("to", &broker.to),
        ("session-id", &broker.session_id),
        ("partition-key", &broker.partition_key),
    ];
    let mut others: Vec<_> =
        fields.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?.into()))).collect();
    let is_event = native.property(TYPE_NAME).is_some()
        || native.content_type.as_deref().is_some_and(|own| own.starts_with(STRUCTURED));
    if let Some(lives) = broker.time_to_live_span().filter(|_| !is_event) {
        others.push(("expiration", lives.whole_milliseconds().to_string().into()));
    }
    others
}

/// How a message came to the dead letters of `source`.
pub(crate) fn dead_letter_of(native: &RestOriginal, carried: &CopyState, source: &Source) -> Box<DeadLetter> {
    let (reason, detail) = (native.property(envelope::REASON), native.property(envelope::DETAIL));
    received::dead_letter_of(carried, reason, detail, source)
}

/// Whether a copy keeps this property.
pub(crate) fn is_copied(name: &str) -> bool {
    let broker = [envelope::TARGET, envelope::REASON, envelope::DETAIL];
    !cloudevents::is_carried(name) && !broker.iter().any(|own| name.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use polybus_core::Envelope;

    use super::*;
    use crate::{
        message::envelope::{CopyFields, SendOptions},
        rest::message_out,
    };

    fn received(headers: &HeaderMap, body: Bytes) -> RestOriginal {
        let mut headers = headers.clone();
        for (name, value) in
            [("date", "Wed, 02 Jul 2014 01:32:27 GMT"), ("server", "x"), ("location", "/q/messages/1/2")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        RestOriginal::new(&headers, body)
    }

    fn full() -> Envelope {
        Envelope::new("order.placed", &b"\0\xff{}"[..])
            .source("/shop")
            .id("x".repeat(3000))
            .header("zeta", "ü")
            .key("k")
    }

    #[test]
    fn a_round_trip_is_exact_also_as_a_copy() {
        for envelope in [full(), Envelope::new("a", "").source("s"), full().edit(|p| p.content_type = None)] {
            let letter = message_out::encode(&envelope, &CopyState::default(), &SendOptions::default()).unwrap();
            let (headers, body) = letter.as_request().unwrap();
            let first = received(&headers, body);
            let decoded = decode(&first, &Source::queue("q"));
            assert_eq!((decoded.malformed, decoded.envelope), (None, envelope.clone()));

            let carried = CopyState::new(1, 2);
            let copy = CopyFields { id: "copy", session: None, left: None, redrive: false };
            let options = SendOptions { copy: Some(copy), ..SendOptions::default() };
            let copy = message_out::copy(&first, &envelope, &carried, &options).unwrap();
            let (headers, body) = copy.as_request().unwrap();
            let decoded = decode(&received(&headers, body), &Source::queue("q"));
            assert_eq!((decoded.carried, decoded.envelope), (carried, envelope));
        }
    }

    #[test]
    fn foreign_messages() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-type", "text/csv"),
            ("tenant", "\"acme\""),
            ("count", "-7"),
            ("deadletterreason", "\"TTLExpiredException\""),
            (
                "brokerproperties",
                r#"{"DeliveryCount":3,"SequenceNumber":72057594037927937,"EnqueuedTimeUtc":"Wed, 02 Jul 2014 01:32:27 GMT","Other":[1]}"#,
            ),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let native = received(&headers, Bytes::from_static(b"\xff"));
        assert_eq!(native.broker.delivery_count, Some(3));
        let dead = Source::queue("q").dead_letters();
        let envelope = decode(&native, &dead).envelope;
        assert_eq!((&*envelope.id, envelope.headers.get("tenant")), ("72057594037927937", Some("acme")));
        assert_eq!(envelope.time.unwrap().unix_timestamp(), 1_404_264_747);
        assert_eq!(envelope.headers.len(), 2);
        assert_eq!(dead_letter_of(&native, &CopyState::default(), &dead).reason.as_deref(), Some("expired"));
        assert!(!is_copied("deadletterreason") && !is_copied("polybus-hop") && is_copied("polybus-headers"));
    }

    #[test]
    fn values() {
        for (value, text) in [("\"a\\u00fc\"", "aü"), ("\"a\\x\"", "a\\x"), ("-7", "-7"), ("\"", "")] {
            assert_eq!(property_text(value), text);
        }
    }
}
