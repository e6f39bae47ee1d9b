//! Reports, metrics and dead letters of a worker say what the broker answered; and how many messages a worker fetches.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_core::{
    Envelope, Error, ErrorKind, HandlerContext, HandlerError, RetryPolicy, Source, Subscription, driver::Settlement,
    worker::WorkerReport,
};
use tokio::time::timeout;

use crate::{
    consume::{SHORT, bus, next, open},
    recorder::Recorder,
    script::{Scripted, message, scripted},
};

fn refused() -> Error {
    Error::new(ErrorKind::PermissionDenied, "no right to write there")
}

fn gone() -> Error {
    Error::new(ErrorKind::LockLost, "gone")
}

/// Runs a worker on one message. The handler answers `result`, and the broker answers its settlement with `answer`.
/// Returns the report and the names of the settlement metrics.
async fn run_one(
    answer: Option<Error>,
    ordered: bool,
    result: fn() -> Result<(), HandlerError>,
) -> (WorkerReport, String) {
    let recorder = Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let s = scripted(|s| s.settles.get_mut().unwrap().extend(answer.map(Err)));
    s.push(message("1", "k"), 1);
    let queue = if ordered { "keyed" } else { "q" };
    let worker = bus(&s).worker(Source::queue(queue)).concurrency(1).retry(RetryPolicy::fixed(Duration::from_secs(99)));
    let stop = tokio::time::sleep(Duration::from_secs(20));
    let report = worker.with_graceful_shutdown(stop).run(move |_, _| async move { result() }).await.unwrap();
    (report, settled_metrics(&recorder, queue))
}

/// The names of the metrics of settlements.
fn settled_metrics(recorder: &Recorder, queue: &str) -> String {
    let mut metrics = recorder.nonzero(&format!("backend=script,source=queue:{queue}"));
    let names = ["settled", "retried", "dead_lettered"];
    metrics.retain(|metric, _| names.iter().any(|name| metric.contains(name)));
    metrics.into_keys().collect::<Vec<_>>().join(" ")
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
    for (what, answer, result, wanted, metric) in cases {
        let refused = answer.is_some();
        let (report, metrics) = run_one(answer, false, result).await;
        assert_eq!((report, report.handled()), (wanted, 1), "{what}");
        assert!(metrics.contains(metric), "{what}: {metrics}");
        assert!(!(refused && metrics.contains("dead_lettered")), "{what}: {metrics}");
    }
    let (in_place, metrics) = run_one(None, true, again).await;
    assert_eq!(in_place, report(|r| r.retried = 1));
    assert!(metrics.contains("settlement=held_in_place") && !metrics.contains("settlement=retry"), "{metrics}");
}

/// How many messages were fetched and not handled at most, with three handlers that take a while each.
async fn most_fetched(counts: bool) -> usize {
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
async fn where_hand_overs_count_a_worker_fetches_only_what_its_handlers_are_free_for() {
    assert_eq!(most_fetched(true).await, 3);
    assert_eq!(most_fetched(false).await, 6);
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

/// The detail of the dead letter that this message becomes at its third and last attempt, after what was done before.
async fn released_at_the_last(s: &Scripted, sub: &mut Subscription, id: &str) -> String {
    // What was dropped before is released by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    s.push(message(id, "k"), 3);
    next(sub).await.release().await.unwrap();
    detail(s, id)
}

#[tokio::test(start_paused = true)]
async fn one_handling_is_counted_once_whatever_becomes_of_its_settlements() {
    let s = scripted(|_| {});
    let (bus, mut sub) = open(&s, "q", 10).await;
    let twice = "not acknowledged at attempt 3 of 3 (attempt 3, handled 2 times by this process)";
    let once = "not acknowledged at attempt 3 of 3 (attempt 3, handled once by this process)";
    let answer = |e: Error| s.0.settles.lock().unwrap().push_back(Err(e));

    // Released in vain, then released by its drop.
    answer(refused());
    s.push(message("refused", "k"), 1);
    drop(next(&mut sub).await.release().await.unwrap_err());
    assert_eq!(released_at_the_last(&s, &mut sub, "refused").await, twice);
    // Released, and the broker says that the lock was lost.
    answer(gone());
    s.push(message("lost", "k"), 1);
    drop(next(&mut sub).await.release().await.unwrap_err());
    assert_eq!(released_at_the_last(&s, &mut sub, "lost").await, twice);
    // Released when it was no longer held.
    s.push(message("stale", "k"), 1);
    let stale = next(&mut sub).await;
    s.0.stale.store(true, Ordering::SeqCst);
    drop(stale.release().await.unwrap_err());
    s.0.stale.store(false, Ordering::SeqCst);
    assert_eq!(released_at_the_last(&s, &mut sub, "stale").await, twice);
    // Dead-lettered in vain, while nobody waits for the answer.
    answer(refused());
    s.push(message("unread", "k"), 1);
    let burying = next(&mut sub).await.dead_letter("bad", "x");
    assert!(timeout(Duration::ZERO, burying).await.is_err(), "one poll does not finish it");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(released_at_the_last(&s, &mut sub, "unread").await, twice);
    // Given back from the buffer in vain, without being handed out.
    s.push(message("first", "k"), 1);
    s.push(message("buffered", "k"), 1);
    next(&mut sub).await.ack().await.unwrap();
    answer(gone());
    sub.close().await.unwrap();
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(10).open().await.unwrap();
    assert_eq!(released_at_the_last(&s, &mut sub, "buffered").await, once);
    // Handled three times in place.
    let mut keyed = bus.subscribe(Source::queue("keyed")).open().await.unwrap();
    s.push(message("in place", "k"), 1);
    next(&mut keyed).await.release().await.unwrap();
    next(&mut keyed).await.release().await.unwrap();
    next(&mut keyed).await.release().await.unwrap();
    assert_eq!(detail(&s, "in place"), "not acknowledged at attempt 3 of 3");
}

#[tokio::test(start_paused = true)]
async fn the_dead_letter_of_a_dropped_delivery_says_how_often_it_was_handled() {
    let s = scripted(|_| {});
    s.push(message("1", "k"), 3);
    let (_bus, mut sub) = open(&s, "q", 10).await;
    drop(next(&mut sub).await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(detail(&s, "1"), "not acknowledged at attempt 3 of 3 (attempt 3, handled once by this process)");
    // One that could not be dead-lettered was handled all the same, and is not handed out again.
    s.0.settles.lock().unwrap().push_back(Err(refused()));
    s.push(message("2", "k"), 3);
    drop(next(&mut sub).await);
    tokio::time::sleep(Duration::from_secs(6)).await;
    s.push(message("2", "k"), 4);
    assert!(timeout(SHORT, sub.next()).await.is_err());
    assert_eq!(detail(&s, "2"), "delivered 3 times, allowed 3; handled once by this process");
}

/// The handler fails while the worker shuts down.
#[tokio::test(start_paused = true)]
async fn a_worker_that_shuts_down_reports_no_retry_as_held_in_place() {
    let recorder = Recorder::default();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let s = scripted(|_| {});
    s.push(message("1", "k"), 1);
    let worker = bus(&s).worker(Source::queue("keyed")).retry(RetryPolicy::fixed(Duration::from_secs(9)));
    let report = worker
        .with_graceful_shutdown(tokio::time::sleep(Duration::from_secs(1)))
        .run(|_: HandlerContext, _: Envelope| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Err("again".into())
        })
        .await
        .unwrap();
    assert_eq!(report, self::report(|r| r.retried = 1));
    let told = settled_metrics(&recorder, "keyed");
    assert_eq!(told, "polybus_settled_total{settlement=give_back,outcome=ok}");
}
