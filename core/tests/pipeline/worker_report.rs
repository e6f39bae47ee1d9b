//! What the report and the dead letters tell is what the broker did; and a worker takes no more than its handlers are free for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_core::{driver::*, message::*, topology::*, worker::*, *};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use crate::{
    consume::{SHORT, bus, id, locked, next, open},
    recorder::Recorder,
    script::{Scripted, message, scripted},
};

fn refused() -> Error {
    Error::new(ErrorKind::PermissionDenied, "no right to write there")
}

fn gone() -> Error {
    Error::new(ErrorKind::LockLost, "gone")
}

/// One message whose handler answers so, and whose settlement the broker answers so: the report, and the metrics of settlements.
async fn one(answer: Option<Error>, ordered: bool, result: fn() -> Result<(), HandlerError>) -> (WorkerReport, String) {
    let recorder = Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let s = scripted(|s| s.settles.get_mut().unwrap().extend(answer.map(Err)));
    s.push(message("1", "k"), 1);
    let queue = if ordered { "keyed" } else { "q" };
    let worker = bus(&s).worker(Source::queue(queue)).concurrency(1).retry(RetryPolicy::fixed(Duration::from_secs(99)));
    let stop = tokio::time::sleep(Duration::from_secs(20));
    let report = worker.with_graceful_shutdown(stop).run(move |_, _| async move { result() }).await.unwrap();
    let mut told = recorder.told(&format!("backend=script,source=queue:{queue}"));
    told.retain(|name, _| name.contains("settled") || name.contains("dead_lettered"));
    (report, told.into_keys().collect::<Vec<_>>().join(" "))
}

fn report(f: impl FnOnce(&mut WorkerReport)) -> WorkerReport {
    let mut report = WorkerReport::default();
    f(&mut report);
    report
}

#[tokio::test(start_paused = true)]
async fn a_report_counts_what_the_broker_answered() {
    let bad: fn() -> Result<(), HandlerError> = || Err(HandlerError::permanent("bad"));
    let again: fn() -> Result<(), HandlerError> = || Err("again".into());
    let ok: fn() -> Result<(), HandlerError> = || Ok(());
    let cases: [(&str, Option<Error>, _, WorkerReport, &str); 9] = [
        ("acked", None, ok, report(|r| r.succeeded = 1), "settlement=ack"),
        ("ack refused", Some(refused()), ok, report(|r| r.unsettled = 1), "PermissionDenied"),
        ("ack too late", Some(gone()), ok, report(|r| r.lock_lost = 1), "LockLost"),
        ("dead-lettered", None, bad, report(|r| r.dead_lettered = 1), "dead_lettered_total{reason=permanent}"),
        ("dead letter refused", Some(refused()), bad, report(|r| r.unsettled = 1), "PermissionDenied"),
        ("dead letter too late", Some(gone()), bad, report(|r| r.lock_lost = 1), "LockLost"),
        ("retried", None, again, report(|r| r.retried = 1), "settlement=retry"),
        ("retry refused", Some(refused()), again, report(|r| r.unsettled = 1), "PermissionDenied"),
        ("retry too late", Some(gone()), again, report(|r| r.lock_lost = 1), "LockLost"),
    ];
    for (what, answer, result, wanted, told) in cases {
        let refused = answer.is_some();
        let (report, metrics) = one(answer, false, result).await;
        assert_eq!((report, report.handled()), (wanted, 1), "{what}");
        assert!(metrics.contains(told), "{what}: {metrics}");
        assert!(!(refused && metrics.contains("dead_lettered")), "{what}: {metrics}");
    }
    let (held, metrics) = one(None, true, again).await;
    assert_eq!(held, report(|r| r.retried = 1));
    assert!(metrics.contains("settlement=held_in_place") && !metrics.contains("settlement=retry"), "{metrics}");
}

/// Handlers that take a while each; never more than they are taken from the source.
async fn most_taken(counts: bool) -> usize {
    let s = scripted(|s| s.capabilities.get_mut().unwrap().receive_counts = counts);
    (0..60).for_each(|i| s.push(message(&i.to_string(), "k"), 1));
    let (done, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let worker = bus(&s).worker(Source::queue("q")).concurrency(3);
    let script = s.clone();
    let (counted, reached) = (done.clone(), most.clone());
    let handler = move |_: HandlerContext, msg: Envelope| {
        let (s, done, most) = (script.clone(), counted.clone(), reached.clone());
        async move {
            let n: u64 = msg.id.parse().unwrap();
            tokio::time::sleep(Duration::from_millis(100 + n % 7 * 30)).await;
            let taken = 60 - s.0.incoming.lock().unwrap().len();
            most.fetch_max(taken - done.fetch_add(1, Ordering::SeqCst), Ordering::SeqCst);
            Ok(())
        }
    };
    let report = worker.with_graceful_shutdown(tokio::time::sleep(Duration::from_secs(60))).run(handler).await.unwrap();
    assert_eq!(report.succeeded, 60);
    most.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn where_hand_overs_count_a_worker_takes_only_what_its_handlers_are_free_for() {
    assert_eq!(most_taken(true).await, 3);
    assert_eq!(most_taken(false).await, 6);
}

fn detail(s: &Scripted, of: &str) -> String {
    let settled = s.settled();
    let how = settled.iter().find(|(id, how)| id == of && matches!(how, Settlement::DeadLetter { .. }));
    let Some((_, Settlement::DeadLetter { detail, .. })) = how else { panic!("{of} is no dead letter: {settled:?}") };
    detail.to_string()
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_says_how_often_it_was_handled_here() {
    let s = scripted(|_| {});
    s.push(message("unseen", "k"), 6);
    let (_bus, mut sub) = open(&s, "q", 1).await;
    assert!(timeout(SHORT, sub.next()).await.is_err());
    assert_eq!(detail(&s, "unseen"), "delivered 5 times, allowed 3; handled 0 times by this process");
    // Handed out at attempt 1 and 3; in between it came back from elsewhere.
    s.push(message("seen", "k"), 1);
    next(&mut sub).await.release().await.unwrap();
    s.push(message("seen", "k"), 3);
    next(&mut sub).await.release().await.unwrap();
    assert_eq!(detail(&s, "seen"), "not acknowledged at attempt 3 of 3 (attempt 3, handled 2 times by this process)");
    for attempt in 1..=3 {
        s.push(message("all", "k"), attempt);
        next(&mut sub).await.release().await.unwrap();
    }
    assert_eq!(detail(&s, "all"), "not acknowledged at attempt 3 of 3");
}

#[tokio::test(start_paused = true)]
async fn what_orders_at_the_broker_orders_here() {
    let s = scripted(|_| {});
    for (id, group) in [("a1", Some("a")), ("a2", Some("a")), ("b1", Some("b")), ("none1", None), ("none2", None)] {
        let mut received = ReceivedMessage::new(DriverToken::new(()), Envelope::new("t", "").id(id), 1);
        received.group = group.map(Into::into);
        s.push_received(received);
    }
    let (_bus, mut sub) = open(&s, "keyed", 10).await;
    let mut held = Vec::new();
    for wanted in ["a1", "b1", "none1"] {
        let (id, delivery) = id(&mut sub).await;
        assert_eq!(id, wanted);
        held.push(delivery);
    }
    assert!(timeout(SHORT, sub.next()).await.is_err(), "two of one group at once");
    held.remove(0).ack().await.unwrap();
    let (second, a2) = id(&mut sub).await;
    assert_eq!(second, "a2");
    held.remove(1).ack().await.unwrap();
    let (last, none2) = id(&mut sub).await;
    assert_eq!(last, "none2");
    a2.ack().await.unwrap();
    none2.ack().await.unwrap();
}

/// Ten locks in one call that is never answered: once, or as long as one of them is in it.
#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_never_answered_loses_at_most_its_own_lock() {
    for poisoned in [false, true] {
        let s = scripted(|s| {
            s.capabilities.get_mut().unwrap().locks = true;
            *s.extend_hangs.get_mut() = usize::from(!poisoned);
        });
        for i in 0..10 {
            let mut received = locked(&i.to_string(), Duration::from_secs(30));
            received.token = if poisoned && i == 4 { DriverToken::new("hangs") } else { DriverToken::new(()) };
            s.push_received(received);
        }
        let (_bus, mut sub) = open(&s, "q", 10).await;
        let mut held = Vec::new();
        for _ in 0..10 {
            held.push(next(&mut sub).await);
        }
        tokio::time::sleep(Duration::from_secs(200)).await;
        let lost: Vec<_> = held.iter().filter(|d| !d.is_held()).map(|d| d.envelope().id.to_string()).collect();
        assert_eq!(lost, if poisoned { vec!["4"] } else { vec![] });
    }
}

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

/// A broker that is slow, and answers: what is under way is finished.
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

/// As with a connection on which nothing moves any more: neither a sender nor the driver comes to an end.
#[tokio::test(start_paused = true)]
async fn closing_leaves_a_driver_to_itself_that_does_not_come_to_an_end() {
    let s = scripted(|s| s.close_hangs = true);
    let bus = bus(&s);
    for queue in ["q", "keyed"] {
        bus.publish(&Address::queue(queue), Envelope::new("a", "").key("k")).await.unwrap();
    }
    let began = Instant::now();
    timeout(Duration::from_secs(60), bus.close()).await.expect("closed in time").unwrap();
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!(s.0.closed.load(Ordering::SeqCst), 1);
}
