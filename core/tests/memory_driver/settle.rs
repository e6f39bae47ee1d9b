use polybus_core::{
    ErrorKind,
    driver::{Driver, SettleRequest, Settlement},
    memory::MemoryDriver,
};
use tokio::time::{Instant, advance};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn publish_receive_ack_and_it_is_gone() {
    let w = world().await;
    w.publish("queue:q", &["1", "2", "3"]).await;
    assert_eq!(w.stats("queue:q").await, [3, 0, 0, 0]);
    let mut c = w.consume("queue:q", 10).await;
    let got = c.ready(10);
    assert_eq!(got.iter().map(|r| &*r.envelope.id).collect::<Vec<_>>(), ["1", "2", "3"]);
    assert_eq!(w.stats("queue:q").await, [0, 3, 0, 0]);
    for r in &got {
        assert!(c.settler.holds(&r.token));
        c.ack(r).await;
    }
    assert_eq!(w.stats("queue:q").await, [0, 0, 0, 0]);
    c.is_lost(&got[0]).await;
    advance(LOCK * 3).await;
    assert!(c.seen(10).is_empty());
}

#[tokio::test(start_paused = true)]
async fn release_comes_back_at_once_in_its_place_with_the_attempt_counted() {
    let w = world().await;
    w.publish("queue:q", &["1", "2", "3"]).await;
    let mut c = w.consume("queue:q", 10).await;
    let got = c.ready(2);
    c.settle(&got[1], Settlement::Release).await.unwrap();
    c.settle(&got[0], Settlement::Release).await.unwrap();
    assert_eq!(c.seen(10), ids(&[("1", 2), ("2", 2), ("3", 1)]));
}

#[tokio::test(start_paused = true)]
async fn given_back_counts_no_attempt() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let mut c = w.consume("queue:q", 10).await;
    for _ in 0..3 {
        let got = c.one().await;
        assert_eq!(got.attempt, 1);
        c.settle(&got, Settlement::GiveBack).await.unwrap();
    }
    assert_eq!(c.seen(1), ids(&[("1", 1)]));
}

#[tokio::test(start_paused = true)]
async fn retry_waits_exactly_and_holds_up_nobody() {
    let w = world().await;
    w.publish("queue:q", &["slow", "quick", "never", "other"]).await;
    let mut c = w.consume("queue:q", 10).await;
    let start = Instant::now();
    let got = c.ready(4);
    c.settle(&got[0], retry(60)).await.unwrap();
    c.settle(&got[1], retry(1)).await.unwrap();
    c.settle(&got[2], Settlement::RetryAfter(std::time::Duration::MAX)).await.unwrap();
    c.ack(&got[3]).await;
    assert_eq!(w.stats("queue:q").await, [0, 0, 3, 0]);
    let quick = c.one().await;
    assert_eq!((&*quick.envelope.id, quick.attempt, start.elapsed()), ("quick", 2, secs(1)));
    c.ack(&quick).await;
    let slow = c.one().await;
    assert_eq!((&*slow.envelope.id, slow.attempt, start.elapsed()), ("slow", 2, secs(60)));
    c.settle(&slow, Settlement::RetryAfter(secs(0))).await.unwrap();
    assert_eq!(c.seen(1), ids(&[("slow", 3)]));
}

#[tokio::test(start_paused = true)]
async fn one_in_a_batch_that_fails_is_not_its_neighbours() {
    let w = world().await;
    w.publish("queue:q", &["1", "2", "3"]).await;
    let mut c = w.consume("queue:q", 10).await;
    let got = c.ready(3);
    c.ack(&got[1]).await;
    let foreign = polybus_core::driver::DriverToken::new(7u8);
    let mut batch: Vec<SettleRequest> =
        got.iter().map(|r| SettleRequest::new(r.token.clone(), r.envelope.clone(), 1, Settlement::Ack)).collect();
    batch.push(SettleRequest::new(foreign, got[0].envelope.clone(), 1, Settlement::Ack));
    let kinds: Vec<_> = c.settler.settle(&batch).await.into_iter().map(|r| r.err().map(|e| e.kind())).collect();
    assert_eq!(kinds, [None, Some(ErrorKind::LockLost), None, Some(ErrorKind::Unexpected)]);
    assert_eq!(w.stats("queue:q").await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_consumer_settles_nothing() {
    let w = world().await;
    w.publish("queue:q", &["1", "2"]).await;
    w.publish("queue:o", &["k/1"]).await;
    let (mut a, mut b, mut o) =
        (w.consume("queue:q", 1).await, w.consume("queue:q", 1).await, w.consume("queue:o", 1).await);
    let (in_a, in_b, in_o) = (a.one().await, b.one().await, o.one().await);
    for wrong in [&in_a, &in_o] {
        assert_eq!(b.settle(wrong, Settlement::Ack).await.unwrap_err().kind(), ErrorKind::Unexpected);
        assert!(!b.settler.holds(&wrong.token));
    }
    b.ack(&in_b).await;
    assert_eq!((w.stats("queue:q").await, w.stats("queue:o").await), ([0, 1, 0, 0], [0, 1, 0, 0]));
}

#[tokio::test(start_paused = true)]
async fn a_place_that_is_used_again_does_not_settle_the_newcomer() {
    let w = world().await;
    w.publish("queue:q", &["1", "2"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let old = c.one().await;
    c.ack(&old).await;
    let new = c.one().await;
    c.is_lost(&old).await;
    c.ack(&new).await;
}

#[tokio::test(start_paused = true)]
async fn private_brokers_are_apart_and_named_ones_shared() {
    let w = world().await;
    let other = MemoryDriver::new();
    let q = w.topology.source(&"queue:q".parse().unwrap());
    assert_eq!(other.stats(&q).await.unwrap_err().kind(), ErrorKind::NotFound);
    let (a, b) = (MemoryDriver::named("settle-shared"), MemoryDriver::named("settle-shared"));
    a.declare(&w.topology.plan(), polybus_core::topology::DeclareMode::Create).await.unwrap();
    let sender = a.open_sender(&w.topology.address(&queue("q"))).await.unwrap();
    publish(&*sender, vec![message("1").into()]).await.remove(0).unwrap();
    a.close().await.unwrap();
    drop((a, sender));
    assert_eq!(b.stats(&q).await.unwrap().ready, Some(1));
    assert_eq!(w.driver.again().stats(&q).await.unwrap().ready, Some(0));
}
