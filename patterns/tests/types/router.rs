//! The router on a bus: who gets what, and what becomes of the rest.

use std::time::Duration;

use polybus_core::{
    Envelope, Event, QueueSpec,
    message::cloudevents::{WireMessage, decode},
};
use polybus_patterns::types::{Router, Types, Unknown};
use serde::{Deserialize, Deserializer, Serialize};

use crate::events::{
    Paid, PlacedV2, PlacedV3, SECRET, Seen, bus, cents, currency, dead_letters, publish, see, seen, types_v2, types_v3,
    v1, v2, v3, work,
};

fn paid(order: &str) -> Envelope {
    Envelope::event(&Paid { order: order.into() }).unwrap()
}

/// Handles placed orders alone.
fn placed(types: &Types, orders: &Seen) -> Router<Seen> {
    types.router(orders.clone()).on(async |orders, _cx, placed: PlacedV3| {
        see(&orders, placed.order);
        Ok(())
    })
}

#[tokio::test(start_paused = true)]
async fn each_type_has_its_handler_and_gets_the_newest_version() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    for message in [Envelope::event(&v1("1")), Envelope::event(&v2("2")), Envelope::event(&v3("3"))] {
        publish(&bus, message.unwrap()).await;
    }
    publish(&bus, paid("4").header("tenant", "acme")).await;
    publish(&bus, Envelope::new("order.shipped", "5")).await;
    let got = Seen::default();
    let types = types_v3().event::<Paid>();
    let router = types
        .router(got.clone())
        .on(async |got, cx, placed: PlacedV3| {
            assert_eq!(cx.attempt(), 1);
            see(&got, format!("{} {} {}", placed.order, placed.cents, placed.currency));
            Ok(())
        })
        .on_message(async |got, _cx, paid: Paid, msg| {
            see(&got, format!("{} of {}", paid.order, msg.headers.get("tenant").unwrap()));
            Ok(())
        })
        .otherwise(async |got, _cx, msg| {
            see(&got, format!("{} otherwise", msg.event_type));
            Ok(())
        });
    let report = work(&bus, router).await;
    assert_eq!(report.succeeded, 5);
    let mut got = seen(&got);
    got.sort();
    assert_eq!(got, ["1 1200 EUR", "2 1200 EUR", "3 1200 EUR", "4 of acme", "order.shipped otherwise"]);
}

#[tokio::test(start_paused = true)]
async fn what_no_handler_gets_is_a_dead_letter_at_once_with_a_reason_and_no_payload() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    let hush = |version: u32, body: &str| {
        Envelope::new("order.placed", body.replace('?', SECRET)).schema_version(version).header("n", "1")
    };
    let types = Types::new()
        .event::<PlacedV3>()
        .event::<Paid>()
        .upcast::<PlacedV3>(1, |json, _| panic!("{json}"))
        .upcast::<PlacedV3>(2, currency)
        .alias::<PlacedV3>("order.created");
    let all = [
        (hush(4, r#""?""#), "unknown-version", "schema version 4 of \"order.placed\": this program knows up to 3"),
        (Envelope::new("order.shipped", SECRET), "unknown-type", "event type \"order.shipped\" is not known here"),
        (paid(SECRET), "unknown-type", "event type \"order.paid\" has no handler here"),
        (hush(3, r#"{"order":"?"}"#), "malformed", "missing field `cents`"),
        (hush(2, r#"{"order":"?"#), "malformed", "not the JSON it should be"),
        (hush(2, r#"{"order":"?"}"#), "upcast-failed", "could not be made version 3 from version 2: payload is not"),
        (hush(1, r#"{"order":"?"}"#), "upcast-failed", "made version 2 from version 1: the upcaster panicked"),
        (hush(9, "?").edit(|e| e.event_type = "order.created".into()), "unknown-version", "\"order.created\""),
    ];
    for (message, reason, part) in all {
        publish(&bus, message).await;
        let report = work(&bus, placed(&types, &Seen::default())).await;
        assert_eq!((report.dead_lettered, report.retried), (1, 0), "{part}");
        let letters = dead_letters(&bus).await;
        assert_eq!(letters.len(), 1, "{part}");
        let (found, detail) = &letters[0];
        assert!(found == reason && detail.contains(part), "{part}: {found}: {detail}");
        assert!(!detail.contains(SECRET), "{detail}");
    }
}

/// Its own code reads it, and trusts it.
#[derive(Serialize)]
struct Trusting;

impl<'de> Deserialize<'de> for Trusting {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let json = serde_json::Value::deserialize(from)?;
        panic!("never seen: {json}")
    }
}

impl Event for Trusting {
    const TYPE: &'static str = "order.placed";
    const VERSION: u32 = 2;
}

#[tokio::test(start_paused = true)]
async fn an_event_whose_own_code_panics_is_a_dead_letter_at_once_and_quotes_nothing() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    let types = Types::new().event::<Trusting>().upcast::<Trusting>(1, |json, _| Ok(json));
    for (version, expected) in [(2, "malformed"), (1, "upcast-failed")] {
        publish(&bus, Envelope::new("order.placed", format!("\"{SECRET}\"")).schema_version(version)).await;
        let report = work(&bus, types.router(()).on(async |(), _cx, _: Trusting| Ok(()))).await;
        assert_eq!((report.dead_lettered, report.retried), (1, 0), "{expected}");
        let (reason, detail) = dead_letters(&bus).await.remove(0);
        assert!(reason == expected && detail.contains("the payload panicked"), "{reason}: {detail}");
        assert!(!detail.contains(SECRET) && !detail.contains("never seen"), "{detail}");
    }
}

#[tokio::test(start_paused = true)]
async fn foreign_messages_are_unknown_unless_they_are_mapped() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    let foreign =
        || decode(WireMessage { body: r#"{"order":"o","euros":12}"#.into(), ..WireMessage::default() }).envelope;
    let got = Seen::default();
    publish(&bus, foreign().id("1")).await;
    assert_eq!(work(&bus, placed(&types_v3(), &got)).await.dead_lettered, 1);
    assert_eq!(dead_letters(&bus).await[0].0, "unknown-type");
    publish(&bus, foreign().id("2")).await;
    assert_eq!(work(&bus, placed(&types_v3().foreign_as::<PlacedV3>(), &got)).await.succeeded, 1);
    assert_eq!(seen(&got), ["o"]);
}

#[tokio::test(start_paused = true)]
async fn skipped_messages_are_acknowledged_and_each_policy_has_its_own_messages() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    let got = Seen::default();
    let newer = || Envelope::event(&v3("o")).unwrap().schema_version(4);
    for _ in 0..3 {
        publish(&bus, Envelope::new("order.shipped", "{}")).await;
    }
    publish(&bus, newer()).await;
    let report = work(&bus, placed(&types_v3().unknown_type(Unknown::Skip), &got)).await;
    assert_eq!((report.succeeded, report.dead_lettered), (3, 1));
    assert_eq!(dead_letters(&bus).await[0].0, "unknown-version");

    publish(&bus, newer()).await;
    publish(&bus, Envelope::new("order.shipped", "{}")).await;
    publish(&bus, Envelope::new("order.placed", "{}").schema_version(3)).await;
    let report = work(&bus, placed(&types_v3().unknown_version(Unknown::Skip), &got)).await;
    assert_eq!((report.succeeded, report.dead_lettered), (1, 2));
    let mut reasons: Vec<String> = dead_letters(&bus).await.into_iter().map(|(reason, _)| reason).collect();
    reasons.sort();
    assert_eq!(reasons, ["malformed", "unknown-type"], "what cannot be read is never skipped");
    assert!(seen(&got).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_tried_again_in_vain_keeps_its_reason() {
    let (bus, _driver) = bus(QueueSpec::new().max_deliveries(3)).await;
    publish(&bus, Envelope::event(&v3("o")).unwrap()).await;
    let began = tokio::time::Instant::now();
    let types = types_v2().unknown_version(Unknown::RetryAfter(Duration::from_secs(60)));
    let router = types.router(()).on(async |(), _cx, _: PlacedV2| Ok(()));
    let report = work(&bus, router).await;
    assert_eq!((report.retried, report.dead_lettered), (2, 1));
    assert!(began.elapsed() >= Duration::from_secs(120), "{:?}", began.elapsed());
    assert_eq!(dead_letters(&bus).await[0].0, "unknown-version");
}

/// Names of the wire are no labels: everybody who may publish could make as many as they like.
#[cfg(feature = "metrics")]
#[tokio::test(start_paused = true)]
async fn old_messages_and_those_without_a_handler_are_counted() {
    let recorder = crate::recorder::Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let (bus, _driver) = bus(QueueSpec::new().max_deliveries(2)).await;
    for message in [
        Envelope::event(&v1("o")).unwrap(),
        Envelope::event(&v2("o")).unwrap(),
        Envelope::event(&v3("o")).unwrap(),
        Envelope::event(&v3("o")).unwrap().schema_version(4),
        Envelope::new("made.up", "{}"),
        Envelope::new("order.placed", "{").schema_version(3),
    ] {
        publish(&bus, message).await;
    }
    let retry = Unknown::RetryAfter(Duration::from_secs(60));
    let types = types_v3().unknown_type(Unknown::Skip).unknown_version(retry);
    work(&bus, placed(&types, &Seen::default())).await;
    let counted = recorder.nonzero("source=queue:orders,");
    let counted: Vec<_> = counted.into_iter().filter(|(name, _)| name.starts_with("polybus_types")).collect();
    let expected = [
        ("polybus_types_refused_total{reason=malformed,outcome=dead-letter}", 1),
        ("polybus_types_refused_total{reason=unknown-type,outcome=skipped}", 1),
        ("polybus_types_refused_total{reason=unknown-version,outcome=dead-letter}", 1),
        ("polybus_types_refused_total{reason=unknown-version,outcome=retried}", 1),
        ("polybus_types_upcast_total{type=order.placed,version=1}", 1),
        ("polybus_types_upcast_total{type=order.placed,version=2}", 1),
    ];
    assert_eq!(counted, expected.map(|(name, n)| (name.to_owned(), n)));
}

/// The error of a handler is the handler's.
#[tokio::test(start_paused = true)]
async fn a_handlers_failure_is_tried_again() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    publish(&bus, Envelope::event(&v3("o")).unwrap()).await;
    let router = types_v3().router(()).on(async |(), cx, _: PlacedV3| match cx.attempt() {
        1 => Err("the bank does not answer".into()),
        2 => panic!("the handler's own"),
        _ => Ok(()),
    });
    let report = work(&bus, router).await;
    assert_eq!((report.succeeded, report.retried, report.dead_lettered), (1, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_router_of_another_codec_is_a_handler_too() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    publish(&bus, Envelope::event(&v1("o")).unwrap()).await;
    let types = Types::codec((polybus_core::message::JsonCodec, polybus_core::message::JsonCodec));
    let types = types.event::<PlacedV2>().upcast::<PlacedV2>(1, cents);
    let router = types.router(()).on(async |(), _cx, placed: PlacedV2| {
        assert_eq!(placed, v2("o"));
        Ok(())
    });
    assert_eq!(work(&bus, router).await.succeeded, 1);
}
