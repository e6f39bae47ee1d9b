//! Prefetch, settlements that fail, endings.

use std::{sync::atomic::Ordering, time::Duration};

use polybus_core::{driver::*, message::*, topology::*, *};
use tokio::time::{Instant, timeout};

use crate::{
    recorder::Recorder,
    script::{Scripted, message, scripted},
};

pub(crate) const SHORT: Duration = Duration::from_millis(50);

pub(crate) fn bus(s: &Scripted) -> Bus {
    let topology = Topology::new()
        .queue("q", QueueSpec::new().max_deliveries(3))
        .queue("keyed", QueueSpec::new().ordered(true).max_deliveries(3));
    s.bus(BusOptions::topology(topology))
}

pub(crate) async fn open(s: &Scripted, queue: &'static str, prefetch: usize) -> (Bus, Subscription) {
    let bus = bus(s);
    let sub = bus.subscribe(Source::queue(queue)).prefetch(prefetch).open().await.unwrap();
    (bus, sub)
}

pub(crate) async fn next(sub: &mut Subscription) -> Delivery {
    timeout(Duration::from_secs(60), sub.next()).await.expect("a delivery in time").unwrap().unwrap()
}

pub(crate) async fn id(sub: &mut Subscription) -> (String, Delivery) {
    let d = next(sub).await;
    (d.envelope().id.to_string(), d)
}

pub(crate) fn locked(id: &str, lock: Duration) -> ReceivedMessage {
    let mut received = ReceivedMessage::new(DriverToken::new(()), message(id, "k"), 1);
    received.locked_until = Some(Instant::now() + lock);
    received
}

#[tokio::test(start_paused = true)]
async fn prefetch_is_a_hard_bound_that_a_dropped_delivery_gives_back() {
    let s = scripted(|_| {});
    (0..10).for_each(|i| s.push(message(&i.to_string(), "k"), 1));
    let (_bus, mut sub) = open(&s, "q", 3).await;
    let mut held = vec![next(&mut sub).await, next(&mut sub).await, next(&mut sub).await];
    assert!(timeout(SHORT, sub.next()).await.is_err(), "a fourth was handed out");
    assert_eq!(s.0.asked.lock().unwrap().iter().max(), Some(&3));
    drop(held.pop());
    next(&mut sub).await.ack().await.unwrap();
    assert_eq!(s.settled()[0].1, Settlement::Release);
    assert_eq!(s.settled()[1].1, Settlement::Ack);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_dead_lettered_is_released_after_a_pause_and_does_not_spin() {
    let denied = || Err(Error::new(ErrorKind::PermissionDenied, "no right to write there"));
    let s = scripted(|s| s.settles.get_mut().unwrap().extend([denied(), denied(), denied()]));
    let (_bus, mut sub) = open(&s, "q", 10).await;
    s.push(message("over", "k"), 4);
    assert!(timeout(Duration::from_millis(500), sub.next()).await.is_err());
    assert_eq!(s.0.settles.lock().unwrap().len(), 2, "one attempt to dead-letter it so far");
    s.push(message("last", "k"), 3);
    let e = next(&mut sub).await.release().await.unwrap_err();
    assert_eq!(e.error().kind(), ErrorKind::PermissionDenied);
    // Its drop tries to dead-letter it once more, in vain.
    drop(e);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let mut settled = s.settled();
    settled.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(settled, [("last".to_string(), Settlement::Release), ("over".to_string(), Settlement::Release)]);
}

/// What no type wants is dead-lettered at its first attempt, and comes back at the first where the broker does not
/// count.
#[tokio::test(start_paused = true)]
async fn an_unwanted_message_that_cannot_be_dead_lettered_does_not_spin_either() {
    let s = scripted(|s| {
        s.capabilities.get_mut().unwrap().topics = true;
        let missing = Error::new(ErrorKind::NotFound, "no dead letters here");
        s.settles.get_mut().unwrap().push_back(Err(missing));
    });
    let spec = SubscriptionSpec::new().types(["order.*"]);
    let topology = Topology::new().topic("t", TopicSpec::new().subscription("s", spec));
    let bus = s.bus(BusOptions::topology(topology));
    s.push(Envelope::new("refund.a", "").id("1"), 1);
    let mut sub = bus.subscribe(Source::subscription("t", "s")).open().await.unwrap();
    assert!(timeout(Duration::from_millis(500), sub.next()).await.is_err());
    assert_eq!(s.settled(), [], "it was given back at once, to be refused at once");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(s.settled(), [("1".to_string(), Settlement::Release)]);
}

#[tokio::test(start_paused = true)]
async fn max_deliveries_on_each_path() {
    let s = scripted(|_| {});
    let (_bus, mut sub) = open(&s, "q", 10).await;
    for (i, attempt) in [3, 3, 3, 4, 2].into_iter().enumerate() {
        s.push(message(&i.to_string(), "k"), attempt);
    }
    next(&mut sub).await.release().await.unwrap();
    next(&mut sub).await.retry_after(Duration::from_secs(1)).await.unwrap();
    drop(next(&mut sub).await);
    // The one at attempt 4 is never handed out.
    let (last, d) = id(&mut sub).await;
    assert_eq!(last, "4");
    d.release().await.unwrap();
    sub.close().await.unwrap();
    let settled = s.settled();
    let dead = settled.iter().filter(
        |(_, how)| matches!(how, Settlement::DeadLetter { reason, .. } if &**reason == "max-deliveries-exceeded"),
    );
    let mut dead: Vec<&str> = dead.map(|(id, _)| id.as_str()).collect();
    dead.sort();
    assert_eq!(dead, ["0", "1", "2", "3"]);
    assert!(settled.contains(&("4".into(), Settlement::Release)));
}

#[tokio::test(start_paused = true)]
async fn a_failed_settlement_gives_the_delivery_back_and_a_passing_fault_is_retried() {
    let s = scripted(|s| {
        s.settles.get_mut().unwrap().extend([
            Err(Error::new(ErrorKind::PermissionDenied, "no")),
            Err(Error::new(ErrorKind::Throttled, "slow down").safe()),
            Ok(()),
        ]);
    });
    s.push(message("1", "k"), 1);
    let (_bus, mut sub) = open(&s, "q", 1).await;
    let d = next(&mut sub).await;
    let (e, back) = d.dead_letter("bad", "x").await.unwrap_err().into_parts();
    assert_eq!(e.kind(), ErrorKind::PermissionDenied);
    back.unwrap().ack().await.unwrap();
    assert_eq!(s.settled(), [("1".into(), Settlement::Ack)]);
}

#[tokio::test(start_paused = true)]
async fn a_settlement_goes_on_when_its_future_is_dropped_and_a_failed_one_releases() {
    let s = scripted(|s| s.settles.get_mut().unwrap().push_back(Err(Error::new(ErrorKind::PermissionDenied, "no"))));
    s.push(message("1", "k"), 1);
    let (_bus, mut sub) = open(&s, "q", 1).await;
    let settling = next(&mut sub).await.dead_letter("bad", "x");
    assert!(timeout(Duration::ZERO, settling).await.is_err(), "one poll does not finish it");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(s.settled(), [("1".into(), Settlement::Release)], "held by nobody, it must not stay unsettled");
    s.push(message("2", "k"), 1);
    next(&mut sub).await.ack().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn passing_faults_stay_inside_terminal_ones_come_once() {
    let s = scripted(|_| {});
    for kind in [ErrorKind::Unavailable, ErrorKind::AlreadyExists, ErrorKind::InvalidArgument, ErrorKind::Unexpected] {
        s.fail(Error::new(kind, "gone"));
    }
    s.push(message("1", "k"), 1);
    s.fail(Error::new(ErrorKind::NotFound, "deleted"));
    let bus = bus(&s);
    let builder = bus.subscribe(Source::queue("q")).prefetch(10);
    let mut sub = builder.give_up_after(Duration::ZERO).open().await.unwrap();
    next(&mut sub).await.ack().await.unwrap();
    assert_eq!(sub.next().await.unwrap().unwrap_err().kind(), ErrorKind::NotFound);
    assert!(sub.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn closing_gives_back_what_was_not_handed_out_and_ends_a_waiting_next() {
    let s = scripted(|_| {});
    (0..3).for_each(|i| s.push(message(&i.to_string(), "k"), 1));
    let (bus, mut sub) = open(&s, "q", 10).await;
    let first = next(&mut sub).await;
    sub.stop().await.unwrap();
    first.ack().await.unwrap();
    sub.close().await.unwrap();
    sub.close().await.unwrap();
    let mut settled = s.settled();
    settled.sort_by(|a, b| a.0.cmp(&b.0));
    let back = |id: &str| (id.to_string(), Settlement::GiveBack);
    assert_eq!(settled, [("0".into(), Settlement::Ack), back("1"), back("2")]);
    assert!(sub.next().await.is_none());

    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    let waiting = tokio::spawn(async move { sub.next().await });
    tokio::task::yield_now().await;
    bus.close().await.unwrap();
    bus.close().await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_subscription_lets_what_is_in_hand_be_settled() {
    let s = scripted(|_| {});
    s.push(message("1", "k"), 1);
    let (_bus, mut sub) = open(&s, "q", 10).await;
    let d = next(&mut sub).await;
    drop(sub);
    tokio::time::sleep(Duration::from_secs(1)).await;
    d.ack().await.unwrap();
    assert_eq!(s.settled(), [("1".into(), Settlement::Ack)]);
}

#[tokio::test(start_paused = true)]
async fn as_a_stream_it_yields_the_same() {
    use futures_core::Stream;
    let s = scripted(|_| {});
    let (_bus, mut sub) = open(&s, "q", 10).await;
    let mut stream = std::pin::pin!(&mut sub);
    let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(stream.as_mut().poll_next(cx).is_pending()));
    assert!(poll.await);
    s.push(message("1", "k"), 1);
    let item = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await;
    item.unwrap().unwrap().ack().await.unwrap();
}

/// As `select!` leaves it: polled once, then not again.
#[tokio::test(start_paused = true)]
async fn a_stream_that_nobody_polls_can_be_closed() {
    use futures_core::Stream;
    for bus_first in [false, true] {
        let s = scripted(|_| {});
        let (bus, mut sub) = open(&s, "q", 10).await;
        let mut stream = std::pin::pin!(&mut sub);
        let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(stream.as_mut().poll_next(cx).is_pending()));
        assert!(poll.await);
        let closing = async {
            if bus_first {
                bus.close().await.unwrap();
            } else {
                stream.stop().await.unwrap();
                stream.close().await.unwrap();
            }
        };
        timeout(Duration::from_secs(60), closing).await.expect("closed in time");
        let last = std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await;
        assert_eq!(last.is_some_and(|last| last.is_err_and(|e| e.kind() == ErrorKind::Closed)), bus_first);
    }
}

/// Polled on a task of its own, which closing must wake.
#[tokio::test(start_paused = true)]
async fn closing_the_bus_ends_a_waiting_stream() {
    use futures_core::Stream;
    let s = scripted(|_| {});
    let (bus, sub) = open(&s, "q", 10).await;
    let waiting = tokio::spawn(async move {
        let mut stream = std::pin::pin!(sub);
        std::future::poll_fn(|cx| stream.as_mut().poll_next(cx)).await
    });
    tokio::task::yield_now().await;
    bus.close().await.unwrap();
    let last = timeout(Duration::from_secs(60), waiting).await.expect("woken in time").unwrap();
    assert_eq!(last.unwrap().unwrap_err().kind(), ErrorKind::Closed);
}

#[tokio::test(start_paused = true)]
async fn expired_messages_are_acked_and_unwanted_ones_dead_lettered() {
    let s = scripted(|s| s.capabilities.get_mut().unwrap().topics = true);
    let topology = Topology::new()
        .topic("t", TopicSpec::new().subscription("s", SubscriptionSpec::new().types(["order.*"])))
        .queue("q", QueueSpec::new().dead_letter_expired(true));
    let bus = s.bus(BusOptions::topology(topology));
    let past = bus.now() - Duration::from_secs(1);
    s.push(Envelope::new("order.a", "").id("late").expires_at(past), 1);
    s.push(Envelope::new("orders.a", "").id("other"), 1);
    s.push(Envelope::new("order.a", "").id("good"), 1);
    let mut sub = bus.subscribe(Source::subscription("t", "s")).open().await.unwrap();
    assert_eq!(id(&mut sub).await.0, "good");
    drop(sub);
    s.push(Envelope::new("a", "").id("buried").expires_at(past), 1);
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    assert!(timeout(SHORT, sub.next()).await.is_err());
    let settled = s.settled();
    assert!(settled.contains(&("late".into(), Settlement::Ack)), "{settled:?}");
    let other = settled.iter().find(|(id, _)| id == "other").unwrap();
    let Settlement::DeadLetter { reason, detail } = &other.1 else { panic!("not a dead letter: {other:?}") };
    assert_eq!((&**reason, &**detail), ("unwanted-type", "type orders.a, wanted: order.*"));
    let buried = settled.iter().find(|(id, _)| id == "buried").unwrap();
    assert!(matches!(&buried.1, Settlement::DeadLetter { reason, .. } if &**reason == "expired"));
}

#[tokio::test(start_paused = true)]
async fn reason_and_detail_are_cut_to_what_headers_carry() {
    let s = scripted(|_| {});
    s.push(message("1", "k"), 1);
    let (_bus, mut sub) = open(&s, "q", 1).await;
    next(&mut sub).await.dead_letter("r".repeat(1000), "é".repeat(100_000)).await.unwrap();
    let Settlement::DeadLetter { reason, detail } = s.settled()[0].1.clone() else { panic!("not a dead letter") };
    assert_eq!((reason.len(), detail.len()), (128, 2048));
}

#[tokio::test(start_paused = true)]
async fn what_is_released_in_place_after_a_stop_does_not_keep_the_consumer_alive() {
    for retry in [Duration::ZERO, Duration::from_secs(5)] {
        let s = scripted(|_| {});
        s.push(message("1", "a"), 1);
        let (_bus, mut sub) = open(&s, "keyed", 10).await;
        let held = next(&mut sub).await;
        drop(sub);
        tokio::time::sleep(Duration::from_secs(1)).await;
        held.retry_after(retry).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(s.0.settlers_closed.load(Ordering::SeqCst), 1, "after {retry:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_receive_that_fails_is_tried_again_after_a_pause_and_counted() {
    let recorder = Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let s = scripted(|_| {});
    let full =
        Error::new(ErrorKind::Throttled, "120,000 messages are in flight").with_context("quota", "in-flight").safe();
    for e in [full.clone(), full.clone(), full, Error::new(ErrorKind::Unavailable, "gone for a while")] {
        s.fail(e);
    }
    s.push(message("1", "k"), 1);
    let (_bus, mut sub) = open(&s, "q", 3).await;
    let began = Instant::now();
    next(&mut sub).await.ack().await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(25 + 50 + 100 + 200), "each pause is longer");
    let mut told = recorder.nonzero("backend=script,source=queue:q");
    told.retain(|name, _| name.starts_with("polybus_receive"));
    let wanted = [
        ("polybus_receive_failed_total{reason=Unavailable}", 1),
        ("polybus_receive_failed_total{reason=in-flight}", 3),
        ("polybus_received_total", 1),
    ];
    assert_eq!(told, wanted.map(|(name, n)| (name.to_owned(), n)).into());
}

/// What fails the subscription's own list, by what the topology says of it.
async fn unwanted(how: UnwantedPolicy, dead_letters: bool) -> (Vec<String>, Vec<(String, Settlement)>) {
    let s = scripted(|s| {
        let can = s.capabilities.get_mut().unwrap();
        (can.topics, can.dead_letters) = (true, dead_letters);
    });
    let spec = SubscriptionSpec::new().types(["order.*"]).unwanted(how);
    let topology = Topology::new().topic("t", TopicSpec::new().subscription("s", spec));
    let bus = s.bus(BusOptions::topology(topology));
    for (id, event_type) in
        [("other", "refund.a"), ("foreign", Envelope::FOREIGN_TYPE), ("other", "refund.a"), ("good", "order.a")]
    {
        s.push(Envelope::new(event_type, "").id(id), 1);
    }
    let mut sub = bus.subscribe(Source::subscription("t", "s")).open().await.unwrap();
    let mut seen = Vec::new();
    while let Ok(Some(d)) = timeout(SHORT, sub.next()).await {
        let d = d.unwrap();
        seen.push(d.envelope().id.to_string());
        d.ack().await.unwrap();
    }
    (seen, s.settled())
}

#[tokio::test(start_paused = true)]
async fn what_no_filter_wants_goes_where_the_topology_says_and_foreign_messages_are_handed_out() {
    let recorder = Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let (seen, settled) = unwanted(UnwantedPolicy::DeadLetter, true).await;
    assert_eq!(seen, ["foreign", "good"]);
    assert_eq!(settled.iter().filter(|(_, how)| matches!(how, Settlement::DeadLetter { .. })).count(), 2);
    let (seen, settled) = unwanted(UnwantedPolicy::Handle, true).await;
    assert_eq!((seen.len(), settled.len()), (4, 4));
    let (seen, settled) = unwanted(UnwantedPolicy::Discard, true).await;
    assert_eq!(seen, ["foreign", "good"]);
    assert!(settled.len() == 4 && settled.iter().all(|(_, how)| *how == Settlement::Ack), "{settled:?}");
    // Where nothing can be set aside, the handler must see it.
    assert_eq!(unwanted(UnwantedPolicy::DeadLetter, false).await.0.len(), 4);
    let mut told = recorder.nonzero("backend=script,source=subscription:t/s");
    told.retain(|name, _| name.starts_with("polybus_unwanted"));
    let wanted = [("dead-letter", 2), ("discard", 2), ("handle", 4)];
    assert_eq!(told, wanted.map(|(b, n)| (format!("polybus_unwanted_total{{policy={b}}}"), n)).into());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_ends_the_subscription_only_once_it_has_lasted() {
    for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::Unauthenticated] {
        let recorder = Recorder::default();
        let _installed = metrics::set_default_local_recorder(&recorder);
        let s = scripted(|_| {});
        let (_bus, mut sub) = open(&s, "q", 10).await;
        // Ten in a row, and passing errors between them, are lived through.
        for _ in 0..10 {
            s.fail(Error::new(kind, "no"));
            s.fail(Error::new(ErrorKind::Unavailable, "down"));
        }
        s.push(message("1", "k"), 1);
        next(&mut sub).await.ack().await.unwrap();
        let began = Instant::now();
        (0..1000).for_each(|_| s.fail(Error::new(kind, "no")));
        let e = sub.next().await.unwrap().unwrap_err();
        assert_eq!((e.kind(), e.context("refused_for")), (kind, Some("30s")), "{e:?}");
        let lasted = began.elapsed();
        assert!((Duration::from_secs(30)..Duration::from_secs(31)).contains(&lasted), "{kind} after {lasted:?}");
        assert!(sub.next().await.is_none());
        let told = recorder.nonzero("backend=script,source=queue:q");
        let counted: i64 = told.iter().filter(|(n, _)| n.contains("receive_failed")).map(|(_, n)| *n).sum();
        assert!(counted > 20, "{told:?}");
    }
}

/// A receive may wait for a broker that is away, and so was never let in.
#[tokio::test(start_paused = true)]
async fn a_receive_that_waits_long_and_fails_is_no_success_between_refusals() {
    let recorder = Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let refused = || recorder.nonzero("backend=script,source=queue:q").get("polybus_consumers_refused").copied();
    let s = scripted(|_| {});
    let (_bus, mut sub) = open(&s, "q", 10).await;
    (0..12).for_each(|_| s.fail(Error::new(ErrorKind::NotFound, "no")));
    assert!(timeout(Duration::from_secs(19), sub.next()).await.is_err());
    assert_eq!(refused(), Some(1));
    assert!(timeout(Duration::from_secs(20), sub.next()).await.is_err());
    assert_eq!(refused(), None, "it has waited since, and is not refused");
    s.fail(Error::new(ErrorKind::Unavailable, "down"));
    (0..1000).for_each(|_| s.fail(Error::new(ErrorKind::NotFound, "no")));
    let began = Instant::now();
    let e = sub.next().await.unwrap().unwrap_err();
    assert_eq!((e.kind(), e.context("refused_for")), (ErrorKind::NotFound, Some("30s")), "{e:?}");
    assert!(began.elapsed() < Duration::from_secs(25), "the time began anew: {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn two_hundred_throttled_answers_and_a_day_of_refusals_are_lived_through() {
    let s = scripted(|_| {});
    let bus = bus(&s);
    let builder = bus.subscribe(Source::queue("q"));
    let mut sub = builder.give_up_after(Duration::MAX).open().await.unwrap();
    (0..200).for_each(|_| s.fail(Error::new(ErrorKind::Throttled, "slow down").safe()));
    s.push(message("1", "k"), 1);
    let d = timeout(Duration::from_secs(1000), sub.next()).await.unwrap().unwrap().unwrap();
    d.ack().await.unwrap();
    (0..60_000).for_each(|_| s.fail(Error::new(ErrorKind::PermissionDenied, "no")));
    s.push(message("2", "k"), 1);
    sub.next().await.unwrap().unwrap().ack().await.unwrap();
}

/// As `select!` leaves it: a future of `next` that was polled once, is kept, and is not polled again.
#[tokio::test(start_paused = true)]
async fn a_next_that_is_kept_and_not_polled_does_not_keep_the_bus_from_closing() {
    let s = scripted(|_| {});
    let (bus, mut sub) = open(&s, "q", 10).await;
    let mut kept = Box::pin(sub.next());
    let pending = std::future::poll_fn(|cx| std::task::Poll::Ready(kept.as_mut().poll(cx).is_pending()));
    assert!(pending.await);
    timeout(Duration::from_secs(60), bus.close()).await.expect("closed in time").unwrap();
    let last = timeout(Duration::from_secs(60), kept).await.expect("woken in time");
    assert_eq!(last.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert!(sub.next().await.is_none());
}
