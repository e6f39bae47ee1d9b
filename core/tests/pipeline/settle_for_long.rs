//! Settlements that the broker refuses for long, that core refuses, and that run on a runtime which ends.

use std::{sync::atomic::Ordering, time::Duration};

use polybus_core::{driver::*, topology::*, *};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};

use crate::script::{message, scripted};

fn cut() -> Error {
    Error::new(ErrorKind::Unavailable, "cut").may_duplicate()
}

/// A worker's retry whose settlement is answered by MayDuplicate each time.
#[tokio::test(start_paused = true)]
async fn a_drain_ends_while_the_broker_refuses() {
    let s = scripted(|s| s.settles.get_mut().unwrap().extend((0..100_000).map(|_| Err(cut()))));
    s.push(message("1", "k"), 1);
    let bus = s.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let worker = bus
        .worker(Source::queue("q"))
        .drain_timeout(Duration::from_secs(2))
        .retry(RetryPolicy::fixed(Duration::from_secs(9)))
        .with_graceful_shutdown(tokio::time::sleep(Duration::from_secs(1)));
    let ran =
        timeout(Duration::from_secs(600), worker.run(|_: HandlerContext, _: Envelope| async { Err("again".into()) }))
            .await;
    assert!(ran.is_ok());
}

/// Closing the bus beside it.
#[tokio::test(start_paused = true)]
async fn a_bus_close_ends_while_the_broker_refuses() {
    let s = scripted(|s| s.settles.get_mut().unwrap().extend((0..100_000).map(|_| Err(cut()))));
    s.push(message("1", "k"), 1);
    let bus = s.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let worker = bus.worker(Source::queue("q")).retry(RetryPolicy::fixed(Duration::from_secs(9)));
    tokio::spawn(worker.run(|_: HandlerContext, _: Envelope| async { Err("again".into()) }));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let closed = timeout(Duration::from_secs(600), bus.close()).await;
    assert!(closed.is_ok());
}

/// The lock ends in the pause between two attempts.
#[tokio::test(start_paused = true)]
async fn a_lock_that_ends_in_the_pause_is_lost() {
    let s = scripted(|s| s.settles.get_mut().unwrap().extend((0..100_000).map(|_| Err(cut()))));
    s.push(message("1", "k"), 1);
    let bus = s.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let worker = bus
        .worker(Source::queue("q"))
        .retry(RetryPolicy::fixed(Duration::from_secs(9)))
        .with_graceful_shutdown(tokio::time::sleep(Duration::from_secs(9)));
    let lost = s.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        lost.0.stale.store(true, Ordering::SeqCst);
    });
    let report = worker.run(|_: HandlerContext, _: Envelope| async { Err("again".into()) }).await.unwrap();
    assert_eq!(report.lock_lost, 1);
}

/// A settlement that is refused before the driver sees it.
#[tokio::test(start_paused = true)]
async fn what_core_refuses_is_released() {
    for ordered in [false, true] {
        let s = scripted(|s| s.capabilities.get_mut().unwrap().dead_letters = false);
        s.push(message("1", "k"), 1);
        s.push(message("2", "k"), 1);
        let queue = if ordered { QueueSpec::new().ordered(true) } else { QueueSpec::new() };
        let bus = s.bus(BusOptions::topology(Topology::new().queue("q", queue)));
        let handled = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = handled.clone();
        let worker = bus
            .worker(Source::queue("q"))
            .concurrency(1)
            .with_graceful_shutdown(tokio::time::sleep(Duration::from_secs(60)));
        worker
            .run(move |cx: HandlerContext, m: Envelope| {
                seen.lock().unwrap().push((m.id.to_string(), cx.attempt()));
                async move { if &*m.id == "1" && cx.attempt() == 1 { Err(HandlerError::permanent("bad")) } else { Ok(()) } }
            })
            .await
            .unwrap();
        let order = handled.lock().unwrap().clone();
        let names: Vec<(&str, u32)> = order.iter().map(|(id, attempt)| (id.as_str(), *attempt)).collect();
        // Held in place ahead of its key where core keeps the order, else released to the broker.
        let wanted: &[(&str, u32)] = if ordered { &[("1", 1), ("1", 2), ("2", 1)] } else { &[("1", 1), ("2", 1)] };
        assert_eq!(names, wanted, "ordered: {ordered}");
        let released = s.settled().contains(&("1".to_owned(), Settlement::Release));
        assert_eq!(released, !ordered, "{:?}", s.settled());
    }
}

/// A settlement on a runtime that ends takes neither others nor the close along.
#[test]
fn a_runtime_that_ends_holds_up_nobody() {
    let main = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let s = scripted(|s| s.settle_gate = Some(Semaphore::new(0)));
    s.push(message("1", "k"), 1);
    s.push(message("2", "k"), 1);
    let bus = s.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let (mut sub, one, two) = main.block_on(async {
        let mut sub = bus.subscribe(Source::queue("q")).prefetch(10).open().await.unwrap();
        let one = sub.next().await.unwrap().unwrap();
        let two = sub.next().await.unwrap().unwrap();
        (sub, one, two)
    });
    other.block_on(async {
        assert!(timeout(Duration::from_millis(50), one.ack()).await.is_err());
    });
    let acking = main.spawn(async move { two.ack().await });
    std::thread::sleep(Duration::from_millis(50));
    other.shutdown_timeout(Duration::from_secs(1));
    s.0.settle_gate.as_ref().unwrap().add_permits(100);
    let (acked, closed) = main.block_on(async {
        let acked = timeout(Duration::from_secs(60), acking).await;
        let closed = timeout(Duration::from_secs(120), sub.close()).await;
        (acked.is_ok(), closed.is_ok())
    });
    main.shutdown_background();
    assert!(acked && closed);
}

/// How long a drain takes while acks are not answered.
#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_unanswered_acks_for_some_seconds() {
    let s = scripted(|s| s.settle_gate = Some(Semaphore::new(0)));
    s.push(message("1", "k"), 1);
    let bus = s.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let worker = bus.worker(Source::queue("q")).with_graceful_shutdown(tokio::time::sleep(Duration::from_secs(1)));
    let began = Instant::now();
    worker.run(|_: HandlerContext, _: Envelope| async { Ok(()) }).await.unwrap();
    let took = began.elapsed() - Duration::from_secs(1);
    assert!(took <= Duration::from_secs(11), "{took:?}");
}

/// Nobody else would give the message back: the broker holds it for a consumer that lives.
#[tokio::test(start_paused = true)]
async fn the_release_of_a_dropped_delivery_is_tried_until_it_succeeds() {
    let s = scripted(|_| {});
    s.0.settles.lock().unwrap().extend((0..3).map(|_| Err(Error::new(ErrorKind::PermissionDenied, "no"))));
    s.push(message("1", "k"), 1);
    let bus = s.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
    drop(sub.next().await.unwrap().unwrap());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(s.settled(), [("1".to_owned(), Settlement::Release)]);
    sub.close().await.unwrap();
}

/// A driver that panics once on a release.
#[tokio::test(start_paused = true)]
async fn a_release_that_fails_once_is_tried_again() {
    for panics in [true, false] {
        let s = scripted(|_| {});
        if panics {
            s.0.settle_panics.store(true, Ordering::SeqCst);
        } else {
            s.0.settles.lock().unwrap().push_back(Err(Error::new(ErrorKind::PermissionDenied, "no")));
        }
        s.push(message("1", "k"), 1);
        let bus = s.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
        let worker = bus
            .worker(Source::queue("q"))
            .retry(RetryPolicy::new([]))
            .with_graceful_shutdown(tokio::time::sleep(Duration::from_secs(60)));
        worker.run(|_: HandlerContext, _: Envelope| async { Err("again".into()) }).await.unwrap();
        assert_eq!(s.settled(), [("1".to_owned(), Settlement::Release)], "panics: {panics}");
    }
}

/// The copy is made, and the ack that is left is tried again after a pause. The caller's runtime ends in the pause.
#[test]
fn a_settlement_is_tried_again_after_the_runtime_that_began_it_has_ended() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let (main, other) = (runtime(), runtime());
    let s = scripted(|s| s.settles.get_mut().unwrap().push_back(Err(cut().with_kept_copy())));
    s.push(message("1", "k"), 1);
    let bus = s.bus(BusOptions::topology(Topology::new().queue("q", QueueSpec::new())));
    let (mut sub, delivery) = main.block_on(async {
        let mut sub = bus.subscribe(Source::queue("q")).open().await.unwrap();
        let delivery = sub.next().await.unwrap().unwrap();
        (sub, delivery)
    });
    other.block_on(async {
        let burying = delivery.dead_letter("poison", "");
        assert!(timeout(Duration::from_millis(1), burying).await.is_err(), "there was no pause");
    });
    assert_eq!(s.0.settle_batches.lock().unwrap().len(), 1, "the copy was not asked for");
    drop(other);
    main.block_on(async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(s.settled(), [("1".to_owned(), Settlement::Ack)]);
        sub.close().await.unwrap();
    });
}
