//! Shutdown, dropped futures, and sources that end.

use std::{future::pending, sync::Arc, time::Duration};

use polybus_core::{ErrorKind, QueueSpec, Source, stateful};
use tokio::time::Instant;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn shutdown_finishes_what_runs_and_gives_back_the_rest_uncounted() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, (0..10).map(|n| n.to_string())).await;
    let (started, log) = (Counter::default(), Log::new());
    let handler = stateful((started.clone(), log.clone()), async |(started, log), cx, msg| {
        assert!(!cx.is_cancelled() && cx.deadline().is_none());
        started.add();
        cx.cancelled().await;
        let left = cx.deadline().unwrap() - Instant::now();
        assert!(cx.is_cancelled() && left > secs(29) && left <= secs(30), "{left:?}");
        tokio::time::sleep(secs(10)).await;
        log.add(&msg.id, cx.attempt());
        Ok(())
    });
    let began = Instant::now();
    let worker = bus.worker(q()).concurrency(3).prefetch(8);
    let (others, begun) = (bus.clone(), started.reaches(3));
    let meanwhile = tokio::spawn(async move {
        begun.await;
        for _ in 0..7 {
            assert_eq!(take(&others, q()).await.1, 1, "what no handler began is not counted");
        }
        began.elapsed()
    });
    let report = worker.with_graceful_shutdown(started.reaches(3)).run(handler).await.unwrap();
    let given_back = meanwhile.await.unwrap();
    assert!(given_back < secs(1), "it does not wait for the handlers: {given_back:?}");
    assert!(began.elapsed() < secs(12), "it does not wait for the deadline: {:?}", began.elapsed());
    assert_eq!((report.succeeded, report.handled()), (3, 3));
    assert_eq!(log.all().len(), 3);
    assert_eq!(counts(&bus).await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn handlers_past_the_drain_timeout_are_dropped_and_their_messages_released() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, ["stuck", "quick"]).await;
    let (tally, alive) = (Counter::default(), Arc::new(()));
    let handler = stateful((tally.clone(), alive.clone()), async |(tally, _alive), _cx, msg| {
        tally.add();
        if &*msg.id == "stuck" {
            pending::<()>().await;
        }
        Ok(())
    });
    let began = Instant::now();
    let report =
        bus.worker(q()).drain_timeout(secs(7)).with_graceful_shutdown(tally.reaches(2)).run(handler).await.unwrap();
    let took = began.elapsed();
    assert!(took >= secs(7) && took < secs(8), "{took:?}");
    assert_eq!((report.succeeded, report.dropped, report.handled()), (1, 1, 2));
    assert_eq!(Arc::strong_count(&alive), 1);
    assert_eq!(take(&bus, q()).await.1, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_thread_does_not_hold_up_the_shutdown() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, ["m"]).await;
    let (free, blocked) = std::sync::mpsc::channel::<()>();
    let tally = Counter::default();
    let state = (tally.clone(), Arc::new(std::sync::Mutex::new(blocked)));
    let handler = stateful(state, async |(tally, blocked), _cx, _msg| {
        tally.add();
        let _ = blocked.lock().unwrap().recv();
        Ok(())
    });
    let worker = bus.worker(q()).drain_timeout(Duration::from_millis(10));
    let running = worker.with_graceful_shutdown(tally.reaches(1)).run(handler);
    tokio::time::timeout(secs(300), running).await.expect("it ends").unwrap();
    drop(free);
    assert_eq!(take(&bus, q()).await.0, "m");
}

#[tokio::test(start_paused = true)]
async fn dropping_run_drops_handlers_and_gives_everything_back() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, (0..10).map(|n| n.to_string())).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let (before, alive, tally) = (tasks(), Arc::new(()), Counter::default());
    let handler = stateful((alive.clone(), tally.clone()), async |(_alive, tally), _cx, _msg| {
        tally.add();
        pending().await
    });
    let run = bus.worker(q()).concurrency(4).prefetch(8).run(handler);
    tokio::select! {
        _ = run => panic!("nothing ends it"),
        () = tally.reaches(4) => {}
    }
    // Aborted tasks are gone once the runtime has seen to them; the one that renews locks notices at its next turn.
    let gone = async |what: &str, limit, left: &dyn Fn() -> bool| {
        let poll = async {
            while left() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(limit, poll).await.unwrap_or_else(|_| panic!("{what} are left behind"));
    };
    gone("handlers", secs(1), &|| Arc::strong_count(&alive) > 1).await;
    gone("tasks", secs(30), &|| tasks() > before).await;
    assert_eq!(counts(&bus).await, [10, 0, 0, 0]);
    let mut attempts = Vec::new();
    for _ in 0..10 {
        attempts.push(take(&bus, q()).await.1);
    }
    attempts.sort_unstable();
    assert_eq!(attempts, [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn a_message_is_given_back_though_its_context_lives_on() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, ["m"]).await;
    let tally = Counter::default();
    let handler = stateful(tally.clone(), async |tally, cx: polybus_core::HandlerContext, _msg| {
        tokio::spawn(async move {
            let _cx = cx;
            pending::<()>().await
        });
        tally.add();
        pending().await
    });
    let report =
        bus.worker(q()).drain_timeout(secs(1)).with_graceful_shutdown(tally.reaches(1)).run(handler).await.unwrap();
    assert_eq!(report.dropped, 1);
    assert_eq!(take(&bus, q()).await.1, 2);
}

#[tokio::test(start_paused = true)]
async fn a_missing_source_is_an_error() {
    let bus = bus(QueueSpec::new()).await;
    let missing = bus.worker(Source::queue("missing")).run(|_cx, _msg| async { Ok(()) });
    let e = tokio::time::timeout(secs(60), missing).await.expect("it ends").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_source_deleted_while_running_ends_the_worker() {
    let bus = bus(QueueSpec::new()).await;
    let delete = bus.clone();
    tokio::spawn(async move {
        tokio::time::sleep(secs(5)).await;
        delete.delete().await.unwrap();
    });
    let running = bus.worker(q()).run(|_cx, _msg| async { Ok(()) });
    let e = tokio::time::timeout(secs(60), running).await.expect("it ends").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
}

#[tokio::test(start_paused = true)]
async fn closing_the_bus_ends_the_worker() {
    let bus = bus(QueueSpec::new()).await;
    let close = bus.clone();
    tokio::spawn(async move {
        tokio::time::sleep(secs(5)).await;
        close.close().await.unwrap();
    });
    let running = bus.worker(q()).run(|_cx, _msg| async { Ok(()) });
    let e = tokio::time::timeout(secs(60), running).await.expect("it ends").unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Closed, "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_has_happened_already_handles_nothing() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, ["m"]).await;
    let report = bus
        .worker(q())
        .with_graceful_shutdown(async {})
        .run(|_cx, _msg| async { panic!("no handler runs") })
        .await
        .unwrap();
    assert_eq!(report.handled(), 0);
    assert_eq!(take(&bus, q()).await.1, 1);
}
