//! Messages of other programs whose short strings are not UTF-8. The broker passes them on, and lapin would end the
//! connection. So without the sanitizer, whoever may publish them could cut off every consumer.
#![allow(clippy::unwrap_used)]

mod broker;
mod raw;

use std::{collections::BTreeMap, time::Duration};

use broker::url;
use polybus_core::{
    Bus, BusOptions, Delivery, ErrorKind, QueueSpec, Registry, Source, Subscription, SubscriptionSpec, TopicSpec,
    Topology,
};
use polybus_rabbitmq::{Native, RabbitmqConnector, lapin::options::BasicGetOptions};
use raw::{RawPublisher, long, short};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);
/// "größe" in Latin-1.
const LATIN: &[u8] = b"gr\xf6\xdfe";

async fn open(url: &str, topology: Topology) -> Bus {
    let driver = Registry::new().with(RabbitmqConnector).connect(url).await.unwrap();
    Bus::new(driver, BusOptions::topology(topology)).unwrap()
}

/// A topic of that name with one subscription, which takes whatever is published.
async fn declared(url: &str, name: &str) -> Bus {
    let topic = TopicSpec::new().physical(name).subscription("s", SubscriptionSpec::new());
    let bus = open(url, Topology::new().topic("t", topic)).await;
    bus.declare().await.unwrap();
    bus
}

fn unique() -> String {
    format!("text-{}", uuid::Uuid::now_v7().simple())
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(PATIENCE, sub.next()).await.expect("it arrives").unwrap().unwrap()
}

/// A header whose value is a long string.
fn header(name: impl AsRef<[u8]>, value: &[u8]) -> Vec<u8> {
    [short(name), b"S".to_vec(), long(value)].concat()
}

/// Flags and properties, each with text that is no UTF-8 in another place. The broker itself refuses it in an
/// expiration, and a user id must be the user's.
fn properties() -> Vec<(&'static str, u16, Vec<u8>)> {
    let mut all = Vec::new();
    let names =
        [(0, "content-type"), (1, "content-encoding"), (5, "correlation-id"), (6, "reply-to"), (8, "message-id")];
    for (bit, name) in names.into_iter().chain([(10, "type"), (12, "app-id"), (13, "cluster-id")]) {
        all.push((name, 1 << (15 - bit), short(LATIN)));
    }
    let nested = [short("k"), b"F".to_vec(), long(header(LATIN, b"v"))].concat();
    for (name, entries) in [("header", header(LATIN, b"v")), ("nested", nested), ("value", header("größe", LATIN))] {
        all.push((name, 1 << 13, long(entries)));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_is_no_utf8_cuts_nobody_off() {
    for broker in ["rabbitmq", "rabbitmq4"] {
        let Some(url) = url(broker) else { continue };
        let (name, s) = (unique(), Source::subscription("t", "s"));
        let bus = declared(&url, &name).await;
        let mut raw = RawPublisher::connect(&url);
        let cases = properties();
        for (case, flags, properties) in &cases {
            raw.publish(&name, b"k", *flags, properties, case.as_bytes());
        }
        raw.publish(&name, LATIN, 0, b"", b"routing-key");
        raw.publish(&name, "größe".as_bytes(), 1 << 13, &long(header("größe", b"v")), b"good");

        let mut sub = bus.subscribe(s.clone()).prefetch(2 * cases.len()).open().await.unwrap();
        let mut held = Vec::new();
        for _ in 0..cases.len() + 2 {
            held.push(next(&mut sub).await);
        }
        for delivery in held {
            // If the connection had been lost, this were another attempt, and the first one could not be settled.
            assert_eq!(delivery.attempt(), 1);
            match &delivery.envelope().data[..] {
                b"good" => {
                    assert_eq!(delivery.envelope().headers.get("größe"), Some("v"), "{delivery:?}");
                    delivery.ack().await.unwrap();
                }
                _ => delivery.dead_letter("poison", "").await.unwrap(),
            }
        }
        let mut sub = bus.subscribe(s.dead_letters()).prefetch(2 * cases.len()).open().await.unwrap();
        let mut letters = BTreeMap::new();
        for _ in 0..cases.len() + 1 {
            let letter = next(&mut sub).await;
            letters.insert(String::from_utf8(letter.envelope().data.to_vec()).unwrap(), letter.envelope().clone());
            letter.ack().await.unwrap();
        }
        assert_eq!(letters.len(), cases.len() + 1, "{:?}", letters.keys());
        assert_eq!(letters["content-type"].content_type.as_deref(), Some("gr??e"));
        assert_eq!(&*letters["message-id"].id, "gr??e");
        assert_eq!(letters["header"].headers.get("gr??e"), Some("v"));
        bus.delete().await.unwrap();
        bus.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_asked_for_may_have_any_routing_key() {
    let Some(url) = url("rabbitmq") else { return };
    let name = unique();
    let bus = declared(&url, &name).await;
    RawPublisher::connect(&url).publish(&name, LATIN, 0, b"", b"data");
    let connection = bus.native::<Native>().unwrap().connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    let queue = format!("{name}.sub.s");
    let got = channel.basic_get(queue.into(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
    assert_eq!(got.delivery.routing_key.as_str(), "gr??e");
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}

/// RabbitMQ 4.0 has an internal error here, and ends the connection itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_queue_is_told_though_the_broker_cuts_its_name_within_a_character() {
    let Some(url) = url("rabbitmq") else { return };
    let name = format!("a{}", "ä".repeat(127));
    let bus = open(&url, Topology::new().queue("q", QueueSpec::new().physical(name))).await;
    let e = bus.subscribe(Source::queue("q")).open().await.map(|_| ()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    bus.close().await.unwrap();
}
