//! A message as an answer over HTTP brings it.

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
    message::{annotations::Told, envelope},
    topology::sql_filter::TYPE,
};

/// Headers of HTTP and of the service itself. What else comes is a property.
const HTTP: &[&str] = &[
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
pub(crate) struct RestNative {
    pub(crate) content_type: Option<String>,
    pub(crate) broker: Broker,
    /// As they came: text stands in quotes, other values do not.
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

/// What the broker says. Numbers are as wide as the service makes them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Broker {
    /// This hand-over included.
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
    session_id: Option<String>,
    partition_key: Option<String>,
}

impl Broker {
    /// What belongs to the message.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (&'static str, &str)> {
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

    pub(crate) fn told(&self) -> Told {
        let until = self.locked_until_utc.as_deref();
        let locked_until = until.and_then(|at| OffsetDateTime::parse(at, &Rfc2822).ok());
        Told { sequence: self.sequence_number, enqueued: self.enqueued(), locked_until }
    }

    /// How long its sender lets it live, if that is not for ever.
    pub(crate) fn lives(&self) -> Option<time::Duration> {
        // The service writes its largest span, ten thousand years, for ever.
        self.time_to_live.filter(|s| (0.0..1e10).contains(s)).map(time::Duration::seconds_f64)
    }
}

impl RestNative {
    pub(crate) fn new(headers: &HeaderMap, body: Bytes) -> Self {
        let text = |value: &hyper::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let told = headers.get("brokerproperties").map(text);
        let broker = told.and_then(|told| {
            let read = serde_json::from_str(&told);
            read.inspect_err(|e| tracing::warn!(error = %e, "the broker's properties of a message cannot be read")).ok()
        });
        let properties = headers.iter().filter(|(name, _)| !HTTP.contains(&name.as_str()));
        Self {
            content_type: headers.get(CONTENT_TYPE).map(text),
            broker: broker.unwrap_or_default(),
            properties: properties.map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
            body,
        }
    }

    /// What the broker tells of a message's place and times, read from the answer's headers alone.
    pub(crate) fn told(headers: &HeaderMap) -> Told {
        let told =
            headers.get("brokerproperties").and_then(|told| serde_json::from_slice::<Broker>(told.as_bytes()).ok());
        told.map(|broker| broker.told()).unwrap_or_default()
    }

    pub(crate) fn property(&self, name: &str) -> Option<Cow<'_, str>> {
        let found = self.properties.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| plain(value))
    }

    /// What was sent, as far as the broker tells it.
    pub(crate) fn message_id(&self) -> Option<Cow<'_, str>> {
        self.property(envelope::ORIGINAL_ID).or(self.broker.message_id.as_deref().map(Cow::Borrowed))
    }
}

/// A property's value: text stands in quotes.
fn plain(value: &str) -> Cow<'_, str> {
    if !value.starts_with('"') {
        return value.into();
    }
    serde_json::from_str::<String>(value).map_or_else(|_| value.trim_matches('"').into(), Cow::Owned)
}

/// Reads a message of any origin; never fails.
pub(crate) fn decode(native: &RestNative, source: &Source) -> DecodedMessage {
    let own = |name: &str| {
        !(source.is_dead_letters()
            && [envelope::REASON, envelope::DETAIL].iter().any(|broker| name.eq_ignore_ascii_case(broker)))
    };
    let mut headers: Vec<_> = native.properties.iter().filter(|(name, _)| own(name)).collect();
    // Headers of HTTP have no order among them; what was not sorted says so.
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
    let sequence = native.broker.sequence_number.map(|n| n.to_string());
    let id = native.message_id();
    let told = native.property(envelope::ORIGINAL_TIME);
    let time = told.and_then(|at| OffsetDateTime::parse(&at, &Rfc3339).ok()).or_else(|| native.broker.enqueued());
    let long = native.property(envelope::CONTENT_TYPE);
    cloudevents::decode(WireMessage {
        content_type: long.as_deref().or(native.content_type.as_deref()),
        headers: headers.into_iter().map(|(name, value)| (Cow::Borrowed(&**name), plain(value))).collect(),
        body: native.body.clone(),
        id: id.as_deref().or(sequence.as_deref()),
        time,
        address: &source.address().to_string(),
        correlation_id: native.broker.correlation_id.as_deref(),
        subject: native.broker.label.as_deref().filter(|label| native.property(TYPE).as_deref() != Some(label)),
        native: others(native),
    })
}

/// The native properties that polybus does not write itself and that have no field of their own, by their portable names.
fn others(native: &RestNative) -> Vec<(&'static str, Cow<'_, str>)> {
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
    let is_event = native.property(TYPE).is_some()
        || native.content_type.as_deref().is_some_and(|own| own.starts_with(STRUCTURED));
    if let Some(lives) = broker.lives().filter(|_| !is_event) {
        others.push(("expiration", lives.whole_milliseconds().to_string().into()));
    }
    others
}

/// How a message came to the dead letters of `source`: as polybus told, completed by what the broker tells.
pub(crate) fn death(native: &RestNative, carried: &CopyState, source: &Source) -> Box<DeadLetter> {
    let mut death = carried.dead_letter.clone().unwrap_or_default();
    carried.tell_redriven(&mut death);
    death.reason = native.property(envelope::REASON).map(|r| envelope::named(&r).into()).or(death.reason);
    let detail = native.property(envelope::DETAIL).filter(|d| !d.is_empty());
    death.detail = detail.map(Into::into).or(death.detail);
    death.origin = death.origin.or_else(|| Some(source.live().to_string().into()));
    death
}

/// Whether a copy keeps this property.
pub(crate) fn copied(name: &str) -> bool {
    let broker = [envelope::TARGET, envelope::REASON, envelope::DETAIL];
    !cloudevents::is_carried(name) && !broker.iter().any(|own| name.eq_ignore_ascii_case(own))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use polybus_core::Envelope;

    use super::*;
    use crate::{
        message::envelope::{CopyOf, Postage},
        rest::message_out,
    };

    fn came(headers: &HeaderMap, body: Bytes) -> RestNative {
        let mut headers = headers.clone();
        for (name, value) in
            [("date", "Wed, 02 Jul 2014 01:32:27 GMT"), ("server", "x"), ("location", "/q/messages/1/2")]
        {
            headers.insert(name, value.parse().unwrap());
        }
        RestNative::new(&headers, body)
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
            let letter = message_out::encode(&envelope, &CopyState::default(), &Postage::default()).unwrap();
            let (headers, body) = letter.alone().unwrap();
            let first = came(&headers, body);
            let decoded = decode(&first, &Source::queue("q"));
            assert_eq!((decoded.malformed, decoded.envelope), (None, envelope.clone()));

            let carried = CopyState::new(1, 2);
            let copy = CopyOf { id: "copy", session: None, left: None, redrive: false };
            let postage = Postage { copy: Some(copy), ..Postage::default() };
            let copy = message_out::copy(&first, &envelope, &carried, &postage).unwrap();
            let (headers, body) = copy.alone().unwrap();
            let decoded = decode(&came(&headers, body), &Source::queue("q"));
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
        let native = came(&headers, Bytes::from_static(b"\xff"));
        assert_eq!(native.broker.delivery_count, Some(3));
        let dead = Source::queue("q").dead_letters();
        let envelope = decode(&native, &dead).envelope;
        assert_eq!((&*envelope.id, envelope.headers.get("tenant")), ("72057594037927937", Some("acme")));
        assert_eq!(envelope.time.unwrap().unix_timestamp(), 1_404_264_747);
        assert_eq!(envelope.headers.len(), 2);
        assert_eq!(death(&native, &CopyState::default(), &dead).reason.as_deref(), Some("expired"));
        assert!(!copied("deadletterreason") && !copied("polybus-hop") && copied("polybus-headers"));
    }

    #[test]
    fn values() {
        for (value, text) in [("\"a\\u00fc\"", "aü"), ("\"a\\x\"", "a\\x"), ("-7", "-7"), ("\"", "")] {
            assert_eq!(plain(value), text);
        }
    }
}
