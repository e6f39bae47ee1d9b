//! `Envelope::forward`: whatever was received can be published, with what it says.

#![allow(clippy::unwrap_used)]

use std::borrow::Cow;

use bytes::Bytes;
use polybus_core::{
    Envelope, Headers,
    message::cloudevents::{CopyState, STRUCTURED, WireMessage, decode, encode_structured},
};
use proptest::{collection::vec, prelude::*};

fn received(content_type: Option<&str>, headers: &[(&str, &str)], body: &str) -> Envelope {
    let headers = headers.iter().map(|(k, v)| (Cow::Borrowed(*k), Cow::Borrowed(*v))).collect();
    let native = vec![("reply-to", Cow::Borrowed("amq.reply"))];
    let body = Bytes::copy_from_slice(body.as_bytes());
    decode(WireMessage {
        content_type,
        headers,
        body,
        id: Some("m-1"),
        address: "queue:q",
        native,
        ..WireMessage::default()
    })
    .envelope
}

#[test]
fn what_may_be_published_is_not_changed() {
    let sent = Envelope::new("order.placed", "{}").source("s").key("k").header("x-delivery-note", "1");
    assert_eq!(sent.clone().forward(), sent);
}

#[test]
fn headers_of_others() {
    let headers = [
        ("$.diagnostics.originating.hostid", "1"),
        ("http://schemas.example.invalid/claims/requestname", "2"),
        ("x-delivery-note", "3"),
        ("x-opt-tenant", "4"),
        ("CE-tenant", "5"),
        ("AWS.trace", "6"),
        ("x-death", "[]"),
        ("tenant", "7"),
        ("Tenant", "8"),
        ("", "9"),
        ("a/b", "10"),
        ("a:b", "11"),
    ];
    let e = received(None, &headers, "body").forward();
    e.check().unwrap();
    let wanted = [
        ("_.diagnostics.originating.hostid", "1"),
        ("http___schemas.example.invalid_claims_requestname", "2"),
        ("x-delivery-note", "3"),
        ("x-opt-tenant", "4"),
        ("forwarded.CE-tenant", "5"),
        ("AWS.trace", "6"),
        ("tenant", "7"),
        ("Tenant_2", "8"),
        ("forwarded.", "9"),
        ("a_b", "10"),
        ("a_b_2", "11"),
        ("forwarded.native.reply-to", "amq.reply"),
    ];
    assert_eq!(e.headers.iter().collect::<Vec<_>>(), wanted);
    assert_eq!(
        (&*e.id, &*e.event_type, &*e.source, &e.data[..]),
        ("m-1", Envelope::FOREIGN_TYPE, "queue:q", &b"body"[..])
    );
}

#[test]
fn types_of_others() {
    for (event_type, wanted) in [
        ("com.example/order:v1", "com.example_order_v1"),
        ("aws.s3.ObjectCreated:Put", "aws.s3.ObjectCreated_Put"),
        ("https://example.invalid/events/order", "https___example.invalid_events_order"),
        ("..a..b.", "a.b"),
        (".", "forwarded"),
    ] {
        let e = Envelope::new(event_type, "").source("s").forward();
        e.check().unwrap();
        assert_eq!((&*e.event_type, e.headers.get("forwarded.type")), (wanted, Some(event_type)));
    }
    let (a, b) =
        (Envelope::new("x".repeat(300) + "a", "").forward(), Envelope::new("x".repeat(300) + "b", "").forward());
    assert!(a.event_type.len() == 128 && a.event_type != b.event_type);
}

#[test]
fn extensions_and_attributes_that_cannot_be_published() {
    let body = r#"{"specversion":"1.0","id":"i","type":"t","source":"s","my_ext":"1","example-extension":"2","traceId":"3",
        "time":"yesterday","sequence":"0001"}"#;
    let e = received(Some(STRUCTURED), &[], body).forward();
    e.check().unwrap();
    assert_eq!(e.extensions.iter().collect::<Vec<_>>(), [("traceid", "3")]);
    let named = |name: &str| e.headers.get(&format!("forwarded.{name}")).unwrap();
    assert_eq!(["my_ext", "example-extension", "time", "sequence"].map(named), ["1", "2", "yesterday", "0001"]);
    let long = Envelope::new("t", "").source("s").key("k".repeat(300)).forward();
    assert!(long.key.as_deref().is_some_and(|key| key.len() == 256) && long.headers.get("forwarded.key").is_some());
    assert_eq!(Envelope::new("t", "").key("").forward().key, None);
}

#[test]
fn too_many_and_too_large() {
    let names: Vec<String> = (0..70).map(|i| format!("h{i}")).collect();
    let headers: Vec<_> = names.iter().map(|name| (&**name, "v")).collect();
    let e = received(None, &headers, "").forward();
    e.check().unwrap();
    let more: serde_json::Value = serde_json::from_str(e.headers.get("forwarded.more").unwrap()).unwrap();
    assert_eq!((more["h69"].as_str(), more["h62"].as_str(), e.headers.get("h61")), (Some("v"), Some("v"), Some("v")));

    let long = "x".repeat(40_000);
    let e = received(None, &[("a", "1"), ("long", &long), ("b", "2")], "").forward();
    e.check().unwrap();
    assert_eq!((e.headers.get("a"), e.headers.get("b"), e.headers.get("long")), (Some("1"), Some("2"), None));
    assert_eq!(e.headers.get("forwarded.dropped"), Some("long"));
    let e = Envelope::new("t", "").source(long.clone()).id(long.clone() + "1").forward();
    e.check().unwrap();
    assert!(e.id.len() == 512 && e.id != Envelope::new("t", "").source(long.clone()).id(long + "2").forward().id);
}

fn odd() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-c:/.$ _-]{0,6}",
        "(ce-|native\\.|polybus-|forwarded\\.|x-death|cloudevents_)[a-z]{0,3}",
        "x{60,300}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn anything_can_be_forwarded(
        event_type in odd(), id in odd(), key in proptest::option::of(odd()), subject in proptest::option::of("x{0,20000}"),
        headers in vec((odd(), prop_oneof![9 => odd(), 1 => "y{0,9000}"]), 0..90), extensions in vec((odd(), odd()), 0..90),
    ) {
        let e = Envelope::bare(event_type, "data").edit(|e| {
            e.id = id.into();
            e.key = key.map(Into::into);
            e.subject = subject.map(Into::into);
            e.headers = headers.into_iter().collect::<Headers>();
            e.extensions = extensions.into_iter().collect::<Headers>();
        });
        let forwarded = e.clone().forward();
        prop_assert!(forwarded.check().is_ok(), "{:?}", forwarded.check());
        prop_assert_eq!(&forwarded.data, &e.data);
        prop_assert_eq!(forwarded.clone().forward(), forwarded.clone());
        let sent = forwarded.source("s");
        let document = encode_structured(&sent, &CopyState::default());
        let headers = Vec::new();
        let seen = decode(WireMessage { content_type: Some(STRUCTURED), headers, body: document.into(), ..WireMessage::default() });
        prop_assert_eq!(seen.envelope, sent);
    }
}
