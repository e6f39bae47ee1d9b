use std::collections::BTreeSet;

use polybus_core::{
    ErrorKind,
    driver::{Driver, Settlement},
};
use tokio::time::{Instant, advance};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn never_more_unsettled_than_prefetch() {
    let w = world().await;
    w.publish("queue:q", &["1", "2", "3", "4", "5"]).await;
    let mut c = w.consume("queue:q", 3).await;
    let got = c.ready(2);
    assert_eq!((got.len(), c.ready(9).len(), c.ready(9).len()), (2, 1, 0));
    c.ack(&got[0]).await;
    c.settle(&got[1], retry(5)).await.unwrap();
    assert_eq!(c.seen(9), ids(&[("4", 1), ("5", 1)]));
    // A lock that ran out makes room as well.
    advance(LOCK).await;
    assert_eq!(c.seen(9), ids(&[("2", 2), ("3", 2), ("4", 2)]));
}

#[tokio::test(start_paused = true)]
async fn room_wakes_a_consumer_that_waits_with_its_hands_full() {
    let w = world().await;
    w.publish("queue:q", &["1", "2"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let first = c.one().await;
    let settler = c.settler.clone();
    let waiting = tokio::spawn(async move { (c.one().await.envelope.id.to_string(), Instant::now()) });
    tokio::task::yield_now().await;
    let start = Instant::now();
    settle_by(&*settler, &first, Settlement::Ack).await.unwrap();
    assert_eq!(waiting.await.unwrap(), ("2".to_owned(), start));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn competing_consumers_get_each_message_once() {
    let w = world().await;
    let (send, mut seen) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..8 {
        let (mut c, send) = (w.consume("queue:q", 4).await, send.clone());
        tokio::spawn(async move {
            loop {
                for r in c.rx.receive(2).await.unwrap() {
                    assert_eq!(r.attempt, 1);
                    c.ack(&r).await;
                    send.send(r.envelope.id.to_string()).unwrap();
                }
            }
        });
    }
    for chunk in 0..100 {
        let ids: Vec<String> = (0..20).map(|i| (chunk * 20 + i).to_string()).collect();
        w.publish("queue:q", &ids.iter().map(String::as_str).collect::<Vec<_>>()).await;
        tokio::task::yield_now().await;
    }
    let mut all = BTreeSet::new();
    for _ in 0..2000 {
        assert!(all.insert(tokio::time::timeout(secs(30), seen.recv()).await.unwrap().unwrap()));
    }
    assert_eq!(w.stats("queue:q").await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn messages_are_spread_over_consumers_that_wait() {
    let w = world().await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut c = w.consume("queue:q", 10).await;
        waiting.push(tokio::spawn(async move { (c.one().await.envelope.id.to_string(), c) }));
    }
    tokio::task::yield_now().await;
    for id in ["1", "2", "3"] {
        w.publish("queue:q", &[id]).await;
    }
    let mut ids = Vec::new();
    let mut consumers = Vec::new();
    for one in waiting {
        let (id, consumer) = one.await.unwrap();
        ids.push(id);
        consumers.push(consumer);
    }
    ids.sort();
    assert_eq!(ids, ["1", "2", "3"]);
}

#[tokio::test(start_paused = true)]
async fn close_gives_back_in_order_and_twice_is_fine() {
    let w = world().await;
    w.publish("queue:q", &["1", "2", "3", "4"]).await;
    let mut c = w.consume("queue:q", 3).await;
    let got = c.ready(3);
    c.rx.close().await.unwrap();
    c.rx.close().await.unwrap();
    assert_eq!(c.rx.receive(1).await.unwrap_err().kind(), ErrorKind::Closed);
    c.ack(&got[1]).await;
    assert!(c.settler.holds(&got[0].token), "what was handed out can still be settled");
    c.settler.close().await.unwrap();
    c.settler.close().await.unwrap();
    c.is_lost(&got[0]).await;
    assert_eq!(w.consume("queue:q", 9).await.seen(9), ids(&[("1", 2), ("3", 2), ("4", 1)]));
}

#[tokio::test(start_paused = true)]
async fn a_crash_gives_back_in_order() {
    let w = world().await;
    w.publish("queue:q", &["1", "2", "3"]).await;
    let mut c = w.consume("queue:q", 2).await;
    let got = c.ready(2);
    let crashed = c.settler;
    drop(c.rx);
    let mut d = w.consume("queue:q", 9).await;
    let again = d.ready(9);
    assert_eq!(again.iter().map(|r| (&*r.envelope.id, r.attempt)).collect::<Vec<_>>(), [("1", 2), ("2", 2), ("3", 1)]);
    assert_eq!(settle_by(&*crashed, &got[0], Settlement::Ack).await.unwrap_err().kind(), ErrorKind::LockLost);
    drop(crashed);
    d.ack(&again[0]).await;
    assert_eq!(w.stats("queue:q").await, [0, 2, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_settler_gives_back_what_a_closed_receiver_left() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let _got = c.one().await;
    c.rx.close().await.unwrap();
    drop(c.rx);
    assert_eq!(w.stats("queue:q").await, [0, 1, 0, 0]);
    drop(c.settler);
    assert_eq!(w.stats("queue:q").await, [1, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_crash_wakes_another_consumer() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let _got = c.one().await;
    let mut d = w.consume("queue:q", 1).await;
    let start = Instant::now();
    let waiting = tokio::spawn(async move { d.one().await.attempt });
    tokio::task::yield_now().await;
    drop(c);
    assert_eq!((waiting.await.unwrap(), start.elapsed()), (2, secs(0)));
}

#[tokio::test(start_paused = true)]
async fn deleting_a_source_ends_its_consumers() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let (mut c, mut d) = (w.consume("queue:q", 1).await, w.consume("queue:q", 1).await);
    let mut letters = w.consume("queue:q#dead-letters", 1).await;
    let got = c.one().await;
    let waiting = tokio::spawn(async move { d.rx.receive(1).await.unwrap_err().kind() });
    tokio::task::yield_now().await;
    w.driver.delete(&w.topology.plan()).await.unwrap();
    assert_eq!(waiting.await.unwrap(), ErrorKind::NotFound);
    assert_eq!(c.rx.receive(1).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(letters.rx.receive(1).await.unwrap_err().kind(), ErrorKind::NotFound);
    c.is_lost(&got).await;
    assert_eq!(w.try_consume("queue:q", 1).await.err().unwrap().kind(), ErrorKind::NotFound);
    // A source of the same name is another one.
    w.driver.declare(&w.topology.plan(), Default::default()).await.unwrap();
    w.publish("queue:q", &["2"]).await;
    c.is_lost(&got).await;
    // A consumer that asks again attaches to it, as every driver's does.
    assert_eq!(c.seen(1), ids(&[("2", 1)]));
    drop(c);
    assert_eq!(w.consume("queue:q", 1).await.seen(1), ids(&[("2", 2)]));
}

#[tokio::test(start_paused = true)]
async fn closing_the_connection_ends_all_it_opened_and_nothing_else() {
    let w = world().await;
    let other = World { driver: w.driver.again(), topology: w.topology.clone() };
    w.publish("queue:q", &["1", "2"]).await;
    let (mut mine, mut theirs) = (w.consume("queue:q", 1).await, other.consume("queue:q", 1).await);
    let (got, kept) = (mine.one().await, theirs.one().await);
    let mut waiting = w.consume("queue:q", 1).await;
    let waiting = tokio::spawn(async move { waiting.rx.receive(1).await.unwrap_err().kind() });
    tokio::task::yield_now().await;
    let sender = w.sender("queue:q").await;
    w.driver.close().await.unwrap();
    w.driver.close().await.unwrap();
    assert_eq!(waiting.await.unwrap(), ErrorKind::Closed);
    assert_eq!(mine.rx.receive(1).await.unwrap_err().kind(), ErrorKind::Closed);
    mine.is_lost(&got).await;
    assert_eq!(publish(&*sender, vec![message("3").into()]).await.remove(0).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(w.try_consume("queue:q", 1).await.err().unwrap().kind(), ErrorKind::Closed);
    theirs.ack(&kept).await;
    assert_eq!(theirs.seen(1), ids(&[("1", 2)]));
}
