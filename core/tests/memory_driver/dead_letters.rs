use polybus_core::{
    ErrorKind,
    driver::{Driver, Settlement},
};
use tokio::time::advance;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn they_keep_the_message_and_tell_how_it_got_there() {
    let w = world().await;
    w.publish("topic:t", &["1"]).await;
    let mut c = w.consume("subscription:t/all", 1).await;
    let got = c.one().await;
    c.settle(&got, Settlement::Release).await.unwrap();
    let got = c.one().await;
    advance(secs(3)).await;
    c.settle(&got, dead("poison")).await.unwrap();
    assert_eq!(w.stats("subscription:t/all").await, [0, 0, 0, 1]);
    assert_eq!(w.stats("subscription:t/all#dead-letters").await, [1, 0, 0, 0]);
    let mut d = w.consume("subscription:t/all#dead-letters", 1).await;
    let letter = d.one().await;
    assert_eq!((&letter.envelope, letter.attempt), (&got.envelope, 1));
    let info = letter.dead_letter.as_ref().unwrap();
    assert_eq!(info.reason.as_deref(), Some("poison"));
    assert_eq!(info.detail.as_deref(), Some("because"));
    assert_eq!(info.attempt, Some(2));
    assert_eq!(info.origin.as_deref(), Some("subscription:t/all"));
    // Core says when, for every driver alike; this settlement comes without core.
    assert_eq!(info.time, Some(time::OffsetDateTime::UNIX_EPOCH));
    assert_eq!(w.stats("subscription:t/all").await, [0, 0, 0, 1], "held, it is still there");
    d.ack(&letter).await;
    assert_eq!(w.stats("subscription:t/all").await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn they_are_released_locked_and_extended_like_others() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let got = c.one().await;
    c.settle(&got, dead("x")).await.unwrap();
    let mut d = w.consume("queue:q#dead-letters", 1).await;
    for attempt in 1..=25 {
        let letter = d.one().await;
        assert_eq!(letter.attempt, attempt);
        d.settle(&letter, Settlement::Release).await.unwrap();
    }
    let letter = d.one().await;
    d.settler.extend(std::slice::from_ref(&letter.token), LOCK * 2).await.remove(0).unwrap();
    advance(LOCK).await;
    assert!(d.settler.holds(&letter.token));
    advance(LOCK).await;
    d.is_lost(&letter).await;
    let letter = d.one().await;
    assert_eq!((letter.attempt, letter.dead_letter.as_ref().unwrap().attempt), (27, Some(1)));
    for how in [retry(1), dead("y")] {
        assert_eq!(d.settle(&letter, how).await.unwrap_err().kind(), ErrorKind::Unsupported);
    }
    assert_eq!(d.settle(&letter, Settlement::Ack).await.map_err(|e| e.kind()), Ok(()), "it was still held");
}

#[tokio::test(start_paused = true)]
async fn redrive_goes_to_the_live_source_alone_and_starts_anew() {
    let w = world().await;
    w.publish("topic:t", &["1"]).await;
    let (mut all, mut a) = (w.consume("subscription:t/all", 1).await, w.consume("subscription:t/a", 1).await);
    let sibling = a.one().await;
    a.ack(&sibling).await;
    for _ in 0..3 {
        let got = all.one().await;
        assert_eq!((got.attempt, &got.dead_letter, &got.envelope), (1, &None, &sibling.envelope));
        assert_eq!(all.settle(&got, Settlement::Redrive).await.unwrap_err().kind(), ErrorKind::Unsupported);
        all.settle(&got, dead("again")).await.unwrap();
        let mut d = w.consume("subscription:t/all#dead-letters", 1).await;
        let letter = d.one().await;
        d.settle(&letter, Settlement::Redrive).await.unwrap();
        d.is_lost(&letter).await;
    }
    assert_eq!(w.stats("subscription:t/all").await, [1, 0, 0, 0]);
    assert_eq!(w.stats("subscription:t/a").await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_waits_for_dead_letters_or_redriven_ones_is_woken() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let (mut c, mut d) = (w.consume("queue:q", 1).await, w.consume("queue:q#dead-letters", 1).await);
    let got = c.one().await;
    let letter = tokio::spawn(async move { (d.one().await, d) });
    tokio::task::yield_now().await;
    c.settle(&got, dead("x")).await.unwrap();
    let (letter, mut d) = letter.await.unwrap();
    let live = tokio::spawn(async move { c.one().await.attempt });
    tokio::task::yield_now().await;
    d.settle(&letter, Settlement::Redrive).await.unwrap();
    assert_eq!(live.await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn purge_spares_the_other_half_and_what_is_held() {
    let w = world().await;
    w.publish("queue:q", &["1", "2", "3", "4"]).await;
    let mut c = w.consume("queue:q", 3).await;
    let got = c.ready(3);
    c.settle(&got[0], dead("x")).await.unwrap();
    c.settle(&got[1], retry(5)).await.unwrap();
    let live = w.topology.source(&"queue:q".parse().unwrap());
    let letters = w.topology.source(&"queue:q#dead-letters".parse().unwrap());
    assert_eq!(w.driver.purge(&live).await.unwrap(), 1);
    assert_eq!(w.stats("queue:q").await, [0, 1, 1, 1]);
    assert_eq!(w.driver.purge(&letters).await.unwrap(), 1);
    assert_eq!(w.driver.purge(&letters).await.unwrap(), 0);
    assert_eq!(w.stats("queue:q").await, [0, 1, 1, 0]);
}
