use polybus_core::{
    Address, ErrorKind, Outgoing,
    driver::Driver,
    memory::{MemoryDriver, RawMessage},
};
use tokio::time::{Instant, advance};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn to_a_missing_queue_or_topic_is_not_found_until_it_is_declared() {
    let w = world().await;
    let other = World { driver: MemoryDriver::new(), topology: w.topology.clone() };
    for to in ["queue:q", "topic:t"] {
        let sender = other.sender(to).await;
        for result in publish(&*sender, vec![message("1").into(), message("2").into()]).await {
            let e = result.unwrap_err();
            assert_eq!((e.kind(), e.context("address")), (ErrorKind::NotFound, Some(to)));
        }
    }
    let (queue, topic) = (other.sender("queue:q").await, other.sender("topic:t").await);
    for _ in 0..2 {
        other.driver.declare(&w.topology.plan(), Default::default()).await.unwrap();
        for sender in [&queue, &topic] {
            publish(&**sender, vec![message("3").into()]).await.remove(0).unwrap();
        }
        assert_eq!(other.stats("queue:q").await, [1, 0, 0, 0]);
        assert_eq!(other.stats("subscription:t/a").await, [1, 0, 0, 0]);
        other.driver.delete(&w.topology.plan()).await.unwrap();
        for sender in [&queue, &topic] {
            assert_eq!(
                publish(&**sender, vec![message("4").into()]).await[0].as_ref().unwrap_err().kind(),
                ErrorKind::NotFound
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_topic_gives_each_subscription_what_it_wants() {
    let w = world().await;
    let sender = w.sender("topic:t").await;
    let types = ["a.x", "a", "a.x.y", "ab.x", "b"];
    let all: Vec<Outgoing> = types.iter().map(|t| message(t).edit(|p| p.event_type = (*t).into()).into()).collect();
    publish(&*sender, all).await.into_iter().for_each(|r| r.unwrap());
    let mut all = w.consume("subscription:t/all", 10).await;
    assert_eq!(all.seen(10), ids(&types.map(|t| (t, 1))));
    assert_eq!(w.consume("subscription:t/a", 10).await.seen(10), ids(&[("a.x", 1), ("a.x.y", 1)]));
}

#[tokio::test(start_paused = true)]
async fn the_limit_counts_payload_and_metadata() {
    let driver = MemoryDriver::new().max_message_size(100);
    let sender = driver.open_sender(&polybus_core::Topology::new().address(&queue("q"))).await.unwrap();
    let envelope = polybus_core::Envelope::bare("t", vec![0; 80]).id("i").header("h", "x".repeat(17));
    assert_eq!(envelope.metadata_size(), 20);
    assert_eq!(sender.prepare(envelope.clone().into()).unwrap().size, 100);
    let e = sender.prepare(envelope.header("i", "").into()).err().unwrap();
    assert_eq!(e.kind(), ErrorKind::PayloadTooLarge);
    assert!(e.message().contains("101") && e.message().contains("100"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_delay_is_kept_on_queues_and_topics() {
    let w = world().await;
    let start = Instant::now();
    for to in ["queue:q", "topic:t"] {
        let sender = w.sender(to).await;
        let delayed = |id: &str, n| Outgoing::from(message(id)).delay(n);
        let messages = vec![
            delayed("60", secs(60)),
            delayed("1", secs(1)),
            delayed("0", secs(0)),
            delayed("max", std::time::Duration::MAX),
        ];
        publish(&*sender, messages).await;
    }
    for source in ["queue:q", "subscription:t/all"] {
        assert_eq!(w.stats(source).await, [1, 0, 3, 0]);
    }
    let (mut q, mut t) = (w.consume("queue:q", 9).await, w.consume("subscription:t/all", 9).await);
    for (id, at) in [("0", 0), ("1", 1), ("60", 60)] {
        for c in [&mut q, &mut t] {
            let got = c.one().await;
            assert_eq!((&*got.envelope.id, got.attempt, start.elapsed()), (id, 1, secs(at)));
            c.ack(&got).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_waiting_consumer_notices_an_earlier_delay() {
    let w = world().await;
    let sender = w.sender("queue:q").await;
    publish(&*sender, vec![Outgoing::from(message("late")).delay(secs(60))]).await;
    let mut c = w.consume("queue:q", 1).await;
    let start = Instant::now();
    let waiting = tokio::spawn(async move { (c.one().await.envelope.id.to_string(), start.elapsed()) });
    tokio::task::yield_now().await;
    publish(&*sender, vec![Outgoing::from(message("early")).delay(secs(2))]).await;
    assert_eq!(waiting.await.unwrap(), ("early".to_owned(), secs(2)));
}

#[tokio::test(start_paused = true)]
async fn what_was_published_is_told_while_recording() {
    let w = world().await;
    let to: Address = "topic:t".parse().unwrap();
    w.publish("topic:t", &["before"]).await;
    w.driver.record(true);
    w.publish("topic:t", &["1", "2"]).await;
    let native = w.driver.native().unwrap().downcast_ref::<MemoryDriver>().unwrap();
    assert_eq!(native.published(&to).iter().map(|e| &*e.id).collect::<Vec<_>>(), ["1", "2"]);
    assert!(native.published(&queue("q")).is_empty());
    w.driver.record(false);
    w.publish("topic:t", &["3"]).await;
    assert!(w.driver.published(&to).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_closed_sender_takes_nothing() {
    let w = world().await;
    let sender = w.sender("queue:q").await;
    sender.close().await.unwrap();
    sender.close().await.unwrap();
    assert_eq!(publish(&*sender, vec![message("1").into()]).await.remove(0).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(w.stats("queue:q").await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn injected_messages_may_be_foreign_or_malformed() {
    let w = world().await;
    let raw = |content_type: &str, headers: &[(&str, &str)], body: &str| RawMessage {
        content_type: Some(content_type.into()),
        headers: headers.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        body: body.to_owned().into(),
        ..RawMessage::default()
    };
    let inject = |to: &str, raw| w.driver.inject(&to.parse().unwrap(), raw);
    inject("queue:q", raw("text/plain", &[("tenant", "acme")], "hello")).unwrap();
    inject("queue:q", raw("application/cloudevents+json", &[], "{no json")).unwrap();
    let event = [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", "7"),
        ("cloudEvents:type", "a.b"),
        ("cloudEvents:source", "/s"),
    ];
    inject("queue:q", raw("text/plain", &event, "x")).unwrap();
    inject("topic:t", raw("text/plain", &event, "x")).unwrap();
    let missing = inject("queue:missing", raw("text/plain", &[], "")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let mut c = w.consume("queue:q", 9).await;
    let got = c.ready(9);
    assert_eq!(
        (&*got[0].envelope.event_type, &got[0].envelope.data[..], got[0].malformed.is_some()),
        ("polybus.foreign", &b"hello"[..], false)
    );
    assert_eq!(got[0].envelope.headers.get("tenant"), Some("acme"));
    assert!(got[1].malformed.is_some() && got[1].envelope.data == "{no json");
    assert_eq!((&*got[2].envelope.id, got[2].attempt, got[2].malformed.is_some()), ("7", 1, false));
    c.settle(&got[1], dead("malformed")).await.unwrap();
    let letter = w.consume("queue:q#dead-letters", 1).await.one().await;
    assert_eq!((&letter.malformed, &letter.envelope), (&got[1].malformed, &got[1].envelope));
    assert_eq!(w.consume("subscription:t/a", 9).await.seen(9), ids(&[("7", 1)]));
    advance(secs(1)).await;
}
