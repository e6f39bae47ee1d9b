//! The CloudEvents codec over what others send: other producers' habits, and messages that are no events.

#![allow(clippy::unwrap_used)]

#[path = "common/wire.rs"]
mod wire;

use polybus_core::{
    Envelope,
    message::cloudevents::{CopyState, STRUCTURED, WireMessage, WireNames, decode, encode_binary_named},
};
use time::macros::datetime;

use wire::{reason, structured, wire};

/// The document's payload members, and the bytes they mean.
#[test]
fn payloads_of_other_producers() {
    for (members, wanted) in [
        (
            r#""datacontenttype":"application/json","data":{"appinfoA" : "abc", "n": 1.50}"#,
            r#"{"appinfoA" : "abc", "n": 1.50}"#,
        ),
        (r#""datacontenttype":"application/json","data":"I'm just a string""#, r#""I'm just a string""#),
        (r#""data":"no content type is JSON""#, r#""no content type is JSON""#),
        (r#""datacontenttype":"application/vnd.x+json","data":5"#, "5"),
        (r#""datacontenttype":"text/plain","data":"a\u0000b""#, "a\0b"),
        (r#""datacontenttype":"text/plain","data":{"not":"text"}"#, r#"{"not":"text"}"#),
        (r#""datacontenttype":"application/vnd.apache.thrift.binary","data_base64":"aGk=""#, "hi"),
        (r#""datacontenttype":"application/json","data_base64":"aGk""#, "hi"),
        (r#""datacontenttype":"application/json","data":null"#, ""),
        (r#""data":null,"data_base64":"aGk=""#, "hi"),
    ] {
        let body = format!(r#"{{"specversion":"1.0","id":"i","type":"t","source":"s",{members}}}"#);
        let decoded = structured(body.leak());
        assert_eq!(decoded.malformed, None, "{members}");
        assert_eq!(std::str::from_utf8(&decoded.envelope.data).unwrap(), wanted, "{members}");
    }
}

#[test]
fn foreign_messages_keep_what_they_have() {
    let headers = [
        ("X-Trace", "1"),
        ("x-death", "[…]"),
        ("polybus-hop", "2"),
        ("cloudEvents:id", "no version"),
        ("X-Trace", "2"),
    ];
    let decoded = decode(wire(Some("text/csv"), &headers, b"a,b"));
    assert_eq!((decoded.malformed, decoded.carried), (None, CopyState::new(2, 0)));
    let e = &decoded.envelope;
    assert_eq!((&*e.id, &*e.event_type, &*e.source), ("m-1", Envelope::FOREIGN_TYPE, "queue:payments"));
    assert_eq!((e.time, e.content_type.as_deref()), (Some(datetime!(2024-05-01 12:00 UTC)), Some("text/csv")));
    assert_eq!(&e.data[..], b"a,b");
    let kept: Vec<_> = e.headers.iter().collect();
    assert_eq!(kept, [("X-Trace", "1"), ("x-death", "[…]"), ("cloudEvents:id", "no version"), ("X-Trace", "2")]);

    for id in [None, Some("")] {
        let fresh = decode(WireMessage { id, ..wire(None, &[], b"") }).envelope;
        assert_eq!(fresh.id.len(), 36);
    }
}

#[test]
fn brokers_counters_are_no_headers_of_a_cloud_event() {
    let headers = [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", "i"),
        ("cloudEvents:type", "t"),
        ("cloudEvents:source", "s"),
        ("x-death", "[]"),
        ("x-first-death-queue", "q"),
        ("x-last-death-reason", "expired"),
        ("x-delivery-count", "2"),
        ("X-Acquired-Count", "3"),
        ("x-deathly", "hallows"),
        ("x-delivery-note", "7"),
        ("x-opt-tenant", "acme"),
        ("x-first-death-cause", "y"),
    ];
    let e = decode(wire(None, &headers, b"")).envelope;
    assert_eq!(e.headers.iter().collect::<Vec<_>>(), headers[9..].to_vec());
}

#[test]
fn other_producers_numbering_stays_readable() {
    let decoded = structured(
        r#"{"specversion":"1.0","id":"i","type":"t","source":"s","sequence":"0001","schemaversion":"v2","my_ext":"x"}"#,
    );
    assert_eq!((decoded.envelope.sequence, decoded.envelope.schema_version), (None, None));
    let extensions: Vec<_> = decoded.envelope.extensions.iter().collect();
    assert_eq!(extensions, [("sequence", "0001"), ("schemaversion", "v2"), ("my_ext", "x")]);
    let numbers =
        r#"{"specversion":"1.0","id":"i","type":"t","source":"s","sequence":18446744073709551615,"schemaversion":2}"#;
    let e = structured(numbers).envelope;
    assert_eq!((e.sequence, e.schema_version), (Some(u64::MAX), Some(2)));
}

#[test]
fn a_structured_event_without_headers_of_its_own_has_the_native_ones() {
    let body = br#"{"specversion":"1.0","id":"i","type":"t","source":"s"}"#;
    let headers =
        [("cloudEvents:id", "copy"), ("tenant", "acme"), ("polybus-attempts", "4"), ("x-delivery-count", "1")];
    let decoded = decode(wire(Some(STRUCTURED), &headers, body));
    assert_eq!(&*decoded.envelope.id, "i");
    assert_eq!(decoded.carried, CopyState::new(0, 4));
    assert_eq!(decoded.envelope.headers.iter().collect::<Vec<_>>(), [("tenant", "acme")]);
}

/// Every optional attribute that is no sense to polybus, in both modes: the event is read, and what it said is there.
#[test]
fn optional_attributes_never_cost_the_event() {
    for (name, value) in [
        ("time", "2026-03-29T02:30:00.123456"),
        ("time", "2026-03-29T02:30Z"),
        ("time", "yesterday"),
        ("time", ""),
        ("expirytime", "1714564800"),
        ("sequence", "0001"),
        ("sequence", "-1"),
        ("sequence", "99999999999999999999999"),
        ("schemaversion", "1.0.2"),
    ] {
        let headers = [
            ("cloudEvents:specversion", "1.0"),
            ("cloudEvents:id", "i"),
            ("cloudEvents:type", "t"),
            ("cloudEvents:source", "s"),
            (&*format!("cloudEvents:{name}"), value),
        ];
        let document = format!(r#"{{"specversion":"1.0","id":"i","type":"t","source":"s","{name}":"{value}"}}"#);
        for decoded in [decode(wire(None, &headers, b"")), structured(document.leak())] {
            assert_eq!(decoded.malformed, None, "{name}={value}");
            let e = &decoded.envelope;
            assert_eq!((&*e.event_type, e.extensions.get(name)), ("t", Some(value)), "{name}");
            assert_eq!((e.time, e.expires_at, e.sequence, e.schema_version), (None, None, None, None));
        }
    }
    let odd = r#"{"specversion":"1.0","id":"i","type":"t","source":"s",
        "time":{"seconds":1},"subject":["a"],"x":"\ud800","a,b":"1","":"2"}"#;
    let e = structured(odd).envelope;
    let extensions: Vec<_> = e.extensions.iter().collect();
    assert_eq!(extensions, [("time", r#"{"seconds":1}"#), ("x", r#""\ud800""#)]);
    assert_eq!(e.subject.as_deref(), Some(r#"["a"]"#));
    assert_eq!(e.headers.iter().collect::<Vec<_>>(), [("a,b", "1"), ("", "2")]);
    let headers = [
        ("ce-specversion", "1.0"),
        ("ce-id", "i"),
        ("ce-type", "t"),
        ("ce-source", "s"),
        ("ce-", "1"),
        ("ce-data", "2"),
    ];
    let e = decode(wire(None, &headers, b"kept")).envelope;
    assert_eq!((&*e.event_type, e.headers.iter().collect::<Vec<_>>()), ("t", headers[4..].to_vec()));
}

/// Times as other producers write them: what can be read is, the rest is kept as it was.
#[test]
fn times_of_other_producers() {
    for (text, read) in [
        ("2026-03-29T02:30:00.9584103Z", true),
        ("2026-03-29t02:30:00z", true),
        ("2026-03-29 02:30:00+00:00", true),
        ("2016-12-31T23:59:60Z", true),
        ("9999-12-31T23:59:59.9999999Z", true),
        ("0001-01-01T00:00:00Z", true),
        ("2026-03-29T02:30:00.123456", false),
        ("2026-03-29T02:30Z", false),
    ] {
        let document = format!(r#"{{"specversion":"1.0","id":"i","type":"t","source":"s","time":"{text}"}}"#);
        let e = structured(document.leak()).envelope;
        assert_eq!((e.time.is_some(), e.extensions.get("time").is_none()), (read, read), "{text}");
    }
}

const WHOLE: [(&str, &str); 6] = [
    ("specversion", "1.0"),
    ("id", "kn-1"),
    ("type", "order.placed"),
    ("source", "/x"),
    ("subject", "o-7"),
    ("zone", "eu"),
];

#[test]
fn every_prefix_in_any_case() {
    for prefix in ["ce-", "ce_", "CE-", "Ce_", "cloudEvents:", "cloudEvents_", "CLOUDEVENTS_", "cloudevents:"] {
        let names = WHOLE.map(|(name, _)| format!("{prefix}{name}"));
        let mut headers: Vec<(&str, &str)> =
            names.iter().zip(WHOLE).map(|(name, (_, value))| (&**name, value)).collect();
        headers.push(("tenant", "acme"));
        let e = decode(wire(Some("application/json"), &headers, b"{}")).envelope;
        assert_eq!((&*e.id, &*e.event_type, e.subject.as_deref()), ("kn-1", "order.placed", Some("o-7")), "{prefix}");
        assert_eq!(e.extensions.iter().collect::<Vec<_>>(), [("zone", "eu")]);
        assert_eq!(e.headers.iter().collect::<Vec<_>>(), [("tenant", "acme")]);
    }
    // Without a prefix nothing tells an extension from a header.
    let e = decode(wire(Some("application/json"), &WHOLE, b"{}")).envelope;
    assert_eq!((&*e.id, &*e.event_type, e.subject.as_deref()), ("kn-1", "order.placed", Some("o-7")));
    assert_eq!(e.headers.iter().collect::<Vec<_>>(), [("zone", "eu")]);
    for missing in 0..4 {
        let some: Vec<_> = WHOLE.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, h)| *h).collect();
        let decoded = decode(wire(None, &some, b""));
        assert_eq!((decoded.malformed, &*decoded.envelope.event_type), (None, Envelope::FOREIGN_TYPE));
        assert_eq!(decoded.envelope.headers.len(), 5);
    }
}

#[test]
fn an_event_has_one_family_of_names() {
    let headers = [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", "i"),
        ("cloudEvents:type", "t"),
        ("cloudEvents:source", "s"),
        ("ce-id", "another's"),
        ("ce-specversion", "0.3"),
        ("id", "a plain header"),
    ];
    let e = decode(wire(None, &headers, b"")).envelope;
    assert_eq!((&*e.id, e.headers.iter().collect::<Vec<_>>()), ("i", headers[4..].to_vec()));
}

const EVENT: &[u8] =
    br#" {"data":{"orderId":42},"datacontenttype":"application/json","id":"9c1d","pubsubname":"orders-pubsub",
    "source":"checkout","specversion":"1.0","type":"com.dapr.event.sent","tracestate":""}"#;

#[test]
fn a_structured_event_is_known_by_its_look() {
    for content_type in [None, Some("text/plain"), Some("application/json"), Some("application/octet-stream"), Some("")]
    {
        let headers = [("tenant", "acme"), ("cloudEvents_type", "no version"), ("polybus-hop", "2")];
        let decoded = decode(wire(content_type, &headers, EVENT));
        let e = &decoded.envelope;
        assert_eq!((&*e.id, &*e.event_type, &*e.source), ("9c1d", "com.dapr.event.sent", "checkout"));
        assert_eq!((&e.data[..], e.content_type.as_deref()), (&br#"{"orderId":42}"#[..], Some("application/json")));
        assert_eq!((e.headers.get("tenant"), e.extensions.get("pubsubname")), (Some("acme"), Some("orders-pubsub")));
        assert_eq!((decoded.body.as_deref(), decoded.carried.hop), (Some(EVENT), 2));
    }
    for body in [
        &br#"{"specversion":"1.0","id":"i","source":"s"}"#[..],
        br#"{"specversion":"1.0","id":"","source":"s","type":"t"}"#,
        br#"{"specversion":"0.3","id":"i","source":"s","type":"t"}"#,
        br#"{"specversion":"1.0","id":"i","source":"s","type":"t","data_base64":"*","polybushop":"7"}"#,
        br#"[{"specversion":"1.0","id":"i","source":"s","type":"t"}]"#,
        br#"{"specversion":"1.0","id":"i","source":"s","type":"t"} and more"#,
        br#"{"event":{"specversion":"1.0","id":"i","source":"s","type":"t"}}"#,
        b"{\"specversion\":\"1.0\",\"id\":\"\xff\",\"source\":\"s\",\"type\":\"t\"}",
    ] {
        let decoded = decode(wire(Some("text/plain"), &[], body));
        assert_eq!((decoded.malformed, &*decoded.envelope.event_type), (None, Envelope::FOREIGN_TYPE));
        assert_eq!((&decoded.envelope.data[..], decoded.carried, decoded.body), (body, CopyState::default(), None));
    }
}

#[test]
fn no_event_is_smuggled_in_through_a_payload() {
    for names in [WireNames::AMQP, WireNames::CE, WireNames::HTTP] {
        for content_type in [Some("application/json"), Some("text/plain"), Some(STRUCTURED), None] {
            let sent = Envelope::new("order.placed", EVENT)
                .source("s")
                .edit(|e| e.content_type = content_type.map(Into::into));
            let mut native = Vec::new();
            encode_binary_named(&sent, &CopyState::default(), &names, &mut |k, v| {
                native.push((k.to_owned(), v.to_owned()))
            });
            let native: Vec<_> = native.iter().map(|(k, v)| (&**k, &**v)).collect();
            assert_eq!(decode(wire(content_type, &native, EVENT)).envelope, sent);
        }
    }
    let e = decode(wire(Some("application/json"), &WHOLE, EVENT)).envelope;
    assert_eq!((&*e.id, &e.data[..]), ("kn-1", EVENT));
    // One of that family that cannot be read is dead-lettered, not read from within.
    let headers = [("ce-specversion", "1.0"), ("ce-id", "i")];
    assert!(reason(&decode(wire(Some("application/json"), &headers, EVENT))).contains("is missing"));
}

#[test]
fn native_properties_are_shown_where_the_event_says_nothing() {
    let native = || WireMessage {
        correlation_id: Some("c-1"),
        subject: Some("label"),
        native: vec![("reply-to", "amq.reply".into()), ("content-encoding", "gzip".into())],
        ..WireMessage::default()
    };
    let with = |wire: WireMessage<'static>| {
        let WireMessage { correlation_id, subject, native, .. } = native();
        decode(WireMessage { correlation_id, subject, native, ..wire }).envelope
    };
    let shown = [("native.reply-to", "amq.reply"), ("native.content-encoding", "gzip")];
    let foreign = with(wire(None, &[("a", "1"), ("Native.Reply-To", "forged")], b"30"));
    assert_eq!((foreign.correlation_id.as_deref(), foreign.subject.as_deref()), (Some("c-1"), Some("label")));
    assert_eq!(foreign.headers.iter().collect::<Vec<_>>(), [("a", "1"), shown[0], shown[1]]);

    let event = with(wire(None, &WHOLE, b""));
    assert_eq!((event.correlation_id.as_deref(), event.subject.as_deref()), (Some("c-1"), Some("o-7")));
    assert_eq!(event.headers.get("native.reply-to"), Some("amq.reply"));
    let looks = with(wire(None, &[], EVENT));
    assert_eq!((looks.subject.as_deref(), looks.headers.iter().collect::<Vec<_>>()), (Some("label"), shown.to_vec()));
    let typed = decode(WireMessage { subject: Some("order.placed"), ..wire(None, &WHOLE[..4], b"") }).envelope;
    assert_eq!(typed.subject, None);
    assert!(foreign.check().unwrap_err().to_string().contains("\"native.\" is reserved"));
}
