//! Messages and queues of somebody else's: what others set, what they leave out, and what they declared before.
#![allow(clippy::unwrap_used)]

mod broker;

use std::{collections::BTreeSet, time::Duration};

use broker::url;
use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, Kind, QueueSpec, Registry, Retry, Source, Subscription,
    SubscriptionSpec, TopicSpec, Topology,
};
use polybus_rabbitmq::{
    Message, Native, RabbitmqConnector,
    lapin::{
        BasicProperties, Channel,
        options::{BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
        types::{AMQPValue, FieldTable},
    },
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

async fn open(url: &str, topology: Topology) -> Bus {
    let driver = Registry::new().with(RabbitmqConnector).connect(url).await.unwrap();
    Bus::new(driver, BusOptions::topology(topology)).unwrap()
}

async fn channel(bus: &Bus) -> Channel {
    let connection = bus.native::<Native>().unwrap().connection().await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

async fn publish(channel: &Channel, exchange: &str, key: &str, properties: BasicProperties, body: &[u8]) {
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let sent = channel.basic_publish(exchange.into(), key.into(), options, body, properties).await.unwrap();
    assert!(sent.await.unwrap().take_message().is_none());
}

fn unique(what: &str) -> String {
    format!("{what}-{}", uuid::Uuid::now_v7().simple())
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(PATIENCE, sub.next()).await.expect("it comes").unwrap().unwrap()
}

/// Without any of polybus' arguments RabbitMQ 4 drops what failed 20 times, and there are no dead letters of the broker's.
#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_queue_of_others_loses_nothing_beyond_its_own_limit() {
    for name in ["rabbitmq4", "rabbitmq"] {
        let Some(url) = url(name) else { continue };
        let queue = unique("others");
        let spec = QueueSpec::new().physical(&queue).max_deliveries(40);
        let bus = open(&url, Topology::new().queue("q", spec)).await;
        let channel = channel(&bus).await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        channel.queue_declare((&*queue).into(), options, arguments).await.unwrap();

        let report = bus.declare().await.unwrap();
        let settings: BTreeSet<&str> = report.differences.iter().map(|d| &*d.setting).collect();
        let wanted = ["x-dead-letter-exchange", "x-dead-letter-routing-key", "x-delivery-limit"];
        assert!(wanted.iter().all(|setting| settings.contains(setting)), "all of them: {settings:?}");

        publish(&channel, "", &queue, BasicProperties::default(), b"stubborn").await;
        let q = Source::queue("q");
        let mut sub = bus.subscribe(q.clone()).prefetch(1).open().await.unwrap();
        for attempt in 1..=40 {
            let delivery = next(&mut sub).await;
            assert_eq!(delivery.attempt(), attempt, "{name}");
            delivery.release().await.unwrap();
        }
        let letter = next(&mut bus.subscribe(q.dead_letters()).open().await.unwrap()).await;
        assert_eq!(&letter.envelope().data[..], b"stubborn");
        letter.ack().await.unwrap();
        bus.delete().await.unwrap();
        bus.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_partitions_are_a_difference_and_nothing_is_bound_beside_the_old_ones() {
    let Some(url) = url("rabbitmq") else { return };
    let queue = unique("partitions");
    let spec = |n: u32| {
        let text =
            format!("[queues.q]\nordered = true\nphysical = {queue:?}\n[queues.q.options.rabbitmq]\npartitions = {n}");
        let config: polybus_core::Config = text.parse().unwrap();
        config.topology()
    };
    let four = open(&url, spec(4)).await;
    four.declare().await.unwrap();
    let eight = open(&url, spec(8)).await;
    let report = eight.declare().await.unwrap();
    let told: Vec<_> = report.differences.iter().map(|d| (&*d.setting, &*d.wanted, &*d.found)).collect();
    assert_eq!(told, [("partitions", "8", "4")]);
    assert!(report.created.is_empty());
    let found = channel(&eight).await;
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    assert!(found.queue_declare(format!("{queue}.p4").into(), options, FieldTable::default()).await.is_err());
    assert_eq!(four.declare().await.unwrap().differences, []);
    four.delete().await.unwrap();
    four.close().await.unwrap();
    eight.close().await.unwrap();
}

fn rpc(n: u32) -> BasicProperties {
    BasicProperties::default()
        .with_reply_to("answers".into())
        .with_correlation_id(format!("c-{n}").into())
        .with_type("Calc.Fib, Calc".into())
        .with_app_id("calc-ui".into())
        .with_priority(3)
        .with_content_encoding("gzip".into())
        .with_expiration("60000".into())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_set_is_seen_tells_messages_apart_and_survives_copies() {
    let Some(url) = url("rabbitmq") else { return };
    let topic = unique("native");
    let spec = TopicSpec::new().physical(&topic).subscription("s", SubscriptionSpec::new());
    let bus = open(&url, Topology::new().topic("t", spec)).await;
    bus.declare().await.unwrap();
    let channel = channel(&bus).await;
    for n in [1, 2] {
        publish(&channel, &topic, "calc.asked", rpc(n), b"30").await;
    }
    let s = Source::subscription("t", "s");
    let mut sub = bus.subscribe(s.clone()).open().await.unwrap();
    let (mut ids, mut came, mut headers) = (BTreeSet::new(), Vec::new(), Vec::new());
    for round in 0..2 {
        for _ in 0..2 {
            let delivery = next(&mut sub).await;
            let e = delivery.envelope().clone();
            ids.insert(e.id.to_string());
            headers.push(e.headers.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>());
            for (name, value) in [
                ("native.reply-to", "answers"),
                ("native.type", "Calc.Fib, Calc"),
                ("native.app-id", "calc-ui"),
                ("native.priority", "3"),
                ("native.content-encoding", "gzip"),
                ("native.expiration", "60000"),
                ("native.routing-key", "calc.asked"),
            ] {
                assert_eq!(e.headers.get(name), Some(value), "round {round}: {name} of {:?}", e.headers);
            }
            assert!(e.correlation_id.as_deref().unwrap().starts_with("c-"), "{e:?}");
            let native = delivery.native::<Message>().unwrap();
            assert_eq!(native.properties().reply_to().as_ref().unwrap().as_str(), "answers");
            came.push(e.expires_at);
            match round {
                0 => delivery.retry_after(Duration::from_millis(200)).await.unwrap(),
                _ => delivery.ack().await.unwrap(),
            }
        }
    }
    assert_eq!(ids.len(), 2, "each keeps an id of its own");
    assert!(came[2..].iter().all(|ends| ends.is_some()), "the copies know when their time is over: {came:?}");
    headers.iter_mut().for_each(|h| h.sort());
    assert!(headers.iter().all(|h| *h == headers[0]), "{headers:?}");
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_time_runs_out_while_it_waits_for_its_retry_is_not_handled_again() {
    let Some(url) = url("rabbitmq") else { return };
    let queue = unique("ttl");
    let bus = open(&url, Topology::new().queue("q", QueueSpec::new().physical(&queue))).await;
    bus.declare().await.unwrap();
    let channel = channel(&bus).await;
    publish(&channel, "", &queue, BasicProperties::default().with_expiration("800".into()), b"short").await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let delivery = next(&mut sub).await;
    delivery.retry_after(Duration::from_millis(1500)).await.unwrap();
    // This one comes after it, and is handed out.
    bus.publish(
        &Address::queue("q"),
        polybus_core::Outgoing::from(Envelope::new("n.n", "last")).delay(Duration::from_secs(4)),
    )
    .await
    .unwrap();
    let last = next(&mut sub).await;
    assert_eq!(&last.envelope().data[..], b"last");
    last.ack().await.unwrap();
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_subscription_gives_its_siblings_no_copies_over_and_over() {
    let Some(url) = url("rabbitmq") else { return };
    let topic = unique("full");
    let subscriptions = |spec: TopicSpec| {
        spec.physical(&topic).subscription("full", SubscriptionSpec::new()).subscription("s", SubscriptionSpec::new())
    };
    let bus = open(&url, Topology::new().topic("t", subscriptions(TopicSpec::new()))).await;
    let channel = channel(&bus).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongLongInt(1));
    arguments.insert("x-overflow".into(), AMQPValue::LongString("reject-publish".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(format!("{topic}.sub.full").into(), options, arguments).await.unwrap();
    bus.declare().await.unwrap();
    let t = Address::topic("t");
    let mut refused = 0;
    for n in 0..4 {
        if let Err(e) = bus.publish(&t, Envelope::new("n.n", n.to_string())).await {
            assert_eq!((e.kind(), e.retry()), (Kind::Throttled, Retry::MayDuplicate), "{e}");
            refused += 1;
        }
    }
    assert!(refused > 0, "the queue is full");
    let mut sub = bus.subscribe(Source::subscription("t", "s")).open().await.unwrap();
    for n in 0..4 {
        let delivery = next(&mut sub).await;
        assert_eq!(&delivery.envelope().data[..], n.to_string().as_bytes(), "each once");
        delivery.ack().await.unwrap();
    }
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}
