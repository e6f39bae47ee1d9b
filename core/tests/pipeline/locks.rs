//! Locks: renewed from receipt on, extended, run out, lost.

use std::{sync::atomic::Ordering, time::Duration};

use polybus_core::{driver::*, topology::*, *};
use tokio::time::{Instant, timeout};

use crate::{
    consume::{SHORT, bus, id, locked, next, open},
    recorder::Recorder,
    script::{message, scripted},
};

#[tokio::test(start_paused = true)]
async fn locks_are_renewed_from_receipt_on_buffered_ones_too() {
    let s = scripted(|s| s.capabilities.get_mut().unwrap().locks = true);
    s.push_received(locked("1", Duration::from_secs(30)));
    s.push_received(locked("2", Duration::from_secs(30)));
    let (_bus, mut sub) = open(&s, "q", 10).await;
    let first = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(first.locked_until().is_some_and(|until| until > Instant::now()));
    first.ack().await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    let extended = s.0.extended.load(Ordering::SeqCst);
    assert!((20..100).contains(&extended), "{extended} renewals of two locks in 300 s");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(s.0.extended.load(Ordering::SeqCst), extended, "nothing is held: nothing is renewed");
}

/// The runtime that polled for a message ends while the message is held.
#[test]
fn locks_are_renewed_after_the_runtime_that_received_has_ended() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (main, other) = (runtime(), runtime());
    let s = scripted(|s| s.capabilities.get_mut().unwrap().locks = true);
    let (_bus, mut sub) = main.block_on(open(&s, "q", 10));
    s.push_received(locked("1", Duration::from_secs(30)));
    let held = other.block_on(next(&mut sub));
    drop(other);
    main.block_on(async {
        tokio::time::sleep(Duration::from_secs(300)).await;
        held.ack().await.unwrap();
    });
    let extended = s.0.extended.load(Ordering::SeqCst);
    assert!((10..50).contains(&extended), "{extended} renewals of a lock in 300 s");
}

/// Ten calls of 3 s each, for locks that are renewed with 12 s left at the latest.
#[tokio::test(start_paused = true)]
async fn renewals_that_take_long_go_side_by_side_and_never_more_than_the_driver_takes() {
    let s = scripted(|s| {
        s.capabilities.get_mut().unwrap().locks = true;
        s.settle_batching = Some(Batching::new(10, 1000, 4));
        s.extend_takes = Duration::from_secs(3);
    });
    (0..100).for_each(|i| s.push_received(locked(&i.to_string(), Duration::from_secs(30))));
    let (_bus, mut sub) = open(&s, "q", 100).await;
    let first = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    first.ack().await.unwrap();
    for _ in 1..100 {
        next(&mut sub).await.ack().await.unwrap();
    }
    assert_eq!(s.0.most_extending.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_panics_is_tried_again() {
    let s = scripted(|s| {
        s.capabilities.get_mut().unwrap().locks = true;
        s.extend_panics = true.into();
    });
    s.push_received(locked("1", Duration::from_secs(30)));
    let (_bus, mut sub) = open(&s, "q", 10).await;
    let held = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    held.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_was_extended_for_long_does_not_keep_later_ones_from_being_renewed() {
    let s = scripted(|s| s.capabilities.get_mut().unwrap().locks = true);
    s.push_received(locked("1", Duration::from_secs(30)));
    let (_bus, mut sub) = open(&s, "q", 10).await;
    let mut first = next(&mut sub).await;
    first.extend(Duration::from_secs(3600)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(s.0.extended.load(Ordering::SeqCst), 1, "a long lock is renewed early");
    s.push_received(locked("2", Duration::from_secs(30)));
    let second = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    second.ack().await.unwrap();
    first.ack().await.unwrap();
}

/// An operator may have shortened the lock since this topology was written.
#[tokio::test(start_paused = true)]
async fn locks_shorter_than_was_asked_for_are_renewed_in_time_and_not_without_pause() {
    let s = scripted(|s| {
        s.capabilities.get_mut().unwrap().locks = true;
        s.longest_lock = Some(Duration::from_secs(4));
    });
    s.push_received(locked("1", Duration::from_secs(4)));
    let (_bus, mut sub) = open(&s, "q", 10).await;
    let held = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let extended = s.0.extended.load(Ordering::SeqCst);
    assert!((25..=60).contains(&extended), "{extended} renewals of a lock of 4 s in 100 s");
    held.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_ran_out_is_lost_without_io_and_in_the_buffer_never_handed_out() {
    let s = scripted(|s| s.capabilities.get_mut().unwrap().locks = true);
    s.push_received(locked("1", Duration::from_secs(5)));
    s.push_received(locked("2", Duration::from_secs(5)));
    let bus = bus(&s);
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(10).renew_locks(false).open().await.unwrap();
    let first = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    s.push_received(locked("3", Duration::from_secs(5)));
    let (e, back) = first.ack().await.unwrap_err().into_parts();
    assert!(e.kind() == ErrorKind::LockLost && back.is_none());
    assert_eq!(id(&mut sub).await.0, "3");
    assert_eq!(s.0.forgotten.load(Ordering::SeqCst), 2, "lost deliveries that the driver was told of");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(s.settled(), [("3".to_string(), Settlement::Release)]);
}

#[tokio::test(start_paused = true)]
async fn a_stale_delivery_is_neither_handed_out_nor_settled() {
    let s = scripted(|_| {});
    s.push(message("1", "k"), 1);
    s.push(message("2", "k"), 1);
    let (_bus, mut sub) = open(&s, "q", 10).await;
    let first = next(&mut sub).await;
    s.0.stale.store(true, Ordering::SeqCst);
    assert_eq!(first.ack().await.unwrap_err().error().kind(), ErrorKind::LockLost);
    assert!(timeout(SHORT, sub.next()).await.is_err());
    s.0.stale.store(false, Ordering::SeqCst);
    s.push(message("2", "k"), 2);
    assert_eq!(next(&mut sub).await.attempt(), 2);
}

/// Ten locks in one call that is never answered: the first time only, or as long as one certain lock is in it.
#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_never_answered_loses_at_most_its_own_lock() {
    for one_hangs in [false, true] {
        let s = scripted(|s| {
            s.capabilities.get_mut().unwrap().locks = true;
            *s.extend_hangs.get_mut() = usize::from(!one_hangs);
        });
        for i in 0..10 {
            let mut received = locked(&i.to_string(), Duration::from_secs(30));
            received.token = if one_hangs && i == 4 { DriverToken::new("hangs") } else { DriverToken::new(()) };
            s.push_received(received);
        }
        let (_bus, mut sub) = open(&s, "q", 10).await;
        let mut deliveries = Vec::new();
        for _ in 0..10 {
            deliveries.push(next(&mut sub).await);
        }
        tokio::time::sleep(Duration::from_secs(200)).await;
        let lost: Vec<_> = deliveries.iter().filter(|d| !d.is_held()).map(|d| d.envelope().id.to_string()).collect();
        assert_eq!(lost, if one_hangs { vec!["4"] } else { vec![] });
    }
}

/// The renewals are never answered: the first one at half of the lock's 30 s, each given up after an eighth of them.
#[tokio::test(start_paused = true)]
async fn only_renewals_that_are_tried_again_count_as_failed() {
    let recorder = Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let failed = || {
        let told = recorder.nonzero("backend=script,source=queue:q");
        told.get("polybus_renewal_failed_total{reason=Timeout}").copied().unwrap_or(0)
    };
    let s = scripted(|s| {
        s.capabilities.get_mut().unwrap().locks = true;
        *s.extend_hangs.get_mut() = usize::MAX;
    });
    let (_bus, mut sub) = open(&s, "q", 10).await;
    s.push_received(locked("1", Duration::from_secs(30)));
    let settled = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(16)).await;
    settled.ack().await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!((s.0.extended.load(Ordering::SeqCst), failed()), (1, 0), "it was settled before the renewal failed");

    s.push_received(locked("2", Duration::from_secs(30)));
    let kept = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(!kept.is_held());
    assert_eq!((s.0.extended.load(Ordering::SeqCst), failed()), (5, 3), "the last one had no time left");
}

/// The topology says 30 s, of which the broker gives two.
#[tokio::test(start_paused = true)]
async fn a_failed_renewal_is_tried_again_within_the_lock_that_the_broker_gave() {
    let s = scripted(|s| {
        s.capabilities.get_mut().unwrap().locks = true;
        s.longest_lock = Some(Duration::from_secs(2));
        s.extend_panics = true.into();
    });
    s.push_received(locked("1", Duration::from_secs(2)));
    let (_bus, mut sub) = open(&s, "q", 10).await;
    let held = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    held.ack().await.unwrap();
}
