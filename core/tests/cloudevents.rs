//! The CloudEvents codec, by example: documents as the specification shows them, other producers' habits, and what is
//! refused.

#![allow(clippy::unwrap_used)]

use std::borrow::Cow;

use bytes::Bytes;
use polybus_core::{
    Envelope,
    message::cloudevents::{
        CopyState, DecodedMessage, STRUCTURED, WireMessage, WireNames, decode, encode_binary, encode_binary_named,
        encode_structured,
    },
};
use time::macros::datetime;

fn wire<'a>(content_type: Option<&'a str>, headers: &[(&'a str, &'a str)], body: &'static [u8]) -> WireMessage<'a> {
    WireMessage {
        content_type,
        headers: headers.iter().map(|(k, v)| (Cow::Borrowed(*k), Cow::Borrowed(*v))).collect(),
        body: Bytes::from_static(body),
        id: Some("m-1"),
        time: Some(datetime!(2024-05-01 12:00 UTC)),
        address: "queue:payments",
        ..WireMessage::default()
    }
}

fn structured(body: &'static str) -> DecodedMessage {
    decode(wire(Some("application/cloudevents+json; charset=utf-8"), &[], body.as_bytes()))
}

fn reason(decoded: &DecodedMessage) -> &str {
    assert_eq!(&*decoded.envelope.event_type, Envelope::FOREIGN_TYPE);
    decoded.malformed.as_deref().unwrap()
}

#[test]
fn binary_amqp_as_the_binding_shows_it() {
    let headers = [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:type", "com.example.someevent"),
        ("cloudEvents:time", "2018-04-05T03:56:24Z"),
        ("cloudEvents:id", "1234-1234-1234"),
        ("cloudEvents:source", "/mycontext/subcontext"),
    ];
    let decoded = decode(wire(Some("application/json; charset=utf-8"), &headers, b"{ \"a\": 1 }"));
    assert_eq!(decoded.malformed, None);
    let e = &decoded.envelope;
    assert_eq!(
        (&*e.event_type, &*e.id, &*e.source),
        ("com.example.someevent", "1234-1234-1234", "/mycontext/subcontext")
    );
    assert_eq!(e.time, Some(datetime!(2018-04-05 03:56:24 UTC)));
    assert_eq!(e.content_type.as_deref(), Some("application/json; charset=utf-8"));
    assert_eq!(&e.data[..], b"{ \"a\": 1 }");
    assert!(e.headers.is_empty() && e.extensions.is_empty());
}

#[test]
fn either_prefix_in_any_case() {
    let headers = [
        ("cloudEvents_specversion", "1.0"),
        ("CLOUDEVENTS:ID", "i"),
        ("cloudevents_Type", "com.example.object.deleted.v2"),
        ("cloudEvents:source", "urn:x"),
        ("cloudEvents_comExampleNum", "33"),
        ("cloudEvents:datacontenttype", "text/plain"),
        ("Tenant", "acme"),
        ("cloudEventsId", "not an attribute"),
    ];
    let e = decode(wire(None, &headers, b"")).envelope;
    assert_eq!((&*e.id, &*e.event_type), ("i", "com.example.object.deleted.v2"));
    assert_eq!(e.extensions.iter().collect::<Vec<_>>(), [("comexamplenum", "33")]);
    assert_eq!(e.headers.iter().collect::<Vec<_>>(), [("Tenant", "acme"), ("cloudEventsId", "not an attribute")]);
    assert_eq!(e.content_type.as_deref(), Some("text/plain"));
}

#[test]
fn structured_as_the_json_format_shows_it() {
    let decoded = structured(
        r#"{
            "specversion" : "1.0",
            "type" : "com.github.pull_request.opened",
            "source" : "https://github.com/cloudevents/spec/pull",
            "subject" : "123",
            "id" : "A234-1234-1234",
            "time" : "2018-04-05T17:31:00Z",
            "comexampleextension1" : "value",
            "comexampleothervalue" : 5,
            "unsetextension": null,
            "flag": true,
            "datacontenttype" : "text/xml",
            "data" : "<much wow=\"xml\"/>"
        }"#,
    );
    assert_eq!(decoded.malformed, None);
    let e = &decoded.envelope;
    assert_eq!((&*e.event_type, e.subject.as_deref()), ("com.github.pull_request.opened", Some("123")));
    let extensions: Vec<_> = e.extensions.iter().collect();
    assert_eq!(extensions, [("comexampleextension1", "value"), ("comexampleothervalue", "5"), ("flag", "true")]);
    assert_eq!(&e.data[..], b"<much wow=\"xml\"/>");
}

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

/// Content type, payload, and how the document holds it.
#[test]
fn payloads_as_readable_as_can_be() {
    for (content_type, data, wanted) in [
        (Some("application/json"), &b"{\"a\": [1,\n2]}"[..], "\"data\":{\"a\": [1,\n2]}}"),
        (None, b"\"text\"", r#""data":"text"}"#),
        (Some("application/json"), b" {}", r#""data_base64":"IHt9"}"#),
        (Some("application/json"), b"{} ", r#""data_base64":"e30g"}"#),
        (Some("application/json"), b"{", r#""data_base64":"ew=="}"#),
        (Some("application/json"), b"null", r#""data_base64":"bnVsbA=="}"#),
        (Some("application/json"), "\"\u{FFFE}\"".as_bytes(), r#""data_base64":"Iu+/viI="}"#),
        (Some("text/plain"), b"say \"hi\"", r#""data":"say \"hi\""}"#),
        (Some("text/plain"), b"{}", r#""data":"{}"}"#),
        (Some("text/plain"), b"\0\0\0\0", r#""data_base64":"AAAAAA=="}"#),
        (Some("text/plain"), b"\xff", r#""data_base64":"/w=="}"#),
        (Some("text/plain"), b"", r#""datacontenttype":"text/plain"}"#),
    ] {
        let envelope =
            Envelope::bare("t", data).id("i").source("s").edit(|e| e.content_type = content_type.map(Into::into));
        let document = encode_structured(&envelope, &CopyState::default());
        assert!(document.ends_with(wanted), "{document}");
    }
}

#[test]
fn what_polybus_writes() {
    let envelope = Envelope::bare("order.placed", "{}")
        .id("i-1")
        .source("/shop")
        .time(datetime!(2024-05-01 12:00:00.000000001 +02:00))
        .content_type("application/json")
        .schema_version(2)
        .key("o-7")
        .header("b", "1")
        .header("a", "\u{0}");
    let mut native = Vec::new();
    encode_binary(&envelope, &CopyState::new(1, 3), &mut |k, v| native.push(format!("{k}={v}")));
    assert_eq!(
        native,
        [
            "cloudEvents:specversion=1.0",
            "cloudEvents:id=i-1",
            "cloudEvents:type=order.placed",
            "cloudEvents:source=/shop",
            "cloudEvents:time=2024-05-01T12:00:00.000000001+02:00",
            "cloudEvents:schemaversion=2",
            "cloudEvents:partitionkey=o-7",
            "polybus-hop=1",
            "polybus-attempts=3",
            "polybus-order=b,a",
            "b=1",
            "a=\u{0}",
        ]
    );
    assert_eq!(
        encode_structured(&envelope, &CopyState::new(1, 3)),
        concat!(
            r#"{"specversion":"1.0","id":"i-1","type":"order.placed","source":"/shop","#,
            r#""time":"2024-05-01T12:00:00.000000001+02:00","schemaversion":"2","partitionkey":"o-7","#,
            r#""datacontenttype":"application/json","polybushop":"1","polybusattempts":"3","#,
            r#""polybusheaders":"[[\"b\",\"1\"],[\"a\",\"\\u0000\"]]","data":{}}"#
        )
    );
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

#[test]
fn malformed_binary_says_why() {
    let good = [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", "i"),
        ("cloudEvents:type", "t"),
        ("cloudEvents:source", "s"),
    ];
    assert_eq!(decode(wire(None, &good, b"")).malformed, None);
    for (header, value, wanted) in [
        ("cloudEvents:specversion", "0.3", "specversion \"0.3\": only 1.x"),
        ("cloudEvents:specversion", "1.x", "only 1.x"),
        ("cloudEvents:id", "", "attribute id is missing or empty"),
        ("cloudEvents:type", "", "attribute type is missing or empty"),
        ("cloudEvents:source", "", "attribute source is missing or empty"),
        ("cloudEvents_id", "j", "\"id\" is there twice"),
        ("polybus-headers", "{}", "no JSON array of pairs"),
    ] {
        let mut headers: Vec<_> = good.iter().copied().filter(|(name, _)| *name != header).collect();
        headers.push((header, value));
        let decoded = decode(wire(Some("text/plain"), &headers, b"kept"));
        assert!(reason(&decoded).contains(wanted), "{header}: {:?}", decoded.malformed);
        assert_eq!(&decoded.envelope.data[..], b"kept");
        let kept = headers.iter().filter(|(name, _)| !name.starts_with("polybus-"));
        assert!(decoded.envelope.headers.iter().eq(kept.copied()));
    }
    for version in ["1", "1.0", "1.1", "1.0.2"] {
        let headers = [("cloudEvents:specversion", version), good[1], good[2], good[3]];
        assert_eq!(decode(wire(None, &headers, b"")).malformed.is_some(), version == "1.0.2", "{version}");
    }
}

#[test]
fn malformed_structured_says_why() {
    for (body, wanted) in [
        ("", "no JSON object (line 1, column 0)"),
        ("[]", "no JSON object"),
        ("{\"specversion\":\"1.0\",", "no JSON object"),
        ("{} {}", "no JSON object"),
        ("{}", "no specversion"),
        (r#"{"specversion":"0.3"}"#, "0.3"),
        (r#"{"specversion":{}}"#, "is no text"),
        (r#"{"specversion":"1.0","id":"i","type":"t"}"#, "source is missing"),
        (r#"{"specversion":"1.0","id":null,"type":"t","source":"s"}"#, "id is missing"),
        (r#"{"specversion":"1.0","id":["i"],"type":"t","source":"s"}"#, "\"id\" is no text"),
        (r#"{"specversion":"1.0","id":"\ud800","type":"t","source":"s"}"#, "\"id\" is no text"),
        (r#"{"specversion":"1.0","id":"i","id":"j","type":"t","source":"s"}"#, "\"id\" is there twice"),
        (r#"{"specversion":"1.0","id":"i","type":"t","source":"s","data":1,"data":1}"#, "data is there twice"),
        (
            r#"{"specversion":"1.0","id":"i","type":"t","source":"s","data":1,"data_base64":""}"#,
            "both data and data_base64",
        ),
        (r#"{"specversion":"1.0","id":"i","type":"t","source":"s","data_base64":"*"}"#, "no base64"),
        (r#"{"specversion":"1.0","id":"i","type":"t","source":"s","data_base64":1}"#, "data_base64 is no string"),
        (r#"{"specversion":"1.0","id":"i","type":"t","source":"s","polybusheaders":"[1]"}"#, "no JSON array of pairs"),
    ] {
        let decoded = structured(body);
        assert!(reason(&decoded).contains(wanted), "{body}: {:?}", decoded.malformed);
        assert_eq!(&decoded.envelope.data[..], body.as_bytes());
    }
    for content_type in
        ["application/cloudevents-batch+json", "application/cloudevents+avro", "application/cloudevents"]
    {
        let decoded = decode(wire(Some(content_type), &[("cloudEvents:specversion", "1.0")], b"{}"));
        assert!(reason(&decoded).contains("only application/cloudevents+json"));
    }
    assert!(reason(&decode(wire(Some(STRUCTURED), &[], b"\xff"))).contains("UTF-8"));
}

#[test]
fn a_byte_order_mark_and_deep_nesting_are_read() {
    let body = "\u{FEFF}{\"specversion\":\"1.0\",\"id\":\"i\",\"type\":\"t\",\"source\":\"s\"}";
    assert_eq!(structured(body).malformed, None);
    let deep = "[".repeat(200_000) + &"]".repeat(200_000);
    let sent = Envelope::new("t", deep).source("s");
    let document = encode_structured(&sent, &CopyState::default());
    let seen = decode(WireMessage { body: document.into(), ..wire(Some(STRUCTURED), &[], b"") });
    assert_eq!(seen.envelope, sent);
}

#[test]
fn what_cannot_be_written_is_refused_before() {
    let good = Envelope::new("t", "").edit(|e| e.extensions.push("a", "1"));
    good.check().unwrap();
    assert!(good.clone().edit(|e| e.extensions.push("a", "2")).check().is_err());
    for time in
        [datetime!(-0001-01-01 0:00 UTC), datetime!(2024-01-01 0:00 +01:00:01), datetime!(2024-01-01 0:00 +25:00)]
    {
        assert!(good.clone().time(time).check().is_err(), "{time}");
        assert!(good.clone().expires_at(time).check().is_err(), "{time}");
    }
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

#[test]
fn names_of_an_adapters_own() {
    const NATS: WireNames = WireNames { prefix: "ce-", reserved: &["nats-*"], ..WireNames::CE };
    let sent = Envelope::new("t", "x").source("s").header("Nats-Rollup", "all").header("a", "1");
    let mut native = Vec::new();
    encode_binary_named(&sent, &CopyState::default(), &NATS, &mut |k, v| native.push((k.to_owned(), v.to_owned())));
    assert!(native.iter().all(|(name, _)| name.starts_with("ce-") || name.starts_with("polybus-")), "{native:?}");
    let native: Vec<_> = native.iter().map(|(k, v)| (&**k, &**v)).collect();
    assert_eq!(decode(wire(Some("application/json"), &native, b"x")).envelope, sent);
}
