//! How settlements form batches.

use std::time::Duration;

use polybus_core::*;
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

use crate::script::{Scripted, message, scripted};

const LINGER: Duration = Duration::from_millis(10);

/// Acks so many deliveries in turn, none of them awaited. The first call of the settler has not been answered by then.
async fn ack(script: &Scripted, n: usize) -> (Subscription, JoinSet<()>) {
    for i in 0..n {
        script.push(message(&i.to_string(), "k"), 1);
    }
    let bus = script.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(100).open().await.unwrap();
    let mut acks = JoinSet::new();
    for _ in 0..n {
        let delivery = sub.next().await.unwrap().unwrap();
        acks.spawn(async move { delivery.ack().await.unwrap() });
        tokio::task::yield_now().await;
    }
    (sub, acks)
}

async fn batches(batching: Batching, n: usize) -> Vec<usize> {
    let script = scripted(|s| {
        s.settle_batching = Some(batching);
        s.settle_gate = Some(Semaphore::new(0));
    });
    let (mut sub, acks) = ack(&script, n).await;
    script.0.settle_gate.as_ref().unwrap().add_permits(100);
    acks.join_all().await;
    sub.close().await.unwrap();
    assert_eq!(script.settled().len(), n);
    script.0.settle_batches.lock().unwrap().clone()
}

#[tokio::test]
async fn settlements_start_at_once_while_batches_may() {
    assert_eq!(batches(Batching::new(10, 1000, 4), 9).await, [1, 1, 1, 1, 5]);
}

#[tokio::test]
async fn fuller_batches_wait_for_one_that_is_under_way() {
    assert_eq!(batches(Batching::new(10, 1000, 4).fuller(Duration::ZERO), 9).await, [1, 8]);
}

#[tokio::test]
async fn full_batches_go_beside_others_and_what_is_left_goes_last() {
    assert_eq!(batches(Batching::new(10, 1000, 3).fuller(Duration::ZERO), 27).await, [1, 10, 10, 6]);
}

/// Acks in two waves while others are in hand: the sizes of the batches, and when the last was answered.
async fn waves(first: usize, second: usize, others: usize) -> (Vec<usize>, Duration) {
    let script = scripted(|s| s.settle_batching = Some(Batching::new(10, 1000, 4).fuller(LINGER)));
    (0..first + second + others).for_each(|i| script.push(message(&i.to_string(), "k"), 1));
    let bus = script.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(100).open().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..first + second + others {
        held.push(sub.next().await.unwrap().unwrap());
    }
    let (mut acks, began) = (JoinSet::new(), Instant::now());
    for _ in 0..first {
        let delivery = held.pop().unwrap();
        acks.spawn(async move { delivery.ack().await.unwrap() });
    }
    tokio::time::sleep(LINGER / 2).await;
    for _ in 0..second {
        let delivery = held.pop().unwrap();
        acks.spawn(async move { delivery.ack().await.unwrap() });
    }
    acks.join_all().await;
    let took = began.elapsed();
    let batches = script.0.settle_batches.lock().unwrap().clone();
    (batches, took)
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_a_moment_for_deliveries_that_are_being_handled() {
    let ends = |(batches, took): (Vec<usize>, Duration)| (batches, took >= LINGER);
    assert_eq!(ends(waves(3, 4, 1).await), (vec![7], true), "what comes meanwhile goes along");
    assert_eq!(ends(waves(3, 4, 0).await), (vec![7], false), "nothing else is in hand: nothing to wait for");
    assert_eq!(ends(waves(1, 0, 0).await), (vec![1], false));
    assert_eq!(ends(waves(3, 7, 5).await), (vec![10], false), "a full batch waits for nothing");
    assert_eq!(ends(waves(23, 4, 1).await), (vec![10, 10, 7], true), "full ones leave the rest to those that come");
}
