//! A message as an answer over HTTP brings it.

use std::borrow::Cow;

use bytes::Bytes;
use hyper::{HeaderMap, header::CONTENT_TYPE};
use polybus_core::{
    DeadLetter, Source,
    cloudevents::{self, Decoded, Wire},
};
use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use crate::envelope;

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
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) body: Bytes,
}

/// What the broker says. Numbers are as wide as the service makes them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Broker {
    /// This hand-over included.
    pub(crate) delivery_count: Option<u32>,
    sequence_number: Option<i64>,
    enqueued_time_utc: Option<String>,
    message_id: Option<String>,
    label: Option<String>,
    correlation_id: Option<String>,
    reply_to: Option<String>,
    to: Option<String>,
}

impl Broker {
    /// What belongs to the message.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let fields = [
            ("MessageId", &self.message_id),
            ("Label", &self.label),
            ("CorrelationId", &self.correlation_id),
            ("ReplyTo", &self.reply_to),
            ("To", &self.to),
        ];
        fields.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)))
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
            properties: properties.map(|(name, value)| (name.as_str().to_owned(), plain(text(value)))).collect(),
            body,
        }
    }

    fn property(&self, name: &str) -> Option<&str> {
        let found = self.properties.iter().find(|(own, _)| own.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// A property's value: text stands in quotes.
fn plain(value: String) -> String {
    if !value.starts_with('"') {
        return value;
    }
    serde_json::from_str(&value).unwrap_or_else(|_| value.trim_matches('"').to_owned())
}

/// Reads a message of any origin; never fails.
pub(crate) fn decode(native: &RestNative, source: &Source) -> Decoded {
    let own = |name: &str| {
        !(source.is_dead_letters()
            && [envelope::REASON, envelope::DETAIL].iter().any(|broker| name.eq_ignore_ascii_case(broker)))
    };
    let mut headers: Vec<_> = native.properties.iter().filter(|(name, _)| own(name)).collect();
    // Headers of HTTP have no order among them; what was not sorted says so.
    headers.sort_by(|(a, _), (b, _)| a.cmp(b));
    let sequence = native.broker.sequence_number.map(|n| n.to_string());
    let enqueued = native.broker.enqueued_time_utc.as_deref();
    cloudevents::decode(Wire {
        content_type: native.property(envelope::CONTENT_TYPE).or(native.content_type.as_deref()),
        headers: headers.into_iter().map(|(name, value)| (Cow::Borrowed(&**name), Cow::Borrowed(&**value))).collect(),
        body: native.body.clone(),
        id: native.broker.message_id.as_deref().or(sequence.as_deref()),
        time: enqueued.and_then(|at| OffsetDateTime::parse(at, &Rfc2822).ok()),
        address: &source.address().to_string(),
    })
}

/// How a message came to the dead letters of `source`: as polybus told, completed by what the broker tells.
pub(crate) fn death(native: &RestNative, told: Option<Box<DeadLetter>>, source: &Source) -> Box<DeadLetter> {
    let mut death = told.unwrap_or_default();
    death.reason = native.property(envelope::REASON).map(|r| envelope::named(r).into()).or(death.reason);
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
    use polybus_core::{Envelope, cloudevents::Carried};

    use super::*;
    use crate::{envelope::Postage, rest_letter};

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
            let letter = rest_letter::encode(&envelope, &Carried::default(), &Postage::default()).unwrap();
            let (headers, body) = letter.alone().unwrap();
            let first = came(&headers, body);
            let decoded = decode(&first, &Source::queue("q"));
            assert_eq!((decoded.malformed, decoded.envelope), (None, envelope.clone()));

            let carried = Carried::new(1, 2);
            let copy = rest_letter::copy(&first, &envelope, &carried, &Postage::default()).unwrap();
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
        assert_eq!(death(&native, None, &dead).reason.as_deref(), Some("expired"));
        assert!(!copied("deadletterreason") && !copied("polybus-hop") && copied("polybus-headers"));
    }

    #[test]
    fn values() {
        for (value, text) in [("\"a\\u00fc\"", "aü"), ("\"a\\x\"", "a\\x"), ("-7", "-7"), ("\"", "")] {
            assert_eq!(plain(value.into()), text);
        }
    }
}
