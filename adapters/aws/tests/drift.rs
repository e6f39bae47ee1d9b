//! `verify` reports each setting that `declare` writes and that somebody has changed since, with entity, setting,
//! wanted and found.
#![allow(clippy::unwrap_used)]

use polybus_aws::{AwsConnector, Native, aws_sdk_sns, aws_sdk_sqs::types::QueueAttributeName as Attribute};
use polybus_core::{
    Bus, BusOptions, QueueSpec, Registry, SubscriptionSpec, TopicSpec, Topology, topology::EntityDifference,
};
use serde_json::json;

fn url() -> Option<String> {
    polybus_conformance::broker_url("aws", "POLYBUS_AWS_URL")
}

struct DeclaredTopology {
    bus: Bus,
    prefix: String,
}

impl DeclaredTopology {
    async fn new(url: &str, name: &str, topology: Topology) -> Self {
        let prefix = format!("drift-{name}-{}", std::process::id());
        let driver = Registry::new().with(AwsConnector).connect(url).await.unwrap();
        let bus = Bus::new(driver, BusOptions::topology(topology.prefix(&prefix))).unwrap();
        let report = bus.declare().await.unwrap();
        assert!(report.differences.is_empty() && report.unchecked.is_empty(), "{report:?}");
        let this = Self { bus, prefix };
        assert_eq!(this.found().await, [] as [[String; 4]; 0], "what was just made is as it should be");
        this
    }

    fn native(&self) -> &Native {
        self.bus.native::<Native>().unwrap()
    }

    fn named(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }

    async fn queue_url(&self, queue: &str) -> String {
        self.native().queue_url(&self.named(queue)).await.unwrap()
    }

    async fn set(&self, queue: &str, attribute: Attribute, value: &str) {
        let call = self.native().sqs().set_queue_attributes().queue_url(self.queue_url(queue).await);
        call.attributes(attribute, value).send().await.unwrap();
    }

    async fn topic_arn(&self, topic: &str) -> String {
        self.native().topic_arn(&self.named(topic)).await.unwrap()
    }

    /// Setting, wanted and found of each difference that `verify` tells, behind its entity.
    async fn found(&self) -> Vec<[String; 4]> {
        let all = self.bus.verify().await.unwrap().differences;
        all.into_iter()
            .map(|EntityDifference { entity, setting, wanted, found, .. }| [entity, setting, wanted, found])
            .collect()
    }

    async fn expect(&self, one: [&str; 4]) {
        assert_eq!(self.found().await, [one.map(str::to_owned)]);
        // `declare` tells the same, and mends none of it.
        let told = self.bus.declare().await.unwrap();
        assert_eq!((told.differences.len(), told.created.len()), (1, 0), "{told:?}");
        assert_eq!(self.found().await, [one.map(str::to_owned)]);
    }

    async fn end(self) {
        self.bus.delete().await.unwrap();
        self.bus.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn queues() {
    let Some(url) = url() else { return };
    let options = json!({ "kms_key": "alias/ours", "tags": { "team": "a" }, "retention": "2d" });
    let topology = Topology::new().queue("q", QueueSpec::new().option("aws", options));
    let made = DeclaredTopology::new(&url, "queues", topology).await;
    for (queue, label) in [("q", "queue:q"), ("q_dlq", "queue:q#dead-letters")] {
        for (attribute, was, now, told) in [
            (Attribute::MessageRetentionPeriod, "172800", "60", ["retention", "172800 s", "60 s"]),
            (Attribute::KmsMasterKeyId, "alias/ours", "alias/theirs", ["kms_key", "alias/ours", "alias/theirs"]),
        ] {
            made.set(queue, attribute.clone(), now).await;
            made.expect([label, told[0], told[1], told[2]]).await;
            made.set(queue, attribute, was).await;
        }
        // What an ARN names is the same key.
        made.set(queue, Attribute::KmsMasterKeyId, "arn:aws:kms:us-east-1:000000000000:alias/ours").await;
        assert_eq!(made.found().await, [] as [[String; 4]; 0]);

        let least = if queue == "q" { "at least 1047552" } else { "at least 1048576" };
        made.set(queue, Attribute::MaximumMessageSize, "262144").await;
        made.expect([label, "max_message_size", least, "262144"]).await;
        made.set(queue, Attribute::MaximumMessageSize, "1048576").await;

        let url = made.queue_url(queue).await;
        made.native().sqs().tag_queue().queue_url(&url).tags("team", "b").tags("theirs", "x").send().await.unwrap();
        made.expect([label, "tags.team", "a", "b"]).await;
        made.native().sqs().untag_queue().queue_url(&url).tag_keys("team").send().await.unwrap();
        made.expect([label, "tags.team", "a", "none"]).await;
        made.native().sqs().tag_queue().queue_url(&url).tags("team", "a").send().await.unwrap();
    }
    made.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_that_was_switched_off() {
    let Some(url) = url() else { return };
    let made = DeclaredTopology::new(&url, "sse", Topology::new().queue("q", QueueSpec::new())).await;
    made.set("q", Attribute::SqsManagedSseEnabled, "false").await;
    made.expect(["queue:q", "encryption", "on", "off"]).await;
    // A key of the operator's own is encryption too.
    made.set("q", Attribute::KmsMasterKeyId, "alias/theirs").await;
    assert_eq!(made.found().await, [] as [[String; 4]; 0]);
    made.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_and_their_limit() {
    let Some(url) = url() else { return };
    let queues = Topology::new().queue("q", QueueSpec::new().max_deliveries(7)).queue("other", QueueSpec::new());
    let made = DeclaredTopology::new(&url, "redrive", queues).await;
    let arn = |queue: &str| {
        let queue = made.named(queue);
        format!("arn:aws:sqs:us-east-1:000000000000:{queue}")
    };
    let policy =
        |arn: &str, limit: u32| json!({ "deadLetterTargetArn": arn, "maxReceiveCount": limit.to_string() }).to_string();
    let (own, other) = (arn("q_dlq"), arn("other_dlq"));
    made.set("q", Attribute::RedrivePolicy, &policy(&own, 7)).await;
    made.expect(["queue:q", "maxReceiveCount", "more than 7", "7"]).await;
    made.set("q", Attribute::RedrivePolicy, &policy(&own, 8)).await;
    assert_eq!(made.found().await, [] as [[String; 4]; 0], "a limit above core's is the operator's affair");
    made.set("q", Attribute::RedrivePolicy, &policy(&other, 12)).await;
    made.expect(["queue:q", "dead letters", &own, &other]).await;
    made.set("q", Attribute::RedrivePolicy, "").await;
    made.expect(["queue:q", "dead letters", &own, "none"]).await;
    made.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fifo_queues() {
    let Some(url) = url() else { return };
    let made = DeclaredTopology::new(&url, "fifo", Topology::new().queue("q", QueueSpec::new().ordered(true))).await;
    // The limit per group needs the scope per group, so they change together.
    let change = async |limit: &str, scope: &str| {
        let call = made.native().sqs().set_queue_attributes().queue_url(made.queue_url("q.fifo").await);
        let call = call.attributes(Attribute::FifoThroughputLimit, limit);
        call.attributes(Attribute::DeduplicationScope, scope).send().await.unwrap();
    };
    change("perQueue", "messageGroup").await;
    made.expect(["queue:q", "FifoThroughputLimit", "perMessageGroupId", "perQueue"]).await;
    change("perQueue", "queue").await;
    let found = made.found().await;
    assert!(found.iter().any(|[_, setting, wanted, found]| {
        (&**setting, &**wanted, &**found) == ("DeduplicationScope", "messageGroup", "queue")
    }));
    made.end().await;
    // The other kind stands beside this one, by another name.
    let made = DeclaredTopology::new(&url, "kind", Topology::new().queue("q", QueueSpec::new())).await;
    let driver = Registry::new().with(AwsConnector).connect(&url).await.unwrap();
    let other = Topology::new().prefix(&made.prefix).queue("q", QueueSpec::new().ordered(true));
    let other = Bus::new(driver, BusOptions::topology(other)).unwrap();
    let told = other.verify().await.unwrap().differences;
    assert_eq!(told, [EntityDifference::new("queue:q", "ordered", "true", "false")]);
    made.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics() {
    let Some(url) = url() else { return };
    let options = json!({ "kms_key": "alias/ours", "tags": { "team": "a" } });
    let topic = || TopicSpec::new().option("aws", options.clone());
    let topology = Topology::new().topic("t", topic()).topic("sorted", topic().ordered(true));
    let made = DeclaredTopology::new(&url, "topics", topology).await;
    let sns = made.native().sns();
    let set = async |topic: &str, name: &str, value: &str| {
        let call = sns.set_topic_attributes().topic_arn(made.topic_arn(topic).await);
        call.attribute_name(name).attribute_value(value).send().await.unwrap();
    };
    set("t", "KmsMasterKeyId", "alias/theirs").await;
    made.expect(["topic:t", "kms_key", "alias/ours", "alias/theirs"]).await;
    set("t", "KmsMasterKeyId", "alias/ours").await;
    set("sorted.fifo", "FifoThroughputScope", "Topic").await;
    made.expect(["topic:sorted", "FifoThroughputScope", "MessageGroup", "Topic"]).await;
    set("sorted.fifo", "FifoThroughputScope", "MessageGroup").await;

    let arn = made.topic_arn("t").await;
    let tag = |value: &str| aws_sdk_sns::types::Tag::builder().key("team").value(value).build().unwrap();
    sns.tag_resource().resource_arn(&arn).tags(tag("b")).send().await.unwrap();
    made.expect(["topic:t", "tags.team", "a", "b"]).await;
    sns.untag_resource().resource_arn(&arn).tag_keys("team").send().await.unwrap();
    made.expect(["topic:t", "tags.team", "a", "none"]).await;
    made.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subscriptions() {
    let Some(url) = url() else { return };
    let sub = SubscriptionSpec::new().types(["a.*", "b"]);
    let made =
        DeclaredTopology::new(&url, "subs", Topology::new().topic("t", TopicSpec::new().subscription("s", sub))).await;
    let (sns, topic) = (made.native().sns(), made.topic_arn("t").await);
    let all = sns.list_subscriptions_by_topic().topic_arn(&topic).send().await.unwrap();
    let arn = all.subscriptions()[0].subscription_arn().unwrap().to_owned();
    let set = async |name: &str, value: &str| {
        let call = sns.set_subscription_attributes().subscription_arn(&arn);
        call.attribute_name(name).attribute_value(value).send().await.unwrap();
    };
    let label = "subscription:t/s";
    set("RawMessageDelivery", "false").await;
    made.expect([label, "RawMessageDelivery", "true", "false"]).await;
    set("RawMessageDelivery", "true").await;
    set("FilterPolicyScope", "MessageBody").await;
    made.expect([label, "FilterPolicyScope", "MessageAttributes", "MessageBody"]).await;
    set("FilterPolicyScope", "MessageAttributes").await;
    set("FilterPolicy", r#"{"cloudEvents_type":["b",{"prefix":"a."},"c"]}"#).await;
    made.expect([label, "types", "none", "c"]).await;
    set("FilterPolicy", r#"{"tenant":["x"]}"#).await;
    made.expect([label, "types", "a filter policy on cloudEvents_type alone", "another"]).await;
    // What is kept out, `declare` lets in, so only `verify` tells.
    set("FilterPolicy", r#"{"cloudEvents_type":["b"]}"#).await;
    assert_eq!(made.found().await, [[label, "types", "a.*", "none"].map(str::to_owned)]);
    assert_eq!(made.bus.declare().await.unwrap().differences, []);
    made.set("t_s", Attribute::Policy, "").await;
    let admits = format!("admits {topic}");
    assert_eq!(made.found().await, [[label, "policy", &*admits, "does not"].map(str::to_owned)]);
    assert_eq!(made.bus.declare().await.unwrap().differences, []);
    // Neither is what the queue refuses to be lost.
    let policy = r#"{"cloudEvents_type":["b",{"prefix":"a."}]}"#;
    let letters = format!("arn:aws:sqs:us-east-1:000000000000:{}", made.named("t_s_dlq"));
    made.set("t_s_dlq", Attribute::Policy, "").await;
    let told = ["subscription:t/s#dead-letters", "policy", &*admits, "does not"];
    assert_eq!(made.found().await, [told.map(str::to_owned)]);
    assert_eq!(made.bus.declare().await.unwrap().differences, []);
    set("RedrivePolicy", r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:000000000000:theirs"}"#).await;
    made.expect([label, "kept when refused", &*letters, "arn:aws:sqs:us-east-1:000000000000:theirs"]).await;
    sns.unsubscribe().subscription_arn(&arn).send().await.unwrap();
    let queue = format!("arn:aws:sqs:us-east-1:000000000000:{}", made.named("t_s"));
    let subscribe = sns.subscribe().topic_arn(&topic).protocol("sqs").endpoint(queue).return_subscription_arn(true);
    let subscribe = subscribe.attributes("RawMessageDelivery", "true").attributes("FilterPolicy", policy);
    let arn = subscribe.send().await.unwrap().subscription_arn.unwrap();
    assert_eq!(made.found().await, [[label, "kept when refused", &*letters, "none"].map(str::to_owned)]);
    assert_eq!(made.bus.declare().await.unwrap().differences, []);
    assert_eq!(made.found().await, [] as [[String; 4]; 0]);
    sns.unsubscribe().subscription_arn(&arn).send().await.unwrap();
    assert_eq!(made.found().await, [[label, "subscribed to", &*topic, "none"].map(str::to_owned)]);
    assert_eq!(made.bus.declare().await.unwrap().created, [label]);
    assert_eq!(made.found().await, [] as [[String; 4]; 0]);
    made.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing() {
    let Some(url) = url() else { return };
    let topic = TopicSpec::new().subscription("s", SubscriptionSpec::new());
    let made =
        DeclaredTopology::new(&url, "gone", Topology::new().queue("q", QueueSpec::new()).topic("t", topic)).await;
    let gone = async |queue: &str| {
        let url = made.queue_url(queue).await;
        made.native().sqs().delete_queue().queue_url(url).send().await.unwrap();
    };
    gone("q_dlq").await;
    let names = |name: &str| format!("no queue {}", made.named(name));
    assert_eq!(made.found().await, [["queue:q#dead-letters", "exists", "yes", &names("q_dlq")].map(str::to_owned)]);
    gone("q").await;
    assert_eq!(made.found().await, [["queue:q", "exists", "yes", &names("q")].map(str::to_owned)]);
    made.native().sns().delete_topic().topic_arn(made.topic_arn("t").await).send().await.unwrap();
    let found = made.found().await;
    let topic = format!("no topic {}", made.named("t"));
    assert!(found.contains(&["topic:t", "exists", "yes", &topic].map(str::to_owned)), "{found:?}");
    made.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_of_an_emulator() {
    let Some(url) = url() else { return };
    let driver = Registry::new().with(AwsConnector).connect(&url).await.unwrap();
    let bus = Bus::new(driver, BusOptions::default()).unwrap();
    let version = bus.version().await.unwrap();
    assert!(version.starts_with("LocalStack 4."), "{version}");
    bus.close().await.unwrap();
}
