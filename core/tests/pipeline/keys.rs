//! Keys held in the client while one of theirs is unsettled.

use std::{sync::atomic::Ordering, time::Duration};

use polybus_core::{driver::*, topology::*, *};
use tokio::time::{Instant, timeout};

use crate::{
    consume::{SHORT, bus, id, locked, next, open},
    recorder::Recorder,
    script::{message, scripted},
};

#[tokio::test(start_paused = true)]
async fn a_key_waits_in_the_client_while_one_of_it_is_unsettled() {
    let s = scripted(|_| {});
    for (id, key) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a")] {
        s.push(message(id, key), 1);
    }
    let (_bus, mut sub) = open(&s, "keyed", 10).await;
    let (a1, a) = id(&mut sub).await;
    let (b1, b) = id(&mut sub).await;
    assert_eq!((&*a1, &*b1), ("a1", "b1"));
    assert!(timeout(SHORT, sub.next()).await.is_err());

    a.retry_after(Duration::from_secs(2)).await.unwrap();
    let started = Instant::now();
    let (again, a) = id(&mut sub).await;
    assert_eq!((&*again, a.attempt(), started.elapsed()), ("a1", 2, Duration::from_secs(2)));
    a.release().await.unwrap();
    let (again, a) = id(&mut sub).await;
    assert_eq!((&*again, a.attempt()), ("a1", 3));
    // The third is the last: a dead letter at the broker, and the key goes on.
    drop(a);
    let (a2, a) = id(&mut sub).await;
    assert_eq!(a2, "a2");
    a.ack().await.unwrap();
    assert_eq!(id(&mut sub).await.0, "a3");
    b.ack().await.unwrap();
    let kinds: Vec<_> = s.settled().into_iter().map(|(id, how)| (id, how == Settlement::Ack)).collect();
    assert_eq!(kinds, [("a1".into(), false), ("a2".into(), true), ("b1".into(), true)]);
}

/// While a receiver closes, a head that was to be retried goes back, and what is behind it in its key must not be
/// handed out before it.
#[tokio::test(start_paused = true)]
async fn nothing_of_a_key_overtakes_its_head_while_a_consumer_closes() {
    let s = scripted(|s| s.receiver_closes_in = Duration::from_secs(5));
    ["a1", "a2"].into_iter().for_each(|id| s.push(message(id, "a"), 1));
    let (bus, mut sub) = open(&s, "keyed", 10).await;
    let (a1, a) = id(&mut sub).await;
    assert_eq!(a1, "a1");
    a.retry_after(Duration::from_secs(60)).await.unwrap();
    let closing = tokio::spawn(async move { bus.close().await });
    let next = timeout(Duration::from_secs(60), sub.next()).await.unwrap();
    assert!(next.is_none_or(|next| next.is_err()), "one was handed out before the one that it follows");
    closing.await.unwrap().unwrap();
}

/// The broker has the last word on a lock that seems to hold: it may have been purged, or its clock runs ahead.
#[tokio::test(start_paused = true)]
async fn a_key_does_not_go_on_without_a_head_that_the_broker_says_is_lost() {
    let s = scripted(|s| {
        s.capabilities.get_mut().unwrap().locks = true;
        s.settles.get_mut().unwrap().push_back(Err(Error::new(ErrorKind::LockLost, "gone")));
    });
    ["1", "2"].into_iter().for_each(|id| s.push_received(locked(id, Duration::from_secs(60))));
    let (_bus, mut sub) = open(&s, "keyed", 10).await;
    let head = next(&mut sub).await;
    assert_eq!(head.ack().await.unwrap_err().error().kind(), ErrorKind::LockLost);
    assert!(timeout(SHORT, sub.next()).await.is_err(), "a later one was handed out first");
    assert_eq!(s.0.forgotten.load(Ordering::SeqCst), 2);
    ["1", "2"].into_iter().for_each(|id| s.push_received(locked(id, Duration::from_secs(60))));
    for wanted in ["1", "2"] {
        let (id, delivery) = id(&mut sub).await;
        delivery.ack().await.unwrap();
        assert_eq!(id, wanted);
    }
}

/// Locks are renewed in several calls, of which one may fail.
#[tokio::test(start_paused = true)]
async fn a_key_whose_head_is_lost_does_not_go_on_without_it() {
    let s = scripted(|s| s.capabilities.get_mut().unwrap().locks = true);
    for (id, lock) in [("1", 5), ("2", 60), ("3", 60)] {
        s.push_received(locked(id, Duration::from_secs(lock)));
    }
    let bus = bus(&s);
    let mut sub = bus.subscribe(Source::queue("keyed")).renew_locks(false).open().await.unwrap();
    let (first, head) = id(&mut sub).await;
    assert_eq!(first, "1");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(head.ack().await.unwrap_err().error().kind(), ErrorKind::LockLost);
    assert!(timeout(SHORT, sub.next()).await.is_err(), "a later one was handed out first");
    assert_eq!(s.0.forgotten.load(Ordering::SeqCst), 3);
    // The broker brings them again, in order.
    for id in ["1", "2", "3"] {
        s.push_received(locked(id, Duration::from_secs(60)));
    }
    for wanted in ["1", "2", "3"] {
        let (came, delivery) = id(&mut sub).await;
        assert_eq!(came, wanted);
        delivery.ack().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_ordered_retry_longer_than_max_hold_is_unsupported_and_gives_the_delivery_back() {
    let s = scripted(|_| {});
    s.push(message("1", "a"), 1);
    let (_bus, mut sub) = open(&s, "keyed", 10).await;
    let d = next(&mut sub).await;
    let (e, back) = d.retry_after(Duration::from_secs(3600)).await.unwrap_err().into_parts();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    back.unwrap().ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_brokers_group_orders_where_it_names_one() {
    let s = scripted(|_| {});
    for (id, group) in [("a1", Some("a")), ("a2", Some("a")), ("b1", Some("b")), ("none1", None), ("none2", None)] {
        let mut received = ReceivedMessage::new(DriverToken::new(()), Envelope::new("t", "").id(id), 1);
        received.group = group.map(Into::into);
        s.push_received(received);
    }
    let (_bus, mut sub) = open(&s, "keyed", 10).await;
    let mut deliveries = Vec::new();
    for wanted in ["a1", "b1", "none1"] {
        let (id, delivery) = id(&mut sub).await;
        assert_eq!(id, wanted);
        deliveries.push(delivery);
    }
    assert!(timeout(SHORT, sub.next()).await.is_err(), "two of one group at once");
    deliveries.remove(0).ack().await.unwrap();
    let (second, a2) = id(&mut sub).await;
    assert_eq!(second, "a2");
    deliveries.remove(1).ack().await.unwrap();
    let (last, none2) = id(&mut sub).await;
    assert_eq!(last, "none2");
    a2.ack().await.unwrap();
    none2.ack().await.unwrap();
}

/// What is given up on the way is not reported as held.
#[tokio::test(start_paused = true)]
async fn a_consumer_that_is_stopping_holds_nothing_in_place() {
    for retry in [Duration::ZERO, Duration::from_secs(5)] {
        let recorder = Recorder::default();
        let _installed = metrics::set_default_local_recorder(&recorder);
        let s = scripted(|_| {});
        s.push(message("1", "a"), 1);
        let (_bus, mut sub) = open(&s, "keyed", 10).await;
        let delivery = next(&mut sub).await;
        sub.stop().await.unwrap();
        delivery.retry_after(retry).await.unwrap();
        let mut told = recorder.nonzero("backend=script,source=queue:keyed");
        told.retain(|name, _| name.contains("settled") || name.contains("retried"));
        let wanted = ("polybus_settled_total{settlement=give_back,outcome=ok}".to_owned(), 1);
        assert_eq!(told, [wanted].into(), "{retry:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn each_message_that_is_given_up_with_a_lost_lock_is_counted_once() {
    let recorder = Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let lost = || recorder.nonzero("backend=script,source=queue:keyed").get("polybus_lock_lost_total").copied();
    let s = scripted(|s| s.capabilities.get_mut().unwrap().locks = true);
    for (id, lock) in [("1", 5), ("2", 60), ("3", 60)] {
        s.push_received(locked(id, Duration::from_secs(lock)));
    }
    let bus = bus(&s);
    let mut sub = bus.subscribe(Source::queue("keyed")).renew_locks(false).open().await.unwrap();
    let head = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    head.ack().await.unwrap_err();
    assert_eq!(lost(), Some(3), "those behind it in its key are given up with it");

    // Dropped, not settled.
    s.push_received(locked("4", Duration::from_secs(5)));
    let dropped = next(&mut sub).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    drop(dropped);
    assert_eq!(lost(), Some(4));

    // A subscription that was closed gave its messages back.
    s.push_received(locked("5", Duration::from_secs(60)));
    let given_back = next(&mut sub).await;
    sub.close().await.unwrap();
    drop(given_back);
    assert_eq!(lost(), Some(4));
}
