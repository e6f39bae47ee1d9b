//! The CloudEvents codec, by example: documents as the specification shows them, what polybus writes, and what is
//! refused.

#![allow(clippy::unwrap_used)]

#[path = "common/wire.rs"]
mod wire;

use polybus_core::{
    Envelope,
    message::cloudevents::{
        CopyState, STRUCTURED, WireMessage, WireNames, decode, encode_binary, encode_binary_named, encode_structured,
    },
};
use time::macros::datetime;

use wire::{reason, structured, wire};

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
