use std::time::Duration;

use polybus_core::driver::{Driver, Settlement};
use tokio::time::{Instant, advance};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_lock_that_runs_out_makes_it_available_with_the_next_attempt() {
    let w = world().await;
    w.publish("queue:q", &["1", "2"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let start = Instant::now();
    let first = c.one().await;
    assert_eq!(first.locked_until, Some(start + LOCK - secs(1)));
    advance(LOCK - Duration::from_millis(1)).await;
    assert!(c.settler.holds(&first.token));
    let again = c.one().await;
    assert_eq!((&*again.envelope.id, again.attempt, start.elapsed()), ("1", 2, LOCK));
    c.is_lost(&first).await;
    c.ack(&again).await;
    let second = c.one().await;
    assert_eq!((&*second.envelope.id, second.attempt), ("2", 1));
}

#[tokio::test(start_paused = true)]
async fn a_late_settle_is_lock_lost_even_if_nobody_looked_meanwhile() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let got = c.one().await;
    advance(LOCK).await;
    c.is_lost(&got).await;
    assert_eq!(w.stats("queue:q").await, [1, 0, 0, 0]);
    assert_eq!(c.seen(1), ids(&[("1", 2)]));
}

#[tokio::test(start_paused = true)]
async fn extend_holds_longer_or_shorter_from_now() {
    let w = world().await;
    w.publish("queue:q", &["1", "2", "3"]).await;
    let mut c = w.consume("queue:q", 3).await;
    let got = c.ready(3);
    advance(secs(10)).await;
    let tokens = [got[0].token.clone(), got[1].token.clone()];
    let longer = c.settler.extend(&tokens[..1], secs(100)).await.remove(0).unwrap();
    let shorter = c.settler.extend(&tokens[1..], secs(2)).await.remove(0).unwrap();
    assert_eq!(longer, Instant::now() + secs(99));
    assert_eq!(shorter, Instant::now() + Duration::from_millis(1500));
    let (start, mut seen) = (Instant::now(), Vec::new());
    for _ in 0..3 {
        let r = c.one().await;
        seen.push((r.envelope.id.to_string(), start.elapsed().as_secs()));
        c.ack(&r).await;
    }
    let wanted = [("2", 2), ("3", 20), ("1", 100)].map(|(id, at)| (id.to_owned(), at));
    assert_eq!(seen, wanted);
}

#[tokio::test(start_paused = true)]
async fn renewed_again_and_again_it_is_never_lost() {
    let w = world().await;
    w.publish("queue:q", &["held", "other"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let mut d = w.consume("queue:q", 1).await;
    let held = c.one().await;
    for _ in 0..50 {
        advance(LOCK / 2).await;
        c.settler.extend(std::slice::from_ref(&held.token), LOCK).await.remove(0).unwrap();
        let other = d.one().await;
        assert_eq!(&*other.envelope.id, "other");
        d.settle(&other, Settlement::GiveBack).await.unwrap();
    }
    c.ack(&held).await;
}

#[tokio::test(start_paused = true)]
async fn another_consumer_that_waits_gets_what_ran_out() {
    let w = world().await;
    let mut other = w.consume("queue:q", 1).await;
    let waiting = tokio::spawn(async move {
        let got = other.one().await;
        (Instant::now(), got.attempt, other)
    });
    tokio::task::yield_now().await;
    let mut holder = w.consume("queue:q", 1).await;
    let start = Instant::now();
    w.publish("queue:q", &["1"]).await;
    let held = holder.ready(1);
    // Whoever got it first holds it; the other one gets it when the lock has run out.
    let (at, attempt, _other) = waiting.await.unwrap();
    let wanted = if held.is_empty() { (start, 1) } else { (start + LOCK, 2) };
    assert_eq!((at, attempt), wanted);
    assert!(!held.is_empty(), "the test means the waiting one to come second");
}

#[tokio::test(start_paused = true)]
async fn an_idle_bus_lets_time_stand_still() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let mut c = w.consume("queue:q", 2).await;
    let got = c.one().await;
    // It waits for a second one with its timer armed for the first one's lock, and then for a third with nothing held.
    let second = tokio::spawn(async move { (c.one().await, c) });
    tokio::task::yield_now().await;
    w.publish("queue:q", &["2"]).await;
    let (second, mut c) = second.await.unwrap();
    c.ack(&got).await;
    c.ack(&second).await;
    let start = (Instant::now(), w.driver.clock().unwrap().now());
    let waiting = tokio::spawn(async move { c.one().await.envelope.id.to_string() });
    // With a timer armed anywhere, the paused clock would jump to it while only this blocking task is under way.
    let (send, got) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        send.send(()).unwrap();
    });
    got.await.unwrap();
    assert_eq!((Instant::now(), w.driver.clock().unwrap().now()), start);
    w.publish("queue:q", &["3"]).await;
    assert_eq!(waiting.await.unwrap(), "3");
}

#[tokio::test(start_paused = true)]
async fn many_settled_locks_leave_nothing_behind_a_held_one() {
    let w = world().await;
    let mut c = w.consume("queue:q", 2).await;
    w.publish("queue:q", &["held"]).await;
    let held = c.one().await;
    for _ in 0..10_000 {
        w.publish("queue:q", &["x"]).await;
        let got = c.one().await;
        c.ack(&got).await;
    }
    advance(LOCK).await;
    assert_eq!(c.seen(2), ids(&[("held", 2)]));
    c.is_lost(&held).await;
}

#[tokio::test(start_paused = true)]
async fn one_that_waited_before_anything_was_held_gets_what_runs_out() {
    let w = world().await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut c = w.consume("queue:q", 1).await;
        waiting.push(tokio::spawn(async move { (c.one().await.attempt, Instant::now(), c) }));
    }
    tokio::task::yield_now().await;
    let start = Instant::now();
    w.publish("queue:q", &["1"]).await;
    let mut seen = Vec::new();
    let mut consumers = Vec::new();
    for one in waiting {
        let (attempt, at, consumer) = one.await.unwrap();
        seen.push((attempt, at - start));
        consumers.push(consumer);
    }
    seen.sort();
    assert_eq!(seen, [(1, secs(0)), (2, LOCK)]);
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_notices_a_shortened_lock() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let (mut holder, mut other) = (w.consume("queue:q", 1).await, w.consume("queue:q", 1).await);
    let held = holder.one().await;
    let start = Instant::now();
    let waiting = tokio::spawn(async move { (other.one().await.attempt, start.elapsed()) });
    tokio::task::yield_now().await;
    holder.settler.extend(std::slice::from_ref(&held.token), secs(2)).await.remove(0).unwrap();
    assert_eq!(waiting.await.unwrap(), (2, secs(2)));
}

#[tokio::test(start_paused = true)]
async fn an_extended_lock_runs_out_even_if_its_first_deadline_was_looked_at() {
    let w = world().await;
    w.publish("queue:q", &["1"]).await;
    let mut c = w.consume("queue:q", 1).await;
    let held = c.one().await;
    c.settler.extend(std::slice::from_ref(&held.token), LOCK * 2).await.remove(0).unwrap();
    for in_flight in [1, 0] {
        advance(LOCK).await;
        assert_eq!(w.stats("queue:q").await, [1 - in_flight, in_flight, 0, 0]);
    }
}
