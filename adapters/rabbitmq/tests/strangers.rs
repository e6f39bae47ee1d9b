//! Messages and queues of other programs: what they set, what they leave out, and what they declared before.
#![allow(clippy::unwrap_used)]

mod broker;

use std::{collections::BTreeSet, time::Duration};

use broker::url;
use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, ErrorKind, QueueSpec, Registry, RetrySafety, Source, Subscription,
    SubscriptionSpec, TopicSpec, Topology,
};
use polybus_rabbitmq::{
    Native, NativeMessage, RabbitmqConnector,
    lapin::{
        BasicProperties, Channel,
        options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
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

/// Without any of polybus' arguments RabbitMQ 4 drops what failed 20 times, and there are no dead letters of the
/// broker's.
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
            let native = delivery.native::<NativeMessage>().unwrap();
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
    // The consumer is there first: what waits for one may end in the queue before it is handed out at all.
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    publish(&channel, "", &queue, BasicProperties::default().with_expiration("5000".into()), b"short").await;
    let delivery = next(&mut sub).await;
    assert_eq!(&delivery.envelope().data[..], b"short");
    delivery.retry_after(Duration::from_secs(6)).await.unwrap();
    // This one comes after it, and is handed out.
    bus.publish(
        Address::queue("q"),
        polybus_core::Outgoing::from(Envelope::new("n.n", "last")).delay(Duration::from_secs(9)),
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
            assert_eq!((e.kind(), e.retry()), (ErrorKind::Throttled, RetrySafety::MayDuplicate), "{e}");
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

/// Gives up so many of them unread.
async fn give_up(bus: &Bus, q: &Source, n: usize) {
    let mut sub = bus.subscribe(q.clone()).open().await.unwrap();
    for _ in 0..n {
        next(&mut sub).await.dead_letter("unfit", "").await.unwrap();
    }
    sub.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_are_alike_and_have_no_ids_are_redriven_at_once() {
    for name in ["rabbitmq", "rabbitmq4"] {
        let Some(url) = url(name) else { continue };
        let queue = unique("jobs");
        let bus = open(&url, Topology::new().queue("jobs", QueueSpec::new().physical(&queue))).await;
        bus.declare().await.unwrap();
        let channel = channel(&bus).await;
        let properties =
            || BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(2);
        for _ in 0..5 {
            publish(&channel, "", &queue, properties(), br#"{"job":"reindex"}"#).await;
        }
        let q = Source::queue("jobs");
        give_up(&bus, &q, 5).await;
        let redriven = bus.redrive(&q, |_| true, usize::MAX).await.unwrap();
        assert_eq!((redriven.moved, redriven.kept), (5, 0), "{name}: {redriven:?}");
        let mut sub = bus.subscribe(q).open().await.unwrap();
        for _ in 0..5 {
            let delivery = next(&mut sub).await;
            assert_eq!((&delivery.envelope().data[..], delivery.attempt()), (&br#"{"job":"reindex"}"#[..], 1));
            delivery.ack().await.unwrap();
        }
        bus.delete().await.unwrap();
        bus.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_two_sources_use_is_two_messages_to_a_redrive() {
    let Some(url) = url("rabbitmq") else { return };
    let queue = unique("sources");
    let bus = open(&url, Topology::new().queue("q", QueueSpec::new().physical(&queue))).await;
    bus.declare().await.unwrap();
    let channel = channel(&bus).await;
    for event in [
        r#"{"specversion":"1.0","id":"1","type":"order.placed","source":"/shop/eu","data":{"n":1}}"#,
        r#"{"specversion":"1.0","id":"1","type":"order.placed","source":"/shop/us","data":{"n":2}}"#,
        r#"{"specversion":"1.0","id":"2","type":"order.placed","source":"/shop/eu","data":{"n":3}}"#,
    ] {
        let properties = BasicProperties::default().with_content_type("application/cloudevents+json".into());
        publish(&channel, "", &queue, properties, event.as_bytes()).await;
    }
    let q = Source::queue("q");
    give_up(&bus, &q, 3).await;
    let of_us = |letter: &Envelope| &*letter.source == "/shop/us";
    let redriven = bus.redrive(&q, of_us, usize::MAX).await.unwrap();
    assert_eq!((redriven.moved, redriven.kept), (1, 2), "{redriven:?}");
    let mut sub = bus.subscribe(q.clone()).open().await.unwrap();
    let delivery = next(&mut sub).await;
    assert_eq!((&*delivery.envelope().id, &delivery.envelope().data[..]), ("1", &br#"{"n":2}"#[..]));
    delivery.ack().await.unwrap();
    let redriven = bus.redrive(&q, |_| true, usize::MAX).await.unwrap();
    assert_eq!(redriven.moved, 2, "{redriven:?}");
    let mut came = BTreeSet::new();
    for _ in 0..2 {
        let delivery = next(&mut sub).await;
        came.insert(delivery.envelope().data.to_vec());
        delivery.ack().await.unwrap();
    }
    // A redrive keeps no order.
    assert_eq!(came, [r#"{"n":1}"#, r#"{"n":3}"#].map(|data| data.as_bytes().to_vec()).into());
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}

/// Publishes it, and takes it twice: as it came, and as a copy of it comes.
async fn as_seen(url: &str, properties: BasicProperties, body: &[u8]) -> Envelope {
    let queue = unique("seen");
    let bus = open(url, Topology::new().queue("q", QueueSpec::new().physical(&queue))).await;
    bus.declare().await.unwrap();
    publish(&channel(&bus).await, "", &queue, properties, body).await;
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let first = next(&mut sub).await;
    let seen = first.envelope().clone();
    first.retry_after(Duration::from_millis(100)).await.unwrap();
    let again = next(&mut sub).await;
    assert_eq!(again.envelope(), &seen, "its copy is the same");
    again.ack().await.unwrap();
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
    seen
}

fn headers(of: &[(&str, &str)]) -> FieldTable {
    let mut headers = FieldTable::default();
    for (name, value) in of {
        headers.insert((*name).into(), AMQPValue::LongString((*value).into()));
    }
    headers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_compressed_is_told_as_that() {
    let Some(url) = url("rabbitmq") else { return };
    // Of {"ok":2,"value":1}.
    let body =
        b"\x1f\x8b\x08\0\0\0\0\0\0\x03\xabV\xca\xcfV\xb22\xd2Q*K\xcc)MU\xb22\xac\x05\0\x88\x87\xb7\xbe\x12\0\0\0";
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("gzip".into())
        .with_headers(headers(&[("source", "edge-4")]));
    let seen = as_seen(&url, properties, body).await;
    assert_eq!(seen.headers.get("native.content-encoding"), Some("gzip"), "{seen:?}");
    assert_eq!(seen.headers.get("source"), Some("edge-4"), "a header of theirs, and no CloudEvent: {seen:?}");
    assert_eq!((&seen.data[..], seen.content_type.as_deref()), (&body[..], Some("application/json")));
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_dapr_and_knative_are_read_as_events() {
    let Some(url) = url("rabbitmq") else { return };
    let trace = "00-33333333333333333333333333333333-4444444444444444-01";
    let properties = || BasicProperties::default().with_content_type("text/plain".into());
    let dapr = format!(
        r#"{{"data":{{"orderId":42}},"datacontenttype":"application/json","id":"9c1d0a52-1111-4222-8333-555555555555","pubsubname":"orders-pubsub","source":"checkout","specversion":"1.0","time":"2026-03-01T10:00:00Z","topic":"orders","traceid":"{trace}","traceparent":"{trace}","tracestate":"","type":"com.dapr.event.sent"}}"#
    );
    let seen = as_seen(&url, properties().with_headers(headers(&[("traceparent", trace)])), dapr.as_bytes()).await;
    assert_eq!((&*seen.event_type, &*seen.source), ("com.dapr.event.sent", "checkout"), "{seen:?}");
    assert_eq!((&*seen.id, &seen.data[..]), ("9c1d0a52-1111-4222-8333-555555555555", &br#"{"orderId":42}"#[..]));
    assert_eq!(seen.traceparent.as_deref(), Some(trace), "{seen:?}");

    for prefix in ["", "ce-", "CE-", "cloudEvents_"] {
        let named: Vec<(String, &str)> = [
            ("specversion", "1.0"),
            ("id", "kn-1"),
            ("type", "order.placed"),
            ("source", "/apis/v1/sample"),
            ("subject", "o-7"),
            ("time", "2026-03-01T10:00:00Z"),
        ]
        .map(|(name, value)| (format!("{prefix}{name}"), value))
        .into();
        let named: Vec<(&str, &str)> = named.iter().map(|(name, value)| (&**name, *value)).collect();
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_message_id("kn-1".into())
            .with_headers(headers(&named));
        let seen = as_seen(&url, properties, br#"{"order":7}"#).await;
        assert_eq!((&*seen.event_type, &*seen.source), ("order.placed", "/apis/v1/sample"), "{prefix}: {seen:?}");
        assert_eq!((&*seen.id, seen.subject.as_deref()), ("kn-1", Some("o-7")), "{prefix}: {seen:?}");
        assert_eq!((&seen.data[..], seen.time.is_some()), (&br#"{"order":7}"#[..], true), "{prefix}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_written_under_the_prefix_that_the_url_names() {
    let Some(url) = url("rabbitmq") else { return };
    for (parameter, prefix) in [("", "cloudEvents:"), ("&cloudevents=amqp", "cloudEvents:"), ("&cloudevents=ce", "ce-")]
    {
        let queue = unique("prefix");
        let topology = Topology::new().queue("q", QueueSpec::new().physical(&queue));
        let bus = open(&format!("{url}{parameter}"), topology.clone()).await;
        bus.declare().await.unwrap();
        let sent = Envelope::new("order.placed", "x").source("/shop").key("k").header("tenant", "acme");
        bus.publish(Address::queue("q"), sent.clone()).await.unwrap();
        let channel = channel(&bus).await;
        let got = channel.basic_get((&*queue).into(), BasicGetOptions { no_ack: true }).await.unwrap().unwrap();
        let table = got.delivery.properties.headers().clone().unwrap();
        let text = |name: &str| match table.inner().get(name) {
            Some(AMQPValue::LongString(value)) => value.to_string(),
            other => panic!("{parameter}: {name} is {other:?} of {table:?}"),
        };
        let attributes = ["specversion", "id", "type", "source"].map(|name| text(&format!("{prefix}{name}")));
        assert_eq!(attributes, ["1.0".into(), sent.id.to_string(), "order.placed".into(), "/shop".into()]);
        let other = if prefix == "ce-" { "cloudEvents" } else { "ce-" };
        assert!(table.inner().keys().all(|name| !name.as_str().starts_with(other)), "{table:?}");

        // Who writes otherwise reads it all the same, its copies too.
        let reading = open(&url, topology).await;
        bus.publish(Address::queue("q"), sent.clone()).await.unwrap();
        let mut sub = reading.subscribe(Source::queue("q")).open().await.unwrap();
        for attempt in 1..=2 {
            let delivery = next(&mut sub).await;
            assert_eq!((delivery.envelope(), delivery.attempt()), (&sent, attempt), "{parameter}");
            match attempt {
                1 => delivery.retry_after(Duration::from_millis(100)).await.unwrap(),
                _ => delivery.ack().await.unwrap(),
            }
        }
        bus.delete().await.unwrap();
        reading.close().await.unwrap();
        bus.close().await.unwrap();
    }
}

/// What a subscription's binding let in is handed out, whatever it is, and comes back from its dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_binding_let_in_is_never_deleted_unseen() {
    let Some(url) = url("rabbitmq") else { return };
    let topic = unique("routed");
    let spec = TopicSpec::new().physical(&topic).subscription("s", SubscriptionSpec::new().types(["order.*"]));
    let bus = open(&url, Topology::new().topic("t", spec)).await;
    bus.declare().await.unwrap();
    let channel = channel(&bus).await;
    publish(&channel, &topic, "order.placed", BasicProperties::default(), b"no event at all").await;
    // An event of a type that this program does not want, under a key that the binding lets in.
    let other = [("specversion", "1.0"), ("id", "r-1"), ("type", "refund.made"), ("source", "/shop")]
        .map(|(name, value)| (format!("cloudEvents:{name}"), value));
    let other: Vec<(&str, &str)> = other.iter().map(|(name, value)| (&**name, *value)).collect();
    let properties = BasicProperties::default().with_headers(headers(&other));
    publish(&channel, &topic, "order.refund", properties, b"refund").await;
    let s = Source::subscription("t", "s");
    let mut sub = bus.subscribe(s.clone()).open().await.unwrap();
    let foreign = next(&mut sub).await;
    assert_eq!(&foreign.envelope().data[..], b"no event at all");
    assert_eq!(foreign.envelope().headers.get("native.routing-key"), Some("order.placed"));
    foreign.ack().await.unwrap();
    let mut dead = bus.subscribe(s.dead_letters()).open().await.unwrap();
    // What becomes of the next one is decided when it is asked for.
    let letter = tokio::select! {
        letter = next(&mut dead) => letter,
        unwanted = next(&mut sub) => panic!("handed out: {unwanted:?}"),
    };
    assert_eq!((&letter.envelope().data[..], &*letter.envelope().event_type), (&b"refund"[..], "refund.made"));
    assert_eq!(letter.dead_letter_info().unwrap().reason.as_deref(), Some("unwanted-type"));
    letter.ack().await.unwrap();
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}
