//! How settlements form batches.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use polybus_core::{driver::*, message::*, topology::*, worker::*, *};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, timeout},
};

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

/// Who waits for the next delivery, on this thread, runs beside the one who tells a batch its answers.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_room_that_a_batch_makes_is_asked_for_at_once() {
    const N: usize = 100;
    for _ in 0..20 {
        let script = scripted(|s| {
            s.settle_batching = Some(Batching::new(N, 1000, 1).fuller(Duration::from_secs(60)));
            s.settle_gate = Some(Semaphore::new(0));
        });
        (0..2 * N).for_each(|i| script.push(message(&i.to_string(), "k"), 1));
        let bus = script.bus(BusOptions::default());
        let mut sub = bus.subscribe(Source::queue("q")).prefetch(N).open().await.unwrap();
        let mut held = Vec::new();
        for _ in 0..N {
            held.push(sub.next().await.unwrap().unwrap());
        }
        held.into_iter().for_each(|delivery| drop(tokio::spawn(delivery.ack())));
        let mut next = Box::pin(sub.next());
        assert!(timeout(Duration::ZERO, &mut next).await.is_err(), "handed out beyond the window");
        script.0.settle_gate.as_ref().unwrap().add_permits(100);
        next.await.unwrap().unwrap().ack().await.unwrap();
        sub.close().await.unwrap();
        assert_eq!(*script.0.asked.lock().unwrap(), [N, N]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_ends_while_the_broker_cannot_be_told_is_lost() {
    let script = scripted(|s| {
        s.settle_gate = Some(Semaphore::new(0));
        let down = Error::new(ErrorKind::Unavailable, "not now").safe();
        s.settles.get_mut().unwrap().push_back(Err(down));
    });
    script.push(message("1", "k"), 1);
    let bus = script.bus(BusOptions::default());
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let ack = tokio::spawn(sub.next().await.unwrap().unwrap().ack());
    while script.0.settle_batches.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    script.0.stale.store(true, Ordering::SeqCst);
    script.0.settle_gate.as_ref().unwrap().add_permits(100);
    let (e, back) = ack.await.unwrap().unwrap_err().into_parts();
    assert_eq!((e.kind(), back.is_none()), (ErrorKind::LockLost, true), "{e}");
    assert_eq!(script.0.settle_batches.lock().unwrap().len(), 1, "it was tried again without a hold");
}

/// What a worker has handled, and may still ack, is neither handled again nor dead-lettered.
#[tokio::test(start_paused = true)]
async fn a_worker_acks_for_as_long_as_it_holds() {
    let script = scripted(|s| {
        let down = || Err(Error::new(ErrorKind::Throttled, "not now").safe());
        s.settles.get_mut().unwrap().extend((0..60).map(|_| down()));
    });
    script.push(message("1", "k"), 1);
    let topology = Topology::new().queue("q", QueueSpec::new().max_deliveries(1));
    let bus = script.bus(BusOptions::topology(topology));
    let done = std::sync::Arc::new(tokio::sync::Notify::new());
    let handled = done.clone();
    let settled = script.clone();
    let stop = async move {
        done.notified().await;
        while settled.0.settled.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let handler = move |_: HandlerContext, _: Envelope| {
        handled.notify_one();
        async { Ok::<(), HandlerError>(()) }
    };
    let report = bus.worker(Source::queue("q")).with_graceful_shutdown(stop).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.unsettled), (1, 0), "{report:?}");
    assert_eq!(*script.0.settled.lock().unwrap(), [("1".to_owned(), Settlement::Ack)]);
}

/// A handler holds one for every delivery.
#[tokio::test]
async fn a_settlement_under_way_is_small() {
    let script = scripted(|_| {});
    script.push(message("1", "k"), 1);
    let bus = script.bus(BusOptions::default());
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let ack = sub.next().await.unwrap().unwrap().ack();
    let size = std::mem::size_of_val(&ack);
    ack.await.unwrap();
    assert!(size <= 640, "{size} bytes");
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_driver_gives_the_delivery_back() {
    let script = scripted(|s| *s.settle_panics.get_mut() = true);
    script.push(message("1", "k"), 1);
    let bus = script.bus(BusOptions::default());
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let (e, back) = sub.next().await.unwrap().unwrap().ack().await.unwrap_err().into_parts();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Unexpected, RetrySafety::MayDuplicate));
    back.unwrap().ack().await.unwrap();
    timeout(Duration::from_secs(60), sub.close()).await.expect("closed in time").unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_was_moved_is_not_released_when_nobody_waits_for_the_answer() {
    let kept = || Error::new(ErrorKind::Unavailable, "cut").may_duplicate().with_kept_copy();
    let script = scripted(|s| s.settles.get_mut().unwrap().push_back(Err(kept())));
    script.push(message("1", "k"), 1);
    let bus = script.bus(BusOptions::default());
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let moving = Box::pin(sub.next().await.unwrap().unwrap().dead_letter("poison", ""));
    assert!(timeout(Duration::ZERO, moving).await.is_err(), "answered at once");
    sub.close().await.unwrap();
    assert_eq!(script.settled(), [("1".to_string(), Settlement::Ack)]);
}

/// A signal handler and the main task may both close.
#[tokio::test(start_paused = true)]
async fn closing_twice_at_once_finishes_settlements_first() {
    for dropped in [false, true] {
        let script = scripted(|s| s.settle_gate = Some(Semaphore::new(0)));
        script.push(message("1", "k"), 1);
        let bus = script.bus(BusOptions::default());
        let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
        let delivery = sub.next().await.unwrap().unwrap();
        let ack = tokio::spawn(delivery.ack());
        tokio::task::yield_now().await;
        let mut first = Box::pin(bus.close());
        assert!(timeout(Duration::from_secs(1), &mut first).await.is_err(), "closed before the ack was answered");
        if dropped {
            first = Box::pin(bus.close());
        }
        assert!(timeout(Duration::from_secs(1), bus.close()).await.is_err(), "the second did not wait");
        assert_eq!(script.0.closed.load(Ordering::SeqCst), 0, "the driver was closed under a settlement");
        script.0.settle_gate.as_ref().unwrap().add_permits(10);
        let (first, second) = tokio::join!(first, bus.close());
        assert!(first.is_ok() && second.is_ok() && ack.await.unwrap().is_ok());
        let count = |n: &AtomicUsize| n.load(Ordering::SeqCst);
        assert_eq!((count(&script.0.settlers_closed), count(&script.0.closed)), (1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_moved_is_acked_and_says_so_if_that_fails() {
    let down = || Error::new(ErrorKind::Unavailable, "down").safe();
    let kept = || Error::new(ErrorKind::Unavailable, "cut").may_duplicate().with_kept_copy();
    let script = scripted(|s| {
        let settles = s.settles.get_mut().unwrap();
        settles.push_back(Err(kept()));
        settles.extend((0..1000).map(|_| Err(down())));
    });
    script.push(message("1", "k"), 1);
    let bus = script.bus(BusOptions::default());
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let (e, back) = sub.next().await.unwrap().unwrap().dead_letter("poison", "").await.unwrap_err().into_parts();
    assert!(e.is_copy_kept());
    script.0.settles.lock().unwrap().clear();
    back.unwrap().ack().await.unwrap();
    assert_eq!(script.settled(), [("1".to_string(), Settlement::Ack)]);
}

#[tokio::test(start_paused = true)]
async fn who_settles_one_by_one_with_others_in_hand_waits_the_linger_and_no_longer() {
    let script = scripted(|s| s.settle_batching = Some(Batching::new(10, 1000, 4).fuller(LINGER)));
    (0..40).for_each(|i| script.push(message(&i.to_string(), "k"), 1));
    let bus = script.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(100).open().await.unwrap();
    let mut held = Vec::new();
    for _ in 0..40 {
        held.push(sub.next().await.unwrap().unwrap());
    }
    let began = Instant::now();
    for delivery in held {
        delivery.ack().await.unwrap();
    }
    // The last has nothing else in hand.
    assert_eq!(began.elapsed(), LINGER * 39);
}
