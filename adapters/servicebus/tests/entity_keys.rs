//! Keys and tokens of one queue or topic, against an emulator in this process that knows no other key.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, SystemTime};

use polybus_core::{
    Address, Bus, BusOptions, Delivery, Envelope, Error, ErrorKind, Outgoing, QueueSpec, Registry, Result, Source,
    Subscription, Topology,
};
use polybus_servicebus::ServicebusConnector;
use polybus_servicebus_emulator::{
    Emulator, EmulatorOptions as Emulated,
    auth::AccessKey,
    broker::{QueueSettings, SubscriptionSettings, TopicSettings},
};
use tokio::time::timeout;

/// Knows the key of one entity only.
async fn emulator(entity: &str) -> Emulator {
    let key = AccessKey::new("Own", "s3cret").of_entity(entity);
    let emulator = Emulator::start(Emulated { key: Some(key), ..Emulated::default() }).await.unwrap();
    let broker = emulator.broker();
    broker.create_queue("orders", QueueSettings::default()).unwrap();
    broker.create_queue("other", QueueSettings::default()).unwrap();
    broker.create_topic("events", TopicSettings::default()).unwrap();
    broker.create_subscription("events", "a", SubscriptionSettings::default(), None).unwrap();
    emulator
}

fn url(emulator: &Emulator, entity: &str) -> String {
    let text = format!("{}EntityPath={entity}", emulator.connection_string());
    format!("servicebus://?connection_string={text}&management=http://{}", emulator.http_addr())
}

async fn connect(url: &str) -> Result<Bus> {
    let driver = Registry::new().with(ServicebusConnector).connect(url).await?;
    Bus::new(driver, BusOptions::topology(Topology::new().queue("orders", QueueSpec::new())))
}

fn denied(e: &Error) {
    assert!(e.kind() == ErrorKind::PermissionDenied && e.to_string().contains("\"orders\" alone"), "{e}");
}

async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(120), sub.next()).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queues_key_does_all_with_its_queue_and_nothing_with_another() {
    let emulator = emulator("orders").await;
    let bus = connect(&url(&emulator, "orders")).await.unwrap();
    let orders = Address::queue("orders");
    let mut sub = bus.subscribe(Source::queue("orders")).open().await.unwrap();
    let delayed = Outgoing::from(Envelope::new("a", "x")).delay(Duration::from_millis(100));
    bus.publish(&orders, delayed).await.unwrap();
    next(&mut sub).await.retry_after(Duration::from_millis(100)).await.unwrap();
    let d = next(&mut sub).await;
    assert_eq!(d.attempt(), 2);
    d.dead_letter("broken", "").await.unwrap();
    let mut dead = bus.subscribe(Source::queue("orders").dead_letters()).open().await.unwrap();
    next(&mut dead).await.ack().await.unwrap();

    denied(&bus.publish(Address::queue("other"), Envelope::new("a", "")).await.unwrap_err());
    denied(&bus.subscribe(Source::queue("other")).open().await.map(|_| ()).unwrap_err());
    denied(&bus.stats(Source::queue("other")).await.unwrap_err());
    // A refusal is no reason to think less of the queue that is ours.
    bus.publish(&orders, Envelope::new("a", "")).await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topics_key_does_for_its_subscriptions() {
    let emulator = emulator("events").await;
    let bus = connect(&url(&emulator, "Events")).await.unwrap();
    let mut sub = bus.subscribe(Source::subscription("events", "a")).open().await.unwrap();
    bus.publish(Address::topic("events"), Envelope::new("a", "x")).await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ready_token_says_itself_what_it_is_for() {
    let emulator = emulator("orders").await;
    let later =
        (SystemTime::now() + Duration::from_secs(600)).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let key = AccessKey::new("Own", "s3cret");
    let token = key.token("sb://localhost/orders", i64::try_from(later).unwrap());
    let token = token.replace('%', "%25").replace('&', "%26");
    let (amqp, http) = (emulator.amqp_addr(), emulator.http_addr());
    let url = format!("servicebus://{amqp}?emulator=true&management=http://{http}&sas_token={token}");
    let bus = connect(&url).await.unwrap();
    bus.publish(Address::queue("orders"), Envelope::new("a", "x")).await.unwrap();
    denied(&bus.publish(Address::queue("other"), Envelope::new("a", "")).await.unwrap_err());
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[cfg(feature = "rest")]
#[tokio::test(flavor = "multi_thread")]
async fn over_https_too() {
    let emulator = emulator("orders").await;
    let bus = connect(&format!("{}&transport=rest&poll=1s", url(&emulator, "orders"))).await.unwrap();
    let mut sub = bus.subscribe(Source::queue("orders")).open().await.unwrap();
    bus.publish(Address::queue("orders"), Envelope::new("a", "x")).await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    denied(&bus.publish(Address::queue("other"), Envelope::new("a", "")).await.unwrap_err());
    bus.close().await.unwrap();
    emulator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_the_key_is_told_at_once() {
    let emulator = emulator("orders").await;
    let refused = async |url: &str| {
        let e = connect(url).await.map(|_| ()).unwrap_err();
        assert!(!format!("{e:?}").contains("s3cret"), "{e:?}");
        assert_eq!(e.kind(), ErrorKind::Unauthenticated, "{e}");
        e.to_string()
    };
    // Of another entity, and without the word that it is of one.
    assert!(!refused(&url(&emulator, "other")).await.contains("EntityPath"));
    assert!(refused(&url(&emulator, "")).await.contains("EntityPath"));
    refused(&url(&emulator, "orders").replace("Key=s3cret", "Key=wr0ng")).await;
    emulator.stop().await;
}
