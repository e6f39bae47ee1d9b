//! How settlements form batches.

use polybus_core::*;
use tokio::{sync::Semaphore, task::JoinSet};

use crate::script::{Scripted, message, scripted};

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
    assert_eq!(batches(Batching::new(10, 1000, 4).fuller(), 9).await, [1, 8]);
}

#[tokio::test]
async fn full_batches_go_beside_others_and_what_is_left_goes_last() {
    assert_eq!(batches(Batching::new(10, 1000, 3).fuller(), 27).await, [1, 10, 10, 6]);
}
