//! Closing a bus while its broker does not answer, or answers slowly.

use std::{sync::atomic::Ordering, time::Duration};

use polybus_core::{Address, Envelope, Error, ErrorKind};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use crate::{
    consume::{bus, next, open},
    script::{message, scripted},
};

#[tokio::test(start_paused = true)]
async fn closing_waits_about_five_seconds_for_a_broker_that_does_not_answer() {
    let down = || Err(Error::new(ErrorKind::Unavailable, "the broker is away").safe());
    let refuses = scripted(|s| s.settles.get_mut().unwrap().extend((0..1000).map(|_| down())));
    let hangs = scripted(|s| s.settle_gate = Some(Semaphore::new(0)));
    for s in [refuses, hangs] {
        s.push(message("1", "k"), 1);
        s.push(message("2", "k"), 1);
        let (bus, mut sub) = open(&s, "q", 10).await;
        let acking = tokio::spawn(next(&mut sub).await.ack());
        let dropped = next(&mut sub).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let began = Instant::now();
        drop(dropped);
        bus.close().await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        let e = acking.await.unwrap().unwrap_err();
        assert_eq!(e.error().kind(), ErrorKind::Unavailable, "{e:?}");
    }
}

/// A broker that answers slowly: settlements under way are finished.
#[tokio::test(start_paused = true)]
async fn closing_waits_for_a_broker_that_is_slow() {
    let s = scripted(|s| s.settle_gate = Some(Semaphore::new(0)));
    (0..60).for_each(|i| s.push(message(&i.to_string(), "k"), 1));
    let (bus, mut sub) = open(&s, "q", 100).await;
    let mut acks = tokio::task::JoinSet::new();
    for _ in 0..60 {
        acks.spawn(next(&mut sub).await.ack());
    }
    let slow = s.clone();
    tokio::spawn(async move {
        for _ in 0..60 {
            tokio::time::sleep(Duration::from_secs(3)).await;
            slow.0.settle_gate.as_ref().unwrap().add_permits(1);
        }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    bus.close().await.unwrap();
    while let Some(acked) = acks.join_next().await {
        acked.unwrap().unwrap();
    }
}

/// Neither a sender nor the driver comes to an end, as with a connection on which no data moves.
#[tokio::test(start_paused = true)]
async fn closing_leaves_a_driver_to_itself_that_does_not_come_to_an_end() {
    let s = scripted(|s| s.close_hangs = true);
    let bus = bus(&s);
    for queue in ["q", "keyed"] {
        bus.publish(Address::queue(queue), Envelope::new("a", "").key("k")).await.unwrap();
    }
    let began = Instant::now();
    timeout(Duration::from_secs(60), bus.close()).await.expect("closed in time").unwrap();
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!(s.0.closed.load(Ordering::SeqCst), 1);
}

/// No delivery can be settled after the close, so nothing waits for the one that is kept.
#[tokio::test(start_paused = true)]
async fn nothing_of_a_dropped_subscription_runs_on_after_its_bus_was_closed() {
    let s = scripted(|_| {});
    s.push(message("1", "k"), 1);
    let (bus, mut sub) = open(&s, "q", 10).await;
    let kept = next(&mut sub).await;
    drop(sub);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 1, "the subscription's end is not waited for");
    bus.close().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(tasks(), 0, "its end waits for a delivery that cannot be settled");
    drop(kept);
}
