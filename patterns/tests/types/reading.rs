//! Reading one message: of each version, under other names, by other codecs, and what is none.

use bytes::Bytes;
use polybus_core::{
    Envelope, Error, ErrorKind, Event, Result,
    message::{
        Codec, JsonCodec,
        cloudevents::{WireMessage, decode},
    },
};
use polybus_patterns::types::{DecodeFailure, Types, UpcastError};
use serde::{Serialize, de::DeserializeOwned};

use crate::events::{Paid, PlacedV1, PlacedV2, PlacedV3, SECRET, cents, currency, types_v2, types_v3, v1, v2, v3};

#[test]
fn messages_of_all_versions_become_the_newest() {
    let types = types_v3();
    types.check().unwrap();
    for old in [Envelope::event(&v1("o")), Envelope::event(&v2("o")), Envelope::event(&v3("o"))] {
        assert_eq!(types.decode::<PlacedV3>(&old.unwrap()).unwrap(), v3("o"));
    }
}

#[test]
fn no_version_and_version_0_are_version_1() {
    let old = Envelope::event(&v1("o")).unwrap();
    for version in [None, Some(0), Some(1)] {
        let old = old.clone().edit(|fields| fields.schema_version = version);
        assert_eq!(types_v3().decode::<PlacedV3>(&old).unwrap(), v3("o"));
        assert_eq!(Types::new().event::<PlacedV1>().decode::<PlacedV1>(&old).unwrap(), v1("o"));
    }
}

#[test]
fn a_newer_version_is_told_with_both_versions() {
    let newer = Envelope::event(&v3("o")).unwrap();
    let failure = types_v2().decode::<PlacedV2>(&newer).unwrap_err();
    let DecodeFailure::UnknownVersion { ref event_type, found, known, .. } = failure else { panic!("{failure:?}") };
    assert_eq!((&**event_type, found, known), ("order.placed", 3, 2));
    let text = failure.to_string();
    assert!(text.contains("version 3 of \"order.placed\"") && text.contains("up to 2"), "{text}");
    let most = types_v2().decode::<PlacedV2>(&newer.schema_version(u32::MAX));
    assert!(matches!(most, Err(DecodeFailure::UnknownVersion { found: u32::MAX, .. })));
}

/// Read as version 1 it would be a wrong event rather than none.
#[test]
fn a_version_that_is_no_number_is_no_version_1() {
    for text in ["3.1", "v2", "4294967296", "-1", ""] {
        let headers = [
            ("specversion", "1.0"),
            ("id", "7"),
            ("source", "/shop"),
            ("type", "order.placed"),
            ("datacontenttype", "application/json"),
            ("schemaversion", text),
        ];
        let headers = headers.map(|(name, value)| (format!("cloudEvents:{name}").into(), value.into())).into();
        let wire = WireMessage { headers, body: r#"{"order":"o","euros":12}"#.into(), ..WireMessage::default() };
        let message = decode(wire).envelope;
        let read = types_v3().decode::<PlacedV3>(&message);
        assert!(matches!(read, Err(DecodeFailure::UnreadableVersion { .. })), "{text}: {read:?}");
    }
}

#[test]
fn unknown_types_and_types_of_others_differ() {
    let types = types_v3().event::<Paid>();
    let unknown = types.decode::<PlacedV3>(&Envelope::new("order.shipped", "{}"));
    assert!(matches!(unknown, Err(DecodeFailure::UnknownType { .. })), "{unknown:?}");
    let other = types.decode::<PlacedV3>(&Envelope::event(&Paid { order: "o".into() }).unwrap());
    assert!(matches!(other, Err(DecodeFailure::OtherType { expected: "order.placed", .. })), "{other:?}");
    // The same event type, and another Rust type than the one whose upcasters there are.
    let wrong = types.decode::<PlacedV2>(&Envelope::event(&v2("o")).unwrap());
    assert!(matches!(wrong, Err(DecodeFailure::OtherType { .. })), "{wrong:?}");
    let foreign = types.decode::<PlacedV3>(&Envelope::new(Envelope::FOREIGN_TYPE, "{}"));
    assert!(matches!(foreign, Err(DecodeFailure::UnknownType { .. })), "{foreign:?}");
}

#[test]
fn aliases_and_foreign_messages_have_the_versions_of_their_type() {
    let types = types_v3().alias::<PlacedV3>("order.created").foreign_as::<PlacedV3>();
    types.check().unwrap();
    let renamed = |message: Envelope| message.edit(|fields| fields.event_type = "order.created".into());
    assert_eq!(types.decode::<PlacedV3>(&renamed(Envelope::event(&v2("o")).unwrap())).unwrap(), v3("o"));
    assert_eq!(types.decode::<PlacedV3>(&renamed(Envelope::event(&v3("o")).unwrap())).unwrap(), v3("o"));
    let body = serde_json::to_vec(&v1("o")).unwrap();
    let foreign = decode(WireMessage { body: body.into(), ..WireMessage::default() }).envelope;
    assert_eq!(&*foreign.event_type, Envelope::FOREIGN_TYPE);
    assert_eq!(types.decode::<PlacedV3>(&foreign).unwrap(), v3("o"));
}

#[test]
fn retired_versions_are_told_and_the_others_read() {
    let types = Types::new().event::<PlacedV3>().upcast::<PlacedV3>(2, currency).oldest::<PlacedV3>(2);
    types.check().unwrap();
    assert_eq!(types.decode::<PlacedV3>(&Envelope::event(&v2("o")).unwrap()).unwrap(), v3("o"));
    let failure = types.decode::<PlacedV3>(&Envelope::event(&v1("o")).unwrap()).unwrap_err();
    assert!(matches!(failure, DecodeFailure::RetiredVersion { found: 1, oldest: 2, .. }), "{failure:?}");
}

#[test]
fn an_upcaster_gets_the_attributes_of_its_message() {
    let types = Types::new().event::<PlacedV2>().upcast::<PlacedV2>(1, |mut json, message| {
        json["order"] = message.headers.get("order").ok_or("no header")?.into();
        cents(json, message)
    });
    let old = Envelope::event(&v1("o")).unwrap().header("order", "of the header");
    assert_eq!(types.decode::<PlacedV2>(&old).unwrap().order, "of the header");
}

/// Fails in some way with a payload that holds the secret.
fn fails(body: &str, version: u32, types: Types) -> DecodeFailure {
    let message = Envelope::new("order.placed", body.to_owned()).schema_version(version);
    let failure = types.decode::<PlacedV3>(&message).unwrap_err();
    assert!(!format!("{failure:?} {failure}").contains(SECRET), "{failure:?}");
    let error = failure.clone().dead_letter();
    assert!(error.is_permanent() && error.to_string() == failure.to_string());
    failure
}

#[test]
fn what_does_not_decode_is_malformed_and_quotes_nothing() {
    for version in [1, 2, 3] {
        for body in [format!("{{\"order\":\"{SECRET}"), SECRET.to_owned(), String::new()] {
            let failure = fails(&body, version, types_v3());
            assert!(
                matches!(failure, DecodeFailure::Malformed(ref e) if e.kind() == ErrorKind::Malformed),
                "{failure:?}"
            );
        }
    }
    let failure = fails(&format!(r#"{{"order":"{SECRET}","cents":"{SECRET}","currency":"EUR"}}"#), 3, types_v3());
    assert!(matches!(failure, DecodeFailure::Malformed(_)), "{failure:?}");
    let cbor = Envelope::event(&v2("o")).unwrap().content_type("application/cbor");
    let failure = types_v3().decode::<PlacedV3>(&cbor).unwrap_err();
    assert!(failure.to_string().contains("application/cbor") && failure.reason() == "malformed", "{failure}");
}

#[test]
fn upcasters_that_fail_panic_or_miss_are_told_with_their_step_and_quote_nothing() {
    let body = format!(r#"{{"order":"{SECRET}","euros":12}}"#);
    let with = |upcaster: fn(serde_json::Value) -> Result<serde_json::Value, UpcastError>| {
        Types::new()
            .event::<PlacedV3>()
            .upcast::<PlacedV3>(1, cents)
            .upcast::<PlacedV3>(2, move |json, _| upcaster(json))
    };
    let step = |failure: DecodeFailure| match failure {
        DecodeFailure::UpcastFailed { from, to, error, .. } => (from, to, error.to_string()),
        other => panic!("{other:?}"),
    };
    let failed = step(fails(&body, 1, with(|_| Err("what a pity".into()))));
    assert_eq!(failed, (2, 3, "what a pity".into()));
    let failed = step(fails(&body, 1, with(|json| Ok(serde_json::from_value::<u64>(json["order"].clone())?.into()))));
    assert_eq!(failed, (2, 3, "a part of the payload is not of the type that it should be".into()));
    let failed = step(fails(&body, 1, with(|json| panic!("{json}"))));
    assert_eq!(failed, (2, 3, "the upcaster panicked".into()));
    let failed = step(fails(&body, 1, Types::new().event::<PlacedV3>().upcast::<PlacedV3>(1, cents)));
    assert_eq!(failed, (2, 3, "there is no upcaster".into()));
    // What comes out is no event: the way from the message's version to the newest has failed.
    let (from, to, text) = step(fails(&body, 1, with(Ok)));
    assert!((from, to) == (1, 3) && text.contains("missing field `currency`"), "{text}");
    let (_, _, text) = step(fails(
        &body,
        1,
        with(|mut json| {
            json["currency"] = json["order"].clone();
            json["cents"] = json["order"].clone();
            Ok(json)
        }),
    ));
    assert!(text.contains("expected u64"), "{text}");
}

/// JSON backwards: enough to be another format.
#[derive(Clone, Copy)]
struct Reversed;

impl Codec for Reversed {
    fn content_type(&self) -> &str {
        "application/x-reversed"
    }
    fn reads(&self, content_type: Option<&str>) -> bool {
        content_type == Some(self.content_type())
    }
    fn encode<T: Serialize>(&self, value: &T) -> Result<Bytes> {
        Ok(JsonCodec.encode(value)?.iter().rev().copied().collect())
    }
    fn decode<T: DeserializeOwned>(&self, _: Option<&str>, data: &[u8]) -> Result<T> {
        JsonCodec.decode(None, &data.iter().rev().copied().collect::<Vec<u8>>())
    }
}

#[test]
fn messages_of_another_codec_are_read_and_made_newer() {
    let types = Types::codec((JsonCodec, Reversed))
        .event::<PlacedV3>()
        .upcast::<PlacedV3>(1, cents)
        .upcast::<PlacedV3>(2, currency);
    for message in [
        Envelope::event_with(&Reversed, &v3("o")),
        Envelope::event_with(&Reversed, &v2("o")),
        Envelope::event_with(&Reversed, &v1("o")),
        Envelope::event(&v1("o")),
    ] {
        assert_eq!(types.decode::<PlacedV3>(&message.unwrap()).unwrap(), v3("o"));
    }
}

/// A codec of a binary format that does not describe itself.
struct Blind;

impl Codec for Blind {
    fn content_type(&self) -> &str {
        "application/x-blind"
    }
    fn reads(&self, _: Option<&str>) -> bool {
        true
    }
    fn encode<T: Serialize>(&self, value: &T) -> Result<Bytes> {
        JsonCodec.encode(value)
    }
    fn decode<T: DeserializeOwned>(&self, content_type: Option<&str>, data: &[u8]) -> Result<T> {
        match std::any::type_name::<T>() == std::any::type_name::<serde_json::Value>() {
            true => Err(Error::new(ErrorKind::Malformed, "it does not say what it is")),
            false => JsonCodec.decode(content_type, data),
        }
    }
}

/// It is also the proof that a message of the newest version makes no way around by a JSON value.
#[test]
fn the_newest_version_needs_no_json_value() {
    let types = Types::codec(Blind).event::<PlacedV3>().upcast::<PlacedV3>(1, cents).upcast::<PlacedV3>(2, currency);
    assert_eq!(types.decode::<PlacedV3>(&Envelope::event_with(&Blind, &v3("o")).unwrap()).unwrap(), v3("o"));
    let old = types.decode::<PlacedV3>(&Envelope::event_with(&Blind, &v2("o")).unwrap());
    assert!(matches!(old, Err(DecodeFailure::Malformed(_))), "{old:?}");
}

#[test]
fn a_clone_is_its_own() {
    let first = types_v3();
    let second = first.clone().event::<Paid>();
    let paid = Envelope::event(&Paid { order: "o".into() }).unwrap();
    assert!(second.decode::<Paid>(&paid).is_ok() && first.decode::<Paid>(&paid).is_err());
    assert_eq!(Paid::TYPE, "order.paid");
}
