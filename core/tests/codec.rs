//! The CloudEvents codec, by property: exact round trips, and no input that panics. `PROPTEST_CASES` sets how many.

#![allow(clippy::unwrap_used)]

use std::{borrow::Cow, collections::BTreeMap};

use bytes::Bytes;
use polybus_core::{
    Envelope, Headers,
    driver::DeadLetter,
    message::{
        EnvelopeFields,
        cloudevents::{
            CopyState, DecodedMessage, STRUCTURED, WireMessage, WireNames, decode, encode_binary,
            encode_binary_for_http, encode_binary_named, encode_carried, encode_structured, is_carried,
        },
    },
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use time::{Duration, OffsetDateTime, UtcOffset};

/// Any text, with what is awkward in JSON, XML and headers more often than by chance.
fn text() -> impl Strategy<Value = Box<str>> {
    let awkward = select(vec![
        "",
        " ",
        "\"",
        "\\",
        "\\u0000",
        "null",
        "{}",
        "a,b",
        "\u{0}",
        "\u{b}",
        "\r\n",
        "\u{7f}",
        "\u{FFFE}x",
        "\u{FFFF}",
        "\u{FEFF}",
        "\u{1FFFE}",
        "é😀",
    ]);
    prop_oneof![3 => any::<String>().prop_map(Into::into), 1 => vec(awkward, 0..4).prop_map(|v| v.concat().into())]
}

fn filled() -> impl Strategy<Value = Box<str>> {
    text().prop_map(|t| if t.is_empty() { "x".into() } else { t })
}

fn moment() -> impl Strategy<Value = OffsetDateTime> {
    let days = -700_000..2_900_000i64;
    (days, 0..86_400i64, 0..1_000_000_000i64, -23i8..=23, 0..60i8).prop_map(|(days, seconds, nanos, hours, minutes)| {
        let at = OffsetDateTime::UNIX_EPOCH
            + Duration::days(days)
            + Duration::seconds(seconds)
            + Duration::nanoseconds(nanos);
        let minutes = if hours < 0 { -minutes } else { minutes };
        let local = at.to_offset(UtcOffset::from_hms(hours, minutes, 0).unwrap());
        if (0..=9999).contains(&local.year()) { local } else { at }
    })
}

fn content_type() -> impl Strategy<Value = Option<Box<str>>> {
    option::weighted(
        0.9,
        prop_oneof![
            4 => select(vec![
                "application/json", "application/vnd.x+json; charset=utf-8", "text/plain", "application/octet-stream", "",
                "application/cloudevents+json", "Application/CloudEvents-batch+json", "TEXT/JSON",
            ]).prop_map(Into::into),
            1 => text(),
        ],
    )
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        Just("-0.0e+5".to_owned()),
        Just("1e999".to_owned()),
        Just(r#""\ud800\/\u0000""#.to_owned()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
        text().prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    let space = || select(vec!["", "", " ", "\n\t", "\r"]);
    let value = leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            (vec(inner.clone(), 0..4), space()).prop_map(|(v, s)| format!("[{s}{}{s}]", v.join(&format!("{s},")))),
            (vec((text(), inner), 0..4), space()).prop_map(|(v, s)| {
                let members: Vec<String> =
                    v.iter().map(|(k, v)| format!("{}{s}:{v}{s}", serde_json::to_string(k).unwrap())).collect();
                format!("{{{}}}", members.join(","))
            }),
        ]
    });
    (space(), value, space()).prop_map(|(a, v, b)| format!("{a}{v}{b}"))
}

fn data() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        1 => Just(Bytes::new()),
        3 => vec(any::<u8>(), 0..300).prop_map(Into::into),
        3 => text().prop_map(|t| Bytes::from(t.into_string())),
        3 => json().prop_map(Into::into),
    ]
}

/// Unique ignoring case, as `Envelope::check` wants it.
fn headers(key: &'static str, value: impl Strategy<Value = Box<str>>) -> impl Strategy<Value = Headers> {
    vec((key, value), 0..8).prop_map(|pairs| {
        let mut headers = Headers::new();
        for (key, value) in pairs {
            if headers.get(&key).is_none() {
                headers.push(key, value);
            }
        }
        headers
    })
}

fn envelope() -> impl Strategy<Value = Envelope> {
    let names = (
        "[A-Za-z0-9_-]{1,20}(\\.[A-Za-z0-9_-]{1,20}){0,3}",
        filled(),
        filled(),
        option::of(moment()),
        option::of(moment()),
    );
    let optional = vec(option::of(text()), 6..=6);
    let key = option::of("\\PC{1,60}".prop_filter("1 to 256 bytes", |k| (1..=256).contains(&k.len())));
    let numbers = (option::of(any::<u32>()), option::of(any::<u64>()));
    let extensions = headers("x[a-z0-9]{0,12}", text());
    let application = headers("[A-Za-wyz0-9_.-][A-Za-z0-9_.-]{0,20}", text());
    (names, optional, key, numbers, extensions, application, content_type(), data()).prop_map(
        |(names, mut optional, key, numbers, extensions, headers, content_type, data)| {
            let (event_type, id, source, time, expires_at) = names;
            Envelope::bare(event_type, data).edit(|e| {
                (e.id, e.source, e.time, e.expires_at) = (id, source, time, expires_at);
                e.subject = optional.pop().flatten();
                e.data_schema = optional.pop().flatten();
                e.correlation_id = optional.pop().flatten();
                e.causation_id = optional.pop().flatten();
                e.traceparent = optional.pop().flatten();
                e.tracestate = optional.pop().flatten();
                e.key = key.map(Into::into);
                (e.schema_version, e.sequence) = numbers;
                (e.extensions, e.headers, e.content_type) = (extensions, headers, content_type);
            })
        },
    )
}

fn valid() -> impl Strategy<Value = Envelope> {
    envelope().prop_filter("valid", |e| e.check().is_ok())
}

fn carried() -> impl Strategy<Value = CopyState> {
    let dead = (vec(option::of(text()), 3..=3), option::of(any::<u32>()), option::of(moment()));
    let dead = option::of(dead).prop_map(|dead| {
        let (mut text, attempt, time) = dead?;
        let mut dead = DeadLetter::default();
        dead.reason = text.pop().flatten();
        dead.detail = text.pop().flatten();
        dead.origin = text.pop().flatten();
        (dead.attempt, dead.time) = (attempt, time);
        (dead != DeadLetter::default()).then(|| Box::new(dead))
    });
    (prop_oneof![Just(0), any::<u32>()], prop_oneof![Just(0), any::<u32>()], dead).prop_map(|(hop, attempts, dead)| {
        let mut carried = CopyState::new(hop, attempts);
        carried.dead_letter = dead;
        carried
    })
}

type Pairs = Vec<(String, String)>;

fn put_all(encode: impl FnOnce(&mut dyn FnMut(&str, &str))) -> Pairs {
    let mut pairs = Pairs::new();
    encode(&mut |name, value| pairs.push((name.into(), value.into())));
    pairs
}

fn read<'a>(content_type: Option<&'a str>, headers: &'a Pairs, body: Bytes) -> DecodedMessage {
    let headers = headers.iter().map(|(k, v)| (Cow::Borrowed(&**k), Cow::Borrowed(&**v))).collect();
    decode(WireMessage {
        content_type,
        headers,
        body,
        id: Some("broker-id"),
        time: None,
        address: "queue:q",
        ..WireMessage::default()
    })
}

/// Equal in every field, the offsets of times and the order of headers too.
fn same(seen: &EnvelopeFields, sent: &EnvelopeFields) -> Result<(), TestCaseError> {
    prop_assert_eq!(seen, sent);
    prop_assert_eq!(seen.time.map(OffsetDateTime::offset), sent.time.map(OffsetDateTime::offset));
    prop_assert_eq!(seen.expires_at.map(OffsetDateTime::offset), sent.expires_at.map(OffsetDateTime::offset));
    Ok(())
}

fn xml_takes(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// Header names that mean something to the reader, and some that do not.
fn wire_name() -> impl Strategy<Value = String> {
    let marks = vec![
        "specversion",
        "id",
        "type",
        "source",
        "time",
        "subject",
        "schemaversion",
        "sequence",
        "datacontenttype",
        "expirytime",
        "data",
        "",
        "comexample",
        "polybushop",
    ];
    let prefixes = vec![
        "cloudEvents:",
        "cloudEvents:",
        "cloudEvents_",
        "CLOUDEVENTS:",
        "polybus-",
        "ce-",
        "ce-",
        "CE_",
        "",
        "native.",
    ];
    let own = vec![
        "polybus-hop",
        "polybus-attempts",
        "polybus-headers",
        "polybus-order",
        "polybus-extension-order",
        "polybus-mode",
        "polybus-dead-time",
        "polybus-dead-attempt",
        "polybus-",
        "x-death",
        "x-delivery-note",
        "x-opt-tenant",
        "cloudEvents",
        "cloudEvents:é",
    ];
    prop_oneof![
        4 => (select(prefixes), select(marks)).prop_map(|(a, b)| format!("{a}{b}")),
        2 => select(own).prop_map(Into::into),
        1 => any::<String>(),
    ]
}

fn wire_value() -> impl Strategy<Value = String> {
    let awkward = vec![
        "1.0",
        "1.0",
        "1.0",
        "0.3",
        "2.0",
        "a",
        "-1",
        "007",
        "99999999999999999999999",
        "2024-01-01T00:00:00Z",
        "2016-12-31T23:59:60Z",
        "9999-12-31T23:59:59+23:59",
        "[[\"a\",\"b\"]]",
        "binary",
        "b,a,,a",
    ];
    prop_oneof![3 => select(awkward).prop_map(Into::into), 1 => any::<String>()]
}

fn structured_content_type() -> impl Strategy<Value = Option<String>> {
    let types = vec![
        STRUCTURED,
        STRUCTURED,
        "application/cloudevents",
        "application/cloudevents+json; charset=UTF-8",
        "application/json",
    ];
    option::of(prop_oneof![select(types).prop_map(Into::into), any::<String>()])
}

/// What holds for whatever was read.
fn sound(decoded: &DecodedMessage) -> Result<(), TestCaseError> {
    let envelope = &decoded.envelope;
    prop_assert!(!envelope.id.is_empty() && !envelope.event_type.is_empty() && !envelope.source.is_empty());
    if let Some(reason) = &decoded.malformed {
        prop_assert_eq!(&*envelope.event_type, Envelope::FOREIGN_TYPE);
        prop_assert!((1..200).contains(&reason.len()), "{}", reason);
    }
    Ok(())
}

/// A copy of whatever was read is read as the same again, in both modes.
fn survives_copying(decoded: &DecodedMessage) -> Result<(), TestCaseError> {
    let envelope = &decoded.envelope;
    for names in [WireNames::AMQP, WireNames::CE, WireNames::HTTP] {
        let mut native = put_all(|put| encode_binary_named(envelope, &decoded.carried, &names, put));
        if names.http {
            native.sort();
        }
        let again = read(envelope.content_type.as_deref(), &native, envelope.data.clone());
        prop_assert_eq!(&again.malformed, &None);
        same(&again.envelope, envelope)?;
    }
    let document = encode_structured(envelope, &decoded.carried);
    let again = read(Some(STRUCTURED), &Pairs::new(), document.into());
    prop_assert_eq!(&again.malformed, &None);
    same(&again.envelope, envelope)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn binary_mode_round_trips(sent in valid(), with in carried()) {
        let native = put_all(|put| encode_binary(&sent, &with, put));
        let seen = read(sent.content_type.as_deref(), &native, sent.data.clone());
        prop_assert_eq!(&seen.malformed, &None);
        same(&seen.envelope, &sent)?;
        prop_assert_eq!(&seen.carried, &with);
        let names: std::collections::BTreeSet<String> = native.iter().map(|(k, _)| k.to_ascii_lowercase()).collect();
        prop_assert_eq!(names.len(), native.len(), "each native header once");

        let named = put_all(|put| encode_binary_named(&sent, &with, &WireNames::CE, put));
        let seen = read(sent.content_type.as_deref(), &named, sent.data.clone());
        same(&seen.envelope, &sent)?;
        prop_assert_eq!(&seen.carried, &with);

        let sorted: Pairs = native.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect();
        let seen = read(sent.content_type.as_deref(), &sorted, sent.data.clone());
        same(&seen.envelope, &sent)?;
    }

    #[test]
    fn binary_mode_round_trips_through_headers_of_http(sent in valid(), with in carried()) {
        let native = put_all(|put| encode_binary_for_http(&sent, &with, put));
        let seen = read(sent.content_type.as_deref(), &native, sent.data.clone());
        same(&seen.envelope, &sent)?;
        let token = |name: &String| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        prop_assert!(native.iter().all(|(name, _)| token(name)), "{:?}", native);
        prop_assert!(native.iter().all(|(name, _)| !["date", "host", "x-ms-version"].contains(&&*name.to_lowercase())));

        let lower: BTreeMap<String, String> = native.into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect();
        let lower: Pairs = lower.into_iter().collect();
        let seen = read(sent.content_type.as_deref(), &lower, sent.data.clone());
        prop_assert_eq!(&seen.malformed, &None);
        same(&seen.envelope, &sent)?;
        prop_assert_eq!(&seen.carried, &with);
    }

    #[test]
    fn structured_mode_round_trips(sent in valid(), with in carried()) {
        let document = encode_structured(&sent, &with);
        prop_assert!(document.chars().all(xml_takes), "{:?}", document);
        let value: serde_json::Value = serde_json::from_str(&document.replace("1e999", "1e99").replace("\\ud800", "")).unwrap();
        let names_are_legal = |name: &String| name == "data_base64" || name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        prop_assert!(value.as_object().unwrap().keys().all(names_are_legal));

        let seen = read(Some(STRUCTURED), &Pairs::new(), document.into());
        prop_assert_eq!(&seen.malformed, &None);
        same(&seen.envelope, &sent)?;
        prop_assert_eq!(&seen.carried, &with);
    }

    #[test]
    fn the_carried_headers_alone_round_trip(with in carried()) {
        let native = put_all(|put| encode_carried(&with, put));
        prop_assert!(native.iter().all(|(name, _)| is_carried(name)));
        let seen = read(None, &native, Bytes::new());
        prop_assert_eq!(&seen.carried, &with);
        prop_assert!(seen.envelope.headers.is_empty());
    }

    #[test]
    fn a_native_copy_with_other_carried_headers_is_the_same_message(sent in valid(), with in carried(), next in carried()) {
        let mut native = put_all(|put| encode_binary(&sent, &with, put));
        native.retain(|(name, _)| !is_carried(name));
        native.extend(put_all(|put| encode_carried(&next, put)));
        let seen = read(sent.content_type.as_deref(), &native, sent.data.clone());
        prop_assert_eq!(&seen.malformed, &None);
        same(&seen.envelope, &sent)?;
        prop_assert_eq!(&seen.carried, &next);
    }

    #[test]
    fn any_headers_and_body_are_read(
        headers in vec((wire_name(), wire_value()), 0..12),
        body in prop_oneof![vec(any::<u8>(), 0..200).prop_map(Bytes::from), json().prop_map(Bytes::from)],
        content_type in structured_content_type(),
    ) {
        let decoded = read(content_type.as_deref(), &headers, body.clone());
        sound(&decoded)?;
        survives_copying(&decoded)?;
        if decoded.malformed.is_some() {
            let polybus_own = |name: &str| name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("polybus-"));
            let others: Headers = headers.iter().filter(|(k, _)| !polybus_own(k)).map(|(k, v)| (&**k, &**v)).collect();
            prop_assert_eq!(&decoded.envelope.headers, &others);
            prop_assert_eq!(&decoded.envelope.data, &body);
        }
    }

    #[test]
    fn any_attributes_in_a_document_are_read(
        members in vec((wire_name(), prop_oneof![json(), wire_value().prop_map(|v| serde_json::to_string(&v).unwrap())]), 0..12),
    ) {
        let members: Vec<String> = members.iter().map(|(name, value)| {
            let name = name.trim_start_matches("cloudEvents:").replace("polybus-", "polybus");
            format!("{}:{value}", serde_json::to_string(&name).unwrap())
        }).collect();
        let document = format!(r#"{{"specversion":"1.0","id":"i","type":"t","source":"s",{}}}"#, members.join(","));
        let decoded = read(Some(STRUCTURED), &Pairs::new(), document.into());
        sound(&decoded)?;
        survives_copying(&decoded)?;
    }

    #[test]
    fn a_damaged_document_is_read(
        sent in valid(), with in carried(), at in any::<prop::sample::Index>(), len in 0..4usize, by in vec(any::<u8>(), 0..3), cut in any::<bool>(),
    ) {
        let mut document = encode_structured(&sent, &with).into_bytes();
        let at = at.index(document.len());
        if cut {
            document.truncate(at);
        } else {
            let end = (at + len).min(document.len());
            document.splice(at..end, by);
        }
        let decoded = read(Some(STRUCTURED), &Pairs::new(), document.into());
        sound(&decoded)?;
        survives_copying(&decoded)?;
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(1000)
}
