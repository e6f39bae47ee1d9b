//! Messages of other programs whose headers nearly fill a frame. The broker's counters make them larger than a frame
//! may be, and a copy carries more than its original.
#![allow(clippy::unwrap_used)]

mod broker;

use std::{collections::BTreeMap, time::Duration};

use broker::url;
use polybus_conformance::Proxy;
use polybus_core::{Bus, BusOptions, Delivery, QueueSpec, Registry, Source, Subscription, Topology};
use polybus_rabbitmq::{
    Native, NativeMessage, RabbitmqConnector,
    lapin::{
        BasicProperties, Channel,
        options::{BasicPublishOptions, ConfirmSelectOptions},
        types::{AMQPValue, FieldTable},
    },
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

async fn next(sub: &mut Subscription, what: &str) -> Delivery {
    timeout(PATIENCE, sub.next()).await.unwrap_or_else(|_| panic!("{what} does not come")).unwrap().unwrap()
}

async fn publish(channel: &Channel, queue: &str, headers: usize, body: &str) {
    let mut table = FieldTable::default();
    if headers > 0 {
        table.insert("filler".into(), AMQPValue::LongString("x".repeat(headers).into()));
    }
    // Without the other properties, so that the headers alone are as large as they can be.
    let properties = BasicProperties::default().with_headers(table);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties);
    let confirm = sent.await.unwrap().await.unwrap();
    assert!(confirm.is_ack() && confirm.take_message().is_none());
}

fn filler(delivery: &Delivery) -> usize {
    delivery.envelope().headers.get("filler").map_or(0, str::len)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_among_a_hundred_costs_the_others_nothing_and_is_retried_dead_lettered_and_redriven() {
    for broker in ["rabbitmq", "rabbitmq4"] {
        let Some(url) = url(broker) else { continue };
        for size in [130_900, 131_000, 131_040 - 8] {
            for queue_type in ["quorum", "classic"] {
                let case = format!("{broker}, {queue_type}, {size} bytes");
                one_among_a_hundred(&format!("{url}&queue_type={queue_type}"), size, &case).await;
            }
        }
    }
}

async fn one_among_a_hundred(url: &str, size: usize, case: &str) {
    let name = format!("headers-{}", uuid::Uuid::now_v7().simple());
    let topology = Topology::new().queue("q", QueueSpec::new().physical(&name));
    let connect = async |url: &str| {
        let driver = Registry::new().with(RabbitmqConnector).connect(url).await.unwrap();
        Bus::new(driver, BusOptions::topology(topology.clone())).unwrap()
    };
    let others = connect(url).await;
    others.declare().await.unwrap();
    // The one that meets the large message, with a proxy before the broker that counts its connections.
    let (login, rest) = url.split_once('@').unwrap();
    let (upstream, rest) = rest.split_once('/').unwrap();
    let proxy = Proxy::start(upstream).await.unwrap();
    let bus = connect(&format!("{login}@{}/{rest}", proxy.addr())).await;
    let connection = others.native::<Native>().unwrap().connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    for n in 0..100 {
        if n == 10 {
            publish(&channel, &name, size, "large").await;
        }
        publish(&channel, &name, 0, &n.to_string()).await;
    }

    let q = Source::queue("q");
    let mut sub = bus.subscribe(q.clone()).prefetch(20).open().await.unwrap();
    let mut seen = BTreeMap::<String, u32>::new();
    // Handled, retried, released, and given up in the end.
    let mut attempts = 0;
    while seen.len() < 100 || attempts < 3 {
        let delivery = next(&mut sub, case).await;
        let body = String::from_utf8(delivery.envelope().data.to_vec()).unwrap();
        if body != "large" {
            assert_eq!(delivery.attempt(), 1, "{case}: {body}");
            *seen.entry(body).or_default() += 1;
            delivery.ack().await.unwrap();
            continue;
        }
        attempts += 1;
        assert_eq!((delivery.attempt(), filler(&delivery)), (attempts, size), "{case}");
        assert!(delivery.native::<NativeMessage>().unwrap().properties().headers().is_some());
        match attempts {
            1 => delivery.retry_after(Duration::from_millis(100)).await.unwrap(),
            2 => delivery.release().await.unwrap(),
            _ => delivery.dead_letter("poison", "y".repeat(2048)).await.unwrap(),
        }
    }
    assert!(seen.values().all(|times| *times == 1), "{case}: {seen:?}");

    let mut dead = bus.subscribe(q.dead_letters()).open().await.unwrap();
    let letter = next(&mut dead, case).await;
    let info = letter.dead_letter_info().unwrap();
    assert_eq!((info.reason.as_deref(), info.detail.as_deref()), (Some("poison"), Some(&*"y".repeat(2048))));
    assert_eq!((&letter.envelope().data[..], filler(&letter)), (&b"large"[..], size), "{case}");
    letter.release().await.unwrap();
    dead.close().await.unwrap();
    let redriven = bus.redrive(&q, |_| true, usize::MAX).await.unwrap();
    assert_eq!(redriven.moved, 1, "{case}: {redriven:?}");
    let back = next(&mut sub, case).await;
    assert_eq!((&back.envelope().data[..], filler(&back), back.attempt()), (&b"large"[..], size, 1), "{case}");
    back.ack().await.unwrap();
    // One to manage, one to consume, one to publish; each more is one of them that has ended.
    let ended = proxy.opened() - 3;
    assert!(ended <= 2, "{case}: {ended} connections ended");
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
    others.close().await.unwrap();
}

/// RabbitMQ 4 takes bodies of 16 MiB. A packed copy of one that is nearly as large has a larger body.
#[tokio::test(flavor = "multi_thread")]
async fn a_move_for_which_the_broker_has_no_room_is_made_without_what_it_tells() {
    const SIZE: usize = (16 << 20) - 1000;
    let Some(url) = url("rabbitmq4") else { return };
    let name = format!("full-{}", uuid::Uuid::now_v7().simple());
    let topology = Topology::new().queue("q", QueueSpec::new().physical(&name));
    let driver = Registry::new().with(RabbitmqConnector).connect(&url).await.unwrap();
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    let channel = bus.native::<Native>().unwrap().connection().await.unwrap().create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    publish(&channel, &name, 130_900, &"x".repeat(SIZE)).await;
    publish(&channel, &name, 0, "small").await;
    let q = Source::queue("q");
    let mut sub = bus.subscribe(q.clone()).prefetch(2).open().await.unwrap();
    let (large, small) = (next(&mut sub, "the large one").await, next(&mut sub, "the small one").await);
    let (large, small) = tokio::join!(large.dead_letter("unfit", "because"), small.dead_letter("unfit", "because"));
    large.unwrap();
    small.unwrap();
    let mut dead = bus.subscribe(q.dead_letters()).prefetch(2).open().await.unwrap();
    for _ in 0..2 {
        let letter = next(&mut dead, "a dead letter").await;
        let is_large = letter.envelope().data.len() == SIZE;
        assert_eq!(filler(&letter), if is_large { 130_900 } else { 0 });
        let reason = letter.dead_letter_info().and_then(|info| info.reason.clone());
        assert_eq!(reason.as_deref(), if is_large { None } else { Some("unfit") });
        letter.release().await.unwrap();
    }
    dead.close().await.unwrap();
    let redriven = bus.redrive(&q, |_| true, usize::MAX).await.unwrap();
    assert_eq!(redriven.moved, 2, "{redriven:?}");
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}
