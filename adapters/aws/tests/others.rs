//! Messages that another program wrote and queues that another program created: how they are received, copied and
//! redriven.
#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, time::Duration};

use polybus_aws::{
    AwsConnector, Native, NativeMessage,
    aws_sdk_sqs::{
        primitives::Blob,
        types::{Message, MessageAttributeValue, QueueAttributeName},
    },
};
use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, QueueSpec, Registry, Source, Subscription, SubscriptionSpec,
    TopicSpec, Topology,
};
use serde_json::Value;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(120);

struct TestBus {
    bus: Bus,
    prefix: String,
}

impl TestBus {
    async fn new(name: &str, topology: Topology) -> Option<Self> {
        let url = polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL")?;
        let driver = Registry::new().with(AwsConnector).connect(&url).await.unwrap();
        let prefix = format!("others-{name}-{}", std::process::id());
        let bus = Bus::new(driver, BusOptions::topology(topology.prefix(&prefix))).unwrap();
        bus.declare().await.unwrap();
        Some(Self { bus, prefix })
    }

    fn native(&self) -> &Native {
        self.bus.native::<Native>().unwrap()
    }

    async fn url(&self, queue: &str) -> String {
        self.native().queue_url(&format!("{}_{queue}", self.prefix)).await.unwrap()
    }

    async fn subscribe(&self, source: Source) -> Subscription {
        self.bus.subscribe(source).open().await.unwrap()
    }

    /// As the other program would see the next message of a queue; it is deleted.
    async fn raw(&self, queue: &str) -> Message {
        let url = self.url(queue).await;
        let received = async {
            loop {
                let call = self.native().sqs().receive_message().queue_url(&url).message_attribute_names("All");
                let call = call.message_system_attribute_names("All".into()).wait_time_seconds(1);
                if let Some(message) = call.send().await.unwrap().messages.unwrap_or_default().pop() {
                    return message;
                }
            }
        };
        let message = timeout(PATIENCE, received).await.unwrap();
        let handle = message.receipt_handle().unwrap();
        self.native().sqs().delete_message().queue_url(&url).receipt_handle(handle).send().await.unwrap();
        message
    }

    async fn end(self) {
        self.bus.delete().await.unwrap();
        self.bus.close().await.unwrap();
    }
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(PATIENCE, sub.next()).await.unwrap().unwrap().unwrap()
}

fn ten_attributes() -> HashMap<String, MessageAttributeValue> {
    let given: HashMap<String, Value> = serde_json::from_str(include_str!("data/ten_attributes.json")).unwrap();
    let value = |v: &Value| {
        let value = MessageAttributeValue::builder().data_type(v["DataType"].as_str().unwrap());
        match v.get("BinaryValue") {
            Some(_) => value.binary_value(Blob::new([0xde, 0xad, 0xbe, 0xef])),
            None => value.string_value(v["StringValue"].as_str().unwrap()),
        }
    };
    given.iter().map(|(name, v)| (name.clone(), value(v).build().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_ten_attributes_comes_back_as_it_was() {
    for ordered in [false, true] {
        let topology = Topology::new().queue("q", QueueSpec::new().ordered(ordered));
        let Some(stack) = TestBus::new(if ordered { "ten-fifo" } else { "ten" }, topology).await else { return };
        let queue = if ordered { "q.fifo" } else { "q" };
        let call = stack.native().sqs().send_message().queue_url(stack.url(queue).await).message_body("one,two");
        let call = call.set_message_attributes(Some(ten_attributes()));
        let call = match ordered {
            true => call.message_group_id("theirs").message_deduplication_id("d1"),
            false => call,
        };
        call.send().await.unwrap();
        let mut sub = stack.subscribe(Source::queue("q")).await;
        let first = next(&mut sub).await;
        let envelope = first.envelope().clone();
        assert_eq!(first.native::<NativeMessage>().unwrap().attributes(), &ten_attributes());
        first.retry_after(Duration::from_millis(300)).await.unwrap();
        let again = next(&mut sub).await;
        assert_eq!((again.attempt(), again.envelope()), (2, &envelope));
        again.dead_letter("unfit", "why").await.unwrap();
        let mut dead = stack.subscribe(Source::queue("q").dead_letters()).await;
        let letter = next(&mut dead).await;
        assert_eq!(letter.envelope(), &envelope);
        assert_eq!(letter.dead_letter_info().unwrap().reason.as_deref(), Some("unfit"));
        let native = letter.native::<NativeMessage>().unwrap();
        assert_eq!((native.body(), native.attributes()), ("one,two", &ten_attributes()));
        letter.release().await.unwrap();
        dead.close().await.unwrap();
        sub.close().await.unwrap();
        let done = stack.bus.redrive(Source::queue("q"), |_| true, 10).await.unwrap();
        assert_eq!(done.moved, 1, "{done:?}");
        let back = stack.raw(queue).await;
        assert_eq!((back.body(), back.message_attributes()), (Some("one,two"), Some(&ten_attributes())));
        let group = back.attributes().unwrap().iter().find(|(name, _)| name.as_str() == "MessageGroupId");
        assert_eq!(group.map(|(_, group)| &**group), ordered.then_some("theirs"));
        stack.end().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_without_raw_delivery_loses_nothing() {
    let sub = SubscriptionSpec::new().types(["order.*"]);
    let topology = Topology::new().topic("orders", TopicSpec::new().subscription("billing", sub));
    let Some(stack) = TestBus::new("notraw", topology).await else { return };
    let sns = stack.native().sns();
    let topic = stack.native().topic_arn(&format!("{}_orders", stack.prefix)).await.unwrap();
    let all = sns.list_subscriptions_by_topic().topic_arn(&topic).send().await.unwrap();
    let arn = all.subscriptions()[0].subscription_arn().unwrap();
    let call = sns.set_subscription_attributes().subscription_arn(arn);
    call.attribute_name("RawMessageDelivery").attribute_value("false").send().await.unwrap();
    let told = stack.bus.declare().await.unwrap();
    assert_eq!(told.differences.len(), 1, "{told:?}");
    let sent: Vec<Envelope> =
        (0..11).map(|n| Envelope::new("order.placed", n.to_string()).source("/s").header("h", "é")).collect();
    for result in stack.bus.publish_all(Address::topic("orders"), sent.clone()).await {
        result.unwrap();
    }
    let mut sub = stack.subscribe(Source::subscription("orders", "billing")).await;
    let mut handled = Vec::new();
    for n in 0..11 {
        let delivery = next(&mut sub).await;
        assert!(delivery.native::<NativeMessage>().unwrap().body().contains("\"Notification\""));
        handled.push(delivery.envelope().clone());
        match n {
            // What is wrapped can be a dead letter, and comes back.
            0 => delivery.dead_letter("unfit", "").await.unwrap(),
            _ => delivery.ack().await.unwrap(),
        }
    }
    let done = stack.bus.redrive(Source::subscription("orders", "billing"), |_| true, 10).await.unwrap();
    assert_eq!(done.moved, 1, "{done:?}");
    let back = next(&mut sub).await;
    assert_eq!(back.envelope(), &handled[0]);
    back.ack().await.unwrap();
    handled.sort_by(|a, b| a.data.len().cmp(&b.data.len()).then_with(|| a.data.cmp(&b.data)));
    assert_eq!(handled, sent);
    // One that is no CloudEvent, as a console publishes it. The filter is not asked here: it wants an attribute that
    // this has.
    let attribute = polybus_aws::aws_sdk_sns::types::MessageAttributeValue::builder().data_type("String");
    let publish = sns.publish().topic_arn(&topic).message("by hand").subject("Import");
    let publish = publish.message_attributes("cloudEvents_type", attribute.string_value("order.x").build().unwrap());
    let id = publish.send().await.unwrap().message_id.unwrap();
    let plain = next(&mut sub).await;
    let e = plain.envelope();
    assert_eq!((&*e.id, &*e.data, e.time.is_some()), (&*id, &b"by hand"[..], true));
    plain.ack().await.unwrap();
    sub.close().await.unwrap();
    stack.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_messages_of_one_id_are_two_letters() {
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(true));
    let Some(stack) = TestBus::new("twice", topology).await else { return };
    let document = |n: u32| {
        let json =
            format!(r#"{{"specversion":"1.0","id":"1","type":"a.b","source":"/s","partitionkey":"k","data":{n}}}"#);
        (json, format!("d{n}"))
    };
    for n in 0..3 {
        let (json, dedup) = document(n);
        let call = stack.native().sqs().send_message().queue_url(stack.url("q.fifo").await).message_body(json);
        let kind = MessageAttributeValue::builder().data_type("String").string_value("application/cloudevents+json");
        let call = call.message_attributes("content-type", kind.build().unwrap());
        call.message_group_id("k").message_deduplication_id(dedup).send().await.unwrap();
    }
    let mut sub = stack.subscribe(Source::queue("q")).await;
    for _ in 0..3 {
        next(&mut sub).await.dead_letter("unfit", "").await.unwrap();
    }
    let letters = stack.bus.stats(Source::queue("q")).await.unwrap().dead_lettered;
    assert_eq!(letters, Some(3), "SQS swallows no copy for its id");
    sub.close().await.unwrap();
    stack.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_groups_of_others_do_not_wait_for_each_other() {
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(true).max_deliveries(100));
    let Some(stack) = TestBus::new("groups", topology).await else { return };
    let url = stack.url("q.fifo").await;
    for n in 0..3 {
        for group in 0..8 {
            let call = stack.native().sqs().send_message().queue_url(&url).message_body(format!("{group} {n}"));
            let call = call.message_group_id(format!("g{group}")).message_deduplication_id(format!("{group}-{n}"));
            call.send().await.unwrap();
        }
    }
    let mut sub = stack.bus.subscribe(Source::queue("q")).prefetch(80).open().await.unwrap();
    let mut seen: HashMap<String, Vec<String>> = HashMap::new();
    // The first group's head is held all the time, and the others are done nevertheless, each in its order.
    let mut held = None;
    while seen.len() < 7 || seen.values().any(|messages| messages.len() < 3) {
        let delivery = next(&mut sub).await;
        assert_eq!(delivery.envelope().headers.get("native.message-group-id").map(|g| g.starts_with('g')), Some(true));
        let text = String::from_utf8(delivery.envelope().data.to_vec()).unwrap();
        let (group, n) = text.split_once(' ').unwrap();
        if group == "0" {
            assert!(n == "0" && held.is_none(), "one of a group at a time: {text}");
            held = Some(delivery);
            continue;
        }
        seen.entry(group.to_owned()).or_default().push(n.to_owned());
        delivery.ack().await.unwrap();
    }
    assert!(seen.values().all(|messages| messages == &["0", "1", "2"]), "{seen:?}");
    held.take().unwrap().ack().await.unwrap();
    for n in ["0 1", "0 2"] {
        let delivery = next(&mut sub).await;
        assert_eq!(&*delivery.envelope().data, n.as_bytes());
        delivery.ack().await.unwrap();
    }
    sub.close().await.unwrap();
    stack.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_letter_that_is_kept_hides_none_behind_it() {
    let topology = Topology::new().queue("q", QueueSpec::new().ordered(true));
    let Some(stack) = TestBus::new("kept", topology).await else { return };
    let own = (0..6).map(|n| Envelope::new(if n % 2 == 0 { "keep.it" } else { "move.it" }, n.to_string()).key("k"));
    for result in stack.bus.publish_all(Address::queue("q"), own).await {
        result.unwrap();
    }
    let mut sub = stack.subscribe(Source::queue("q")).await;
    for _ in 0..6 {
        next(&mut sub).await.dead_letter("unfit", "").await.unwrap();
    }
    let dead = Source::queue("q").dead_letters();
    let done = stack.bus.redrive(Source::queue("q"), |e| e.event_type.starts_with("move"), 100).await.unwrap();
    assert_eq!((done.moved, done.kept), (3, 3), "{done:?}");
    // A redrive keeps no order.
    let mut moved = Vec::new();
    for _ in 0..3 {
        let back = next(&mut sub).await;
        moved.push(back.envelope().data[0]);
        back.ack().await.unwrap();
    }
    moved.sort_unstable();
    assert_eq!(moved, *b"135");
    // They are what they were: reason and all.
    let mut letters = stack.subscribe(dead.clone()).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let letter = next(&mut letters).await;
        kept.push(letter.envelope().data[0]);
        assert_eq!(letter.dead_letter_info().unwrap().reason.as_deref(), Some("unfit"));
        letter.ack().await.unwrap();
    }
    kept.sort_unstable();
    assert_eq!(kept, *b"024");
    letters.close().await.unwrap();
    sub.close().await.unwrap();
    stack.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_foreign_message_can_be_a_dead_letter_and_come_back() {
    let Some(stack) = TestBus::new("large", Topology::new().queue("q", QueueSpec::new())).await else { return };
    let body = "x".repeat(1 << 20);
    stack.native().sqs().send_message().queue_url(stack.url("q").await).message_body(&body).send().await.unwrap();
    let mut sub = stack.subscribe(Source::queue("q")).await;
    next(&mut sub).await.dead_letter("unfit", "why").await.unwrap();
    let done = stack.bus.redrive(Source::queue("q"), |_| true, 10).await.unwrap();
    assert_eq!(done.moved, 1, "{done:?}");
    let back = next(&mut sub).await;
    assert_eq!(&*back.envelope().data, body.as_bytes());
    back.ack().await.unwrap();
    sub.close().await.unwrap();
    stack.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_queue_refuses_is_kept() {
    let topology = Topology::new().topic("t", TopicSpec::new().subscription("s", SubscriptionSpec::new()));
    let Some(stack) = TestBus::new("refused", topology).await else { return };
    // A queue that is gone refuses everything; LocalStack enforces no policy.
    let live = stack.url("t_s").await;
    stack.native().sqs().delete_queue().queue_url(&live).send().await.unwrap();
    stack.bus.publish(Address::topic("t"), Envelope::new("a.b", "1")).await.unwrap();
    let kept = stack.raw("t_s_dlq").await;
    assert!(kept.body().unwrap().contains("a.b"), "{kept:?}");
    stack.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_messages_make_queues_that_every_partition_takes() {
    let Some(url) = polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL") else { return };
    let driver = Registry::new().with(AwsConnector).connect(&format!("{url}&max_message_size=255KiB")).await.unwrap();
    let name = format!("others-small-{}", std::process::id());
    let topology = Topology::new().queue("q", QueueSpec::new().physical(&name));
    let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    assert!(bus.verify().await.unwrap().differences.is_empty());
    let native = bus.native::<Native>().unwrap();
    let url = native.queue_url(&name).await.unwrap();
    let asked = native.sqs().get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All);
    let found = asked.send().await.unwrap().attributes.unwrap();
    assert_eq!(found[&QueueAttributeName::MaximumMessageSize], "262144");
    bus.delete().await.unwrap();
    bus.close().await.unwrap();
}
