use std::collections::HashMap;

use polybus_core::{Outgoing, driver::Settlement};
use tokio::time::{Instant, advance};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn one_of_a_key_at_a_time_across_consumers_and_other_keys_go_on() {
    let w = world().await;
    w.publish("queue:o", &["a/1", "a/2", "b/1", "a/3", "b/2"]).await;
    let (mut x, mut y) = (w.consume("queue:o", 10).await, w.consume("queue:o", 10).await);
    let first = x.ready(10);
    assert_eq!(first.iter().map(|r| &*r.envelope.id).collect::<Vec<_>>(), ["a/1", "b/1"]);
    assert!(y.seen(10).is_empty());
    assert_eq!(w.stats("queue:o").await, [3, 2, 0, 0]);
    x.ack(&first[1]).await;
    let b2 = y.one().await;
    assert_eq!(&*b2.envelope.id, "b/2");
    y.ack(&b2).await;
    x.ack(&first[0]).await;
    let a2 = y.one().await;
    assert_eq!(&*a2.envelope.id, "a/2");
    assert!(x.seen(10).is_empty());
    y.ack(&a2).await;
    assert_eq!(x.seen(10), ids(&[("a/3", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_goes_on_does_not_overtake_older_messages_of_others() {
    let w = world().await;
    w.publish("queue:o", &["a/1", "b/1", "a/2", "c/1"]).await;
    let mut c = w.consume("queue:o", 1).await;
    for id in ["a/1", "b/1", "a/2", "c/1"] {
        let got = c.one().await;
        assert_eq!(&*got.envelope.id, id);
        c.ack(&got).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_released_message_stays_at_the_head_of_its_key() {
    let w = world().await;
    w.publish("queue:o", &["a/1", "a/2", "b/1"]).await;
    let mut c = w.consume("queue:o", 10).await;
    for attempt in 1..=4 {
        let got = c.ready(1).remove(0);
        assert_eq!((&*got.envelope.id, got.attempt), ("a/1", attempt));
        c.settle(&got, Settlement::Release).await.unwrap();
    }
    assert_eq!(c.seen(10), ids(&[("a/1", 5), ("b/1", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_retried_message_holds_its_key_and_no_other() {
    let w = world().await;
    w.publish("queue:o", &["a/1", "a/2", "b/1", "b/2"]).await;
    let mut c = w.consume("queue:o", 10).await;
    let start = Instant::now();
    let got = c.ready(10);
    c.settle(&got[0], retry(60)).await.unwrap();
    c.ack(&got[1]).await;
    let b2 = c.one().await;
    assert_eq!(&*b2.envelope.id, "b/2");
    c.ack(&b2).await;
    w.publish("queue:o", &["a/3"]).await;
    assert_eq!(w.stats("queue:o").await, [2, 0, 1, 0]);
    for (id, attempt) in [("a/1", 2), ("a/2", 1), ("a/3", 1)] {
        let got = c.one().await;
        assert_eq!((&*got.envelope.id, got.attempt, start.elapsed()), (id, attempt, secs(60)));
        c.ack(&got).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_lettered_message_lets_its_key_go_on() {
    let w = world().await;
    w.publish("queue:o", &["a/1", "a/2"]).await;
    let mut c = w.consume("queue:o", 10).await;
    let got = c.one().await;
    c.settle(&got, dead("poison")).await.unwrap();
    assert_eq!(c.seen(10), ids(&[("a/2", 1)]));
    // Redriven, it goes to the end of its key.
    w.publish("queue:o", &["a/3"]).await;
    let mut d = w.consume("queue:o#dead-letters", 1).await;
    let letter = d.one().await;
    d.settle(&letter, Settlement::Redrive).await.unwrap();
    advance(LOCK).await;
    for (id, attempt) in [("a/2", 2), ("a/3", 1), ("a/1", 1)] {
        let got = c.one().await;
        assert_eq!((&*got.envelope.id, got.attempt), (id, attempt));
        c.ack(&got).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_order_survives_lost_locks_crashes_and_close() {
    let w = world().await;
    w.publish("queue:o", &["a/1", "a/2", "b/1", "b/2", "c/1"]).await;
    for (end, wanted) in (1..5).enumerate() {
        let mut c = w.consume("queue:o", 10).await;
        let got = c.seen(10);
        assert_eq!(got, ids(&[("a/1", wanted), ("b/1", wanted), ("c/1", wanted)]), "after {end}");
        match end {
            0 => drop(c),
            1 => c.settler.close().await.unwrap(),
            2 => {
                c.rx.close().await.unwrap();
                assert_eq!(w.stats("queue:o").await, [2, 3, 0, 0], "an ordered source gives nothing back yet");
                c.settler.close().await.unwrap();
            }
            _ => advance(LOCK).await,
        }
        assert_eq!(w.stats("queue:o").await, [5, 0, 0, 0], "after {end}");
    }
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_key_keep_their_order_among_themselves() {
    let w = world().await;
    w.publish("queue:o", &["1", "2", "k/1"]).await;
    let mut c = w.consume("queue:o", 10).await;
    let got = c.ready(10);
    assert_eq!(got.iter().map(|r| &*r.envelope.id).collect::<Vec<_>>(), ["1", "k/1"]);
    c.ack(&got[0]).await;
    assert_eq!(c.seen(10), ids(&[("2", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_delayed_publish_takes_its_place_when_it_is_due() {
    let w = world().await;
    let sender = w.sender("queue:o").await;
    publish(&*sender, vec![Outgoing::from(message("a/late")).delay(secs(5)), message("a/1").into()]).await;
    let mut c = w.consume("queue:o", 10).await;
    let got = c.one().await;
    assert_eq!(&*got.envelope.id, "a/1");
    advance(secs(5)).await;
    assert!(c.seen(10).is_empty(), "its key is taken");
    w.publish("queue:o", &["a/2"]).await;
    c.ack(&got).await;
    let late = c.one().await;
    assert_eq!(&*late.envelope.id, "a/late");
    c.ack(&late).await;
    assert_eq!(c.seen(10), ids(&[("a/2", 1)]));
}

#[tokio::test(start_paused = true)]
async fn purge_leaves_the_held_heads_and_frees_the_keys() {
    let w = world().await;
    w.publish("queue:o", &["a/1", "a/2", "b/1", "b/2", "c/1"]).await;
    let mut c = w.consume("queue:o", 1).await;
    let a1 = c.one().await;
    let o = w.topology.source(&"queue:o".parse().unwrap());
    assert_eq!(polybus_core::driver::Driver::purge(&w.driver, &o).await.unwrap(), 4);
    w.publish("queue:o", &["a/9", "b/9"]).await;
    c.settle(&a1, Settlement::Release).await.unwrap();
    for (id, attempt) in [("a/1", 2), ("a/9", 1), ("b/9", 1)] {
        let got = c.one().await;
        assert_eq!((&*got.envelope.id, got.attempt), (id, attempt));
        c.ack(&got).await;
    }
    assert_eq!(w.stats("queue:o").await, [0, 0, 0, 0]);
}

/// Eight consumers settle a thousand messages of fifty keys in every way there is. Of each key, in the end, every
/// message was acknowledged once and in the order of publishing.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_storm_keeps_every_key_in_order() {
    let w = std::sync::Arc::new(world().await);
    let all: Vec<String> = (0..1000).map(|i| format!("k{}/{:04}", i * 7 % 50, i)).collect();
    w.publish("queue:o", &all.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let (send, mut acked) = tokio::sync::mpsc::unbounded_channel();
    for worker in 0..8u64 {
        let (w, send) = (w.clone(), send.clone());
        tokio::spawn(async move {
            let mut round = worker;
            loop {
                let mut c = w.consume("queue:o", 5).await;
                for _ in 0..20 {
                    // One that leaks deliveries may come to hold nothing but them; then it crashes.
                    let Ok(got) = tokio::time::timeout(LOCK / 1000, c.rx.receive(5)).await else { break };
                    for r in got.unwrap() {
                        round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let how = match round >> 60 {
                            0 | 1 => Settlement::Release,
                            2 => Settlement::GiveBack,
                            3 => Settlement::RetryAfter(std::time::Duration::from_millis(3)),
                            4 => continue,
                            _ => {
                                // Told before it is done: the next one of the key can only come after.
                                send.send(r.envelope.id.to_string()).unwrap();
                                Settlement::Ack
                            }
                        };
                        c.settle(&r, how).await.unwrap();
                    }
                }
                drop(c);
            }
        });
    }
    let mut last: HashMap<String, String> = HashMap::new();
    for _ in 0..all.len() {
        let id = tokio::time::timeout(secs(60), acked.recv()).await.unwrap().unwrap();
        let key = id.split_once('/').unwrap().0.to_owned();
        let before = last.insert(key, id.clone());
        assert!(before.as_ref().is_none_or(|b| *b < id), "{id} after {before:?}");
    }
    let deadline = Instant::now() + secs(60);
    while w.stats("queue:o").await != [0, 0, 0, 0] {
        assert!(Instant::now() < deadline, "{:?}", w.stats("queue:o").await);
        tokio::task::yield_now().await;
    }
    assert!(acked.try_recv().is_err());
}
