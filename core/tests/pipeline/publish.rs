//! Batches, retries, ambiguity, order after a failure, bounds.

use std::{sync::atomic::Ordering, time::Duration};

use polybus_core::{
    Address, BusOptions, Envelope, Error, ErrorKind, Outgoing, QueueSpec, Receipt, RetrySafety, Topology,
};
use tokio::{sync::Semaphore, time::Instant};

use crate::script::{SendAnswer, message, scripted};

fn queue() -> Address {
    Address::queue("q")
}

fn down() -> Error {
    Error::new(ErrorKind::Unavailable, "connection refused").safe()
}

fn cut() -> Error {
    Error::new(ErrorKind::Unavailable, "connection lost").may_duplicate()
}

fn ordered() -> BusOptions {
    BusOptions::topology(Topology::new().queue("q", QueueSpec::new().ordered(true)))
}

#[tokio::test(start_paused = true)]
async fn what_queues_up_meanwhile_goes_as_the_next_batch() {
    let s = scripted(|s| s.gate = Some(Semaphore::new(0)));
    let bus = s.bus(BusOptions::default());
    let tasks: Vec<_> = (0..25).map(|i| tokio::spawn(bus.publish(queue(), message(&i.to_string(), "k")))).collect();
    while s.0.sending.load(Ordering::SeqCst) < 2 {
        tokio::task::yield_now().await;
    }
    s.0.gate.as_ref().unwrap().add_permits(100);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let sizes: Vec<usize> = s.0.sent.lock().unwrap().iter().map(Vec::len).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 25);
    assert_eq!((sizes[0], sizes[1]), (1, 1), "the first two go at once");
    assert!(sizes[2..].iter().all(|n| *n <= 10) && sizes.len() <= 6, "{sizes:?}");
    assert_eq!(s.0.most_sending.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn passing_faults_are_retried_with_the_same_id() {
    let s = scripted(|s| {
        s.sends.get_mut().unwrap().extend([
            SendAnswer::Results(vec![Err(down())]),
            SendAnswer::Results(vec![Err(cut())]),
            SendAnswer::Results(vec![Ok(Receipt::with_broker_id("b"))]),
        ]);
    });
    let receipt = s.bus(BusOptions::default()).publish(queue(), message("1", "k")).await.unwrap();
    assert_eq!(receipt.broker_id.as_deref(), Some("b"));
    assert_eq!(*s.0.sent.lock().unwrap(), [["1"], ["1"], ["1"]]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_with_unavailable_and_says_whether_it_may_be_stored() {
    for (first, retry) in [(down(), RetrySafety::Safe), (cut(), RetrySafety::MayDuplicate)] {
        let s = scripted(|s| {
            let sends = s.sends.get_mut().unwrap();
            sends.push_back(SendAnswer::Results(vec![Err(first)]));
            sends.extend((0..1000).map(|_| SendAnswer::Results(vec![Err(down())])));
        });
        let started = Instant::now();
        let e = s.bus(BusOptions::default()).publish(queue(), message("1", "k")).await.unwrap_err();
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unavailable, retry), "{e}");
        let took = started.elapsed();
        assert!(took > Duration::from_secs(27) && took <= Duration::from_secs(30), "{took:?}");
        assert_eq!(e.context("address"), Some("queue:q"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_send_that_a_blocked_broker_never_answers_is_throttled_and_may_duplicate() {
    let s = scripted(|s| s.sends.get_mut().unwrap().push_back(SendAnswer::Never));
    *s.0.held_back.lock().unwrap() = Some(Error::new(ErrorKind::Throttled, "blocked"));
    let e = s.bus(BusOptions::default()).publish(queue(), message("1", "k")).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Throttled, RetrySafety::MayDuplicate), "{e}");
}

/// Some of the queues that a topic feeds have it: each time again would be one more for these.
#[tokio::test(start_paused = true)]
async fn what_only_some_have_taken_is_not_sent_again() {
    let refused = || Error::new(ErrorKind::Throttled, "a queue is full");
    let s = scripted(|s| {
        let some = SendAnswer::Results(vec![Err(refused().may_duplicate())]);
        s.sends.get_mut().unwrap().extend([some, SendAnswer::Results(vec![Err(refused().safe())])]);
    });
    let bus = s.bus(BusOptions::default());
    let e = bus.publish(queue(), message("1", "k")).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Throttled, RetrySafety::MayDuplicate), "{e}");
    bus.publish(queue(), message("2", "k")).await.unwrap();
    assert_eq!(*s.0.sent.lock().unwrap(), [["1"], ["2"], ["2"]], "what nobody has is sent again");
}

#[tokio::test(start_paused = true)]
async fn a_send_that_never_answers_is_a_timeout_that_may_duplicate() {
    let s = scripted(|s| s.sends.get_mut().unwrap().push_back(SendAnswer::Never));
    let bus = s.bus(BusOptions::default());
    let e = bus.publish(queue(), message("1", "k")).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Timeout, RetrySafety::MayDuplicate));
    bus.publish(queue(), message("2", "k")).await.unwrap();
    bus.close().await.unwrap();
    assert_eq!(s.0.sending.load(Ordering::SeqCst), 0, "the place of the lost batch is free again");
}

#[tokio::test(start_paused = true)]
async fn one_failure_is_not_its_neighbours() {
    let missing = || Error::new(ErrorKind::NotFound, "no such queue");
    let s = scripted(|s| {
        s.sends.get_mut().unwrap().push_back(SendAnswer::Results(vec![
            Ok(Receipt::default()),
            Err(missing()),
            Ok(Receipt::default()),
        ]));
    });
    let results = s.bus(BusOptions::default()).publish_all(queue(), ["1", "2", "3"].map(|i| message(i, "k"))).await;
    let kinds: Vec<_> = results.iter().map(|r| r.as_ref().err().map(Error::kind)).collect();
    assert_eq!(kinds, [None, Some(ErrorKind::NotFound), None]);
}

#[tokio::test(start_paused = true)]
async fn a_wrong_number_of_results_is_unexpected_for_all() {
    let s = scripted(|s| s.sends.get_mut().unwrap().push_back(SendAnswer::Results(vec![Ok(Receipt::default())])));
    let results = s.bus(BusOptions::default()).publish_all(queue(), ["1", "2"].map(|i| message(i, "k"))).await;
    for result in results {
        let e = result.unwrap_err();
        assert_eq!((e.kind(), e.retry()), (ErrorKind::Unexpected, RetrySafety::MayDuplicate));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_stops_its_key_from_there_on_and_not_before() {
    let s = scripted(|_| {});
    let refused = message("bad", "k").expires_at(time::OffsetDateTime::UNIX_EPOCH);
    let all = vec![message("1", "k"), message("2", "k"), refused, message("3", "k"), message("4", "other")];
    let results = s.bus(ordered()).publish_all(queue(), all).await;
    let kinds: Vec<_> = results.iter().map(|r| r.as_ref().err().map(Error::kind)).collect();
    assert_eq!(kinds, [None, None, Some(ErrorKind::InvalidArgument), Some(ErrorKind::Unavailable), None]);
    let after = results[3].as_ref().unwrap_err();
    assert_eq!((after.context("after_failed"), after.retry()), (Some("bad"), RetrySafety::Safe));
    let mut sent = s.0.sent.lock().unwrap().concat();
    sent.sort();
    assert_eq!(sent, ["1", "2", "4"]);
}

#[tokio::test(start_paused = true)]
async fn on_an_ordered_address_a_key_has_one_message_under_way_and_stops_at_a_failure() {
    let bad = || Error::new(ErrorKind::PermissionDenied, "no");
    let s = scripted(|s| {
        // a1 b1 go together; a1 fails.
        s.sends.get_mut().unwrap().push_back(SendAnswer::Results(vec![Err(bad()), Ok(Receipt::default())]));
    });
    let all = [("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b"), ("a3", "a")].map(|(id, key)| message(id, key));
    let bus = s.bus(ordered());
    let results = bus.publish_all(queue(), all).await;
    assert!(results[1].is_ok() && results[3].is_ok());
    assert_eq!(results[0].as_ref().unwrap_err().kind(), ErrorKind::PermissionDenied);
    for late in [2, 4] {
        let e = results[late].as_ref().unwrap_err();
        assert_eq!(
            (e.kind(), e.retry(), e.context("after_failed")),
            (ErrorKind::Unavailable, RetrySafety::Safe, Some("a1"))
        );
    }
    assert_eq!(*s.0.sent.lock().unwrap(), [vec!["a1", "b1"], vec!["b2"]]);
    bus.publish(queue(), message("a4", "a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_retried_key_keeps_its_order_and_holds_up_no_other() {
    let s = scripted(|s| {
        s.sends.get_mut().unwrap().push_back(SendAnswer::Results(vec![Err(cut()), Ok(Receipt::default())]));
    });
    let all = [("a1", "a"), ("b1", "b"), ("a2", "a"), ("b2", "b")].map(|(id, key)| message(id, key));
    for result in s.bus(ordered()).publish_all(queue(), all).await {
        result.unwrap();
    }
    let sent = s.0.sent.lock().unwrap().concat();
    let a: Vec<_> = sent.iter().filter(|id| id.starts_with('a')).collect();
    assert_eq!(a, ["a1", "a1", "a2"]);
    let (b2, retry) = (sent.iter().position(|id| id == "b2"), sent.iter().rposition(|id| id == "a1"));
    assert!(b2 < retry, "b2 need not wait for the backoff of a1: {sent:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_publish_leaks_nothing_and_takes_nobody_down() {
    let s = scripted(|s| s.gate = Some(Semaphore::new(0)));
    let bus = s.bus(BusOptions::default());
    let mut first = Box::pin(bus.publish(queue(), message("1", "k")));
    assert!(futures_poll(&mut first).await.is_none());
    drop(first);
    let second = tokio::spawn(bus.publish(queue(), message("2", "k")));
    tokio::task::yield_now().await;
    s.0.gate.as_ref().unwrap().add_permits(10);
    second.await.unwrap().unwrap();
    bus.close().await.unwrap();
    assert_eq!(s.0.sending.load(Ordering::SeqCst), 0);
    assert_eq!(bus.publish(queue(), message("3", "k")).await.unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn bytes_that_may_wait_are_bounded_and_the_rest_times_out_unsent() {
    let s = scripted(|s| s.gate = Some(Semaphore::new(0)));
    let mut options = BusOptions::default();
    options.max_pending_bytes = 1000;
    options.publish_timeout = Duration::from_secs(5);
    let bus = s.bus(options);
    let big = |i: usize| Envelope::new("t.a", vec![0u8; 400]).id(i.to_string());
    let tasks: Vec<_> = (0..50).map(|i| tokio::spawn(bus.publish(queue(), big(i)))).collect();
    let mut outcomes = Vec::new();
    for task in tasks {
        outcomes.push(task.await.unwrap().unwrap_err().retry());
    }
    assert_eq!(s.0.sent.lock().unwrap().concat().len(), 2, "1,000 bytes are two of these");
    assert_eq!(outcomes.iter().filter(|r| **r == RetrySafety::MayDuplicate).count(), 2);
    assert_eq!(outcomes.iter().filter(|r| **r == RetrySafety::Safe).count(), 48);
}

#[tokio::test(start_paused = true)]
async fn publish_all_larger_than_what_may_wait_goes_through() {
    let s = scripted(|_| {});
    let mut options = BusOptions::default();
    options.max_pending_bytes = 1000;
    let all = (0..100).map(|i| Envelope::new("t.a", vec![0u8; 300]).id(i.to_string()));
    for result in s.bus(options).publish_all(queue(), all).await {
        result.unwrap();
    }
}

async fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|cx| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(cx) {
            std::task::Poll::Ready(out) => Some(out),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_a_driver_fails_its_batch_and_nothing_else() {
    let s = scripted(|s| s.sends.get_mut().unwrap().push_back(SendAnswer::Panic));
    let bus = s.bus(ordered());
    let e = bus.publish(queue(), message("1", "k")).await.unwrap_err();
    assert_eq!((e.kind(), e.retry()), (ErrorKind::Unexpected, RetrySafety::MayDuplicate));
    assert!(e.to_string().contains("a driver's bug"), "{e}");
    // The key goes on, and so does closing.
    bus.publish(queue(), message("2", "k")).await.unwrap();
    tokio::time::timeout(Duration::from_secs(60), bus.close()).await.expect("closed in time").unwrap();
}

#[tokio::test(start_paused = true)]
async fn no_limit_is_a_limit_too() {
    let s = scripted(|_| {});
    let mut options = BusOptions::default();
    options.publish_timeout = Duration::MAX;
    let bus = s.bus(options);
    bus.publish(queue(), message("1", "k")).await.unwrap();
    let e = bus.publish(queue(), Outgoing::from(message("2", "k")).expires_in(Duration::MAX)).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::InvalidArgument);
}
