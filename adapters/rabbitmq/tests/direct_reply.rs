//! Answers to clients that wait by RabbitMQ's direct reply-to.
#![allow(clippy::unwrap_used)]

mod broker;

use std::time::Duration;

use broker::url;
use futures_util::StreamExt;
use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, ErrorKind, QueueSpec, Registry, Source, Subscription, Topology,
    message::ReplyTo,
};
use polybus_rabbitmq::{
    Native, RabbitmqConnector,
    lapin::{
        BasicProperties, Channel,
        options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions},
        types::FieldTable,
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

/// The broker says of such a message that no queue takes it, though it delivers it.
#[tokio::test(flavor = "multi_thread")]
async fn a_direct_reply_is_sent_once() {
    for name in ["rabbitmq4", "rabbitmq"] {
        let Some(url) = url(name) else { continue };
        let queue = unique("rpc");
        let bus = open(&url, Topology::new().queue("q", QueueSpec::new().physical(&queue))).await;
        bus.declare().await.unwrap();
        let channel = channel(&bus).await;
        let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let direct = "amq.rabbitmq.reply-to";
        let mut replies = channel.basic_consume(direct.into(), "".into(), no_ack, FieldTable::default()).await.unwrap();
        let asking = BasicProperties::default().with_reply_to(direct.into()).with_correlation_id("rpc-7".into());
        publish(&channel, "", &queue, asking, b"30").await;

        let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
        let request = next(&mut sub).await;
        let to = ReplyTo::of(request.envelope()).unwrap();
        for n in 0..3 {
            let answer = Envelope::new("number", n.to_string()).caused_by(request.envelope());
            bus.publish_reply(&to, answer).await.unwrap();
        }
        request.ack().await.unwrap();
        for n in 0..3 {
            let reply = timeout(PATIENCE, replies.next()).await.unwrap().unwrap().unwrap();
            assert_eq!(reply.data, n.to_string().into_bytes(), "{name}");
            assert_eq!(reply.properties.correlation_id().as_ref().map(|id| id.as_str()), Some("rpc-7"));
            assert_eq!(reply.properties.content_encoding().as_ref(), None);
        }

        // An exclusive queue is gone with its client.
        let gone = Envelope::bare(Envelope::FOREIGN_TYPE, "30").header("native.reply-to", "amq.gen-gone");
        let error = bus.publish_reply(&ReplyTo::of(&gone).unwrap(), Envelope::new("a", "")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        bus.delete().await.unwrap();
        bus.close().await.unwrap();
    }
}

/// The broker ends a connection that publishes to such a name, and closes a channel for the other one.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_direct_replies_that_nobody_can_read_disturb_nobody() {
    for name in ["rabbitmq4", "rabbitmq"] {
        let Some(url) = url(name) else { continue };
        let queue = unique("rpc");
        let bus = open(&url, Topology::new().queue("q", QueueSpec::new().physical(&queue))).await;
        bus.declare().await.unwrap();
        bus.publish(Address::queue("q"), Envelope::new("a", "0")).await.unwrap();
        for junk in ["amq.rabbitmq.reply-to.QUJD.QUJD", "amq.rabbitmq.reply-to.!!!.???"] {
            let asking = Envelope::bare(Envelope::FOREIGN_TYPE, "30").header("native.reply-to", junk);
            let to = ReplyTo::of(&asking).unwrap();
            let beside = (0..50).map(|n| Envelope::new("a", n.to_string()));
            let (refused, others) = tokio::join!(
                bus.publish_reply(&to, Envelope::new("a", "")),
                bus.publish_all(Address::queue("q"), beside)
            );
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotFound, "{name} {junk}: {refused}");
            assert!(others.iter().all(Result::is_ok), "{name}: {others:?}");
        }
        // It stands for a name that the broker gives, and to nobody who consumes no replies on the same channel.
        let asking = Envelope::new("a", "").reply_to("amq.rabbitmq.reply-to");
        bus.publish(Address::queue("q"), asking).await.unwrap();
        bus.delete().await.unwrap();
        bus.close().await.unwrap();
    }
}
