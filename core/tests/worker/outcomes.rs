//! What becomes of a message: acked, retried, dead-lettered.

use std::{
    future::pending,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use polybus_core::{ErrorKind, HandlerError, QueueSpec, RetryPolicy, stateful};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn retries_follow_the_sources_delays_and_end_in_the_dead_letters() {
    let bus = bus(QueueSpec::new().max_deliveries(6)).await;
    publish(&bus, ["m"]).await;
    let (log, tally) = (Log::new(), Counter::default());
    let handler = stateful((log.clone(), tally.clone()), async |(log, tally), cx, msg| {
        log.add(&msg.id, cx.attempt());
        assert_eq!((cx.max_deliveries(), cx.is_last_attempt()), (Some(6), cx.attempt() == 6));
        tally.add();
        Err(std::io::Error::other(format!("failed at {}", cx.attempt())).into())
    });
    let report = bus.worker(q()).with_graceful_shutdown(tally.reaches(6)).run(handler).await.unwrap();
    assert_eq!((report.retried, report.dead_lettered, report.handled()), (5, 1, 6));

    let seen = log.all();
    assert_eq!(seen.iter().map(|(_, attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    // Jitter lengthens by up to 10 %, and the broker may be late by as much again.
    for (pair, delay) in seen.windows(2).zip([1, 5, 30, 300, 300].map(secs)) {
        let waited = pair[1].2 - pair[0].2;
        assert!((delay..=delay.mul_f64(1.21)).contains(&waited), "{waited:?} after {delay:?}");
    }
    let (id, info) = dead_letter(&bus).await;
    assert_eq!((id.as_str(), info.attempt), ("m", Some(6)));
    assert_eq!(info.reason.as_deref(), Some("max-deliveries-exceeded"));
    assert_eq!(info.detail.as_deref(), Some("failed at 6"));
    assert_eq!(counts(&bus).await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_policy_overrides_delays_only() {
    let bus = bus(QueueSpec::new().max_deliveries(3).retry([secs(100)])).await;
    publish(&bus, ["m"]).await;
    let (log, tally) = (Log::new(), Counter::default());
    let handler = stateful((log.clone(), tally.clone()), async |(log, tally), cx, msg| {
        log.add(&msg.id, cx.attempt());
        tally.add();
        Err("no")?
    });
    let worker = bus.worker(q()).retry(RetryPolicy::new([secs(2), secs(7)]).jitter(0.0));
    worker.with_graceful_shutdown(tally.reaches(3)).run(handler).await.unwrap();
    let at: Vec<Duration> = log.all().iter().map(|(_, _, at)| *at).collect();
    let gaps = [at[1] - at[0], at[2] - at[1]];
    assert!(gaps[0] >= secs(2) && gaps[0] < secs(3) && gaps[1] >= secs(7) && gaps[1] < secs(8), "{gaps:?}");
    assert_eq!(counts(&bus).await, [0, 0, 0, 1]);
}

#[tokio::test(start_paused = true)]
async fn errors_choose_their_ending() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, ["permanent", "poison", "later"]).await;
    let (log, tally) = (Log::new(), Counter::default());
    let handler = stateful((log.clone(), tally.clone()), async |(log, tally), cx, msg| {
        log.add(&msg.id, cx.attempt());
        tally.add();
        match &*msg.id {
            "permanent" => Err(HandlerError::permanent(std::io::Error::other("no such account"))),
            "poison" => Err(HandlerError::dead_letter("poison", "cannot be read")),
            "later" if cx.attempt() == 1 => Err(HandlerError::retry_after(secs(77), "busy")),
            _ => Ok(()),
        }
    });
    let report = bus.worker(q()).with_graceful_shutdown(tally.reaches(4)).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.retried, report.dead_lettered), (1, 1, 2));
    let later: Vec<_> = log.all().into_iter().filter(|(id, ..)| id == "later").collect();
    let waited = later[1].2 - later[0].2;
    assert!(waited >= secs(77) && waited <= secs(77).mul_f64(1.1), "{waited:?}");
    assert_eq!(later[1].1, 2);
    let mut dead = [dead_letter(&bus).await, dead_letter(&bus).await];
    dead.sort_by(|a, b| a.0.cmp(&b.0));
    let told = dead.map(|(id, info)| [id, info.reason.unwrap().into(), info.detail.unwrap().into()]);
    assert_eq!(told[0], ["permanent", "permanent", "no such account"]);
    assert_eq!(told[1], ["poison", "poison", "cannot be read"]);
}

#[tokio::test(start_paused = true)]
async fn panics_and_timeouts_are_failures_and_say_so() {
    for (what, detail) in [
        ("early", "the handler panicked: boom early"),
        ("late", "the handler panicked: boom 7"),
        ("slow", "the handler did not end within 3s"),
    ] {
        let bus = bus(QueueSpec::new().max_deliveries(2)).await;
        publish(&bus, [what]).await;
        let tally = Counter::default();
        let counted = tally.clone();
        // Not async itself: it panics before there is a future.
        let handler = move |_cx, msg: polybus_core::Envelope| {
            counted.add();
            if &*msg.id == "early" {
                panic!("boom early");
            }
            async move {
                tokio::time::sleep(secs(1)).await;
                match &*msg.id {
                    "late" => panic!("boom {}", 7),
                    _ => pending().await,
                }
            }
        };
        let worker = bus.worker(q()).handler_timeout(secs(3));
        let dead = async { tokio::join!(tally.reaches(2), tokio::time::sleep(secs(60))).0 };
        let report = worker.with_graceful_shutdown(dead).run(handler).await.unwrap();
        assert_eq!((report.retried, report.dead_lettered, report.dropped), (1, 1, 0), "{what}");
        let (_, info) = dead_letter(&bus).await;
        assert_eq!(info.detail.as_deref(), Some(detail));
        assert_eq!(info.reason.as_deref(), Some("max-deliveries-exceeded"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_times_out_is_dropped_before_the_message_comes_again() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, ["m"]).await;
    let (running, tally) = (Arc::new(()), Counter::default());
    let handler = stateful((running.clone(), tally.clone()), async |(running, tally), cx, _msg| {
        // The test's, the closure's and this one: no earlier attempt is left.
        assert_eq!(Arc::strong_count(&running), 3, "attempt {}", cx.attempt());
        if tally.add() == 3 {
            return Ok(());
        }
        pending().await
    });
    let report =
        bus.worker(q()).handler_timeout(secs(1)).with_graceful_shutdown(tally.reaches(3)).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.retried), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn locks_are_renewed_while_a_handler_runs() {
    let bus = bus(QueueSpec::new().lock(secs(10))).await;
    publish(&bus, ["m"]).await;
    let tally = Counter::default();
    let handler = stateful(tally.clone(), async |tally, cx, _msg| {
        tokio::time::sleep(secs(100)).await;
        assert!(!cx.is_lock_lost());
        tally.add();
        Ok(())
    });
    let report = bus.worker(q()).with_graceful_shutdown(tally.reaches(1)).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.handled()), (1, 1));
    assert_eq!(counts(&bus).await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_lock_is_told_and_settles_nothing() {
    let (driver, faults) = Faulty::new();
    let renewals_fail = faults.renewals_fail;
    renewals_fail.store(true, Ordering::SeqCst);
    let bus = over(driver, QueueSpec::new().lock(secs(10))).await;
    publish(&bus, ["m"]).await;
    let (told, tally, log) = (Counter::default(), Counter::default(), Log::new());
    let state = (told.clone(), tally.clone(), log.clone());
    let handler = stateful(state, async |(told, tally, log), cx, msg| {
        log.add(&msg.id, cx.attempt());
        if cx.attempt() == 1 {
            assert!(!cx.is_lock_lost());
            cx.lock_lost().await;
            assert!(cx.is_lock_lost());
            told.add();
            // Longer than the broker's own lock, so that the second attempt overlaps.
            tokio::time::sleep(secs(20)).await;
        }
        tally.add();
        Ok(())
    });
    let lost = told.clone();
    tokio::spawn(async move {
        lost.reaches(1).await;
        renewals_fail.store(false, Ordering::SeqCst);
    });
    let report = bus.worker(q()).with_graceful_shutdown(tally.reaches(2)).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.lock_lost), (1, 1));
    let seen = log.all();
    assert_eq!(seen.iter().map(|(_, attempt, _)| *attempt).collect::<Vec<_>>(), [1, 2]);
    assert!(seen[1].2 <= secs(12), "the broker's lock is 10 s: {seen:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_on_dead_letters_are_released_after_a_pause() {
    let bus = bus(QueueSpec::new().max_deliveries(1)).await;
    publish(&bus, ["m"]).await;
    let tally = Counter::default();
    let fail = stateful(tally.clone(), async |tally, _cx, _msg| {
        tally.add();
        Err(HandlerError::permanent("why"))
    });
    bus.worker(q()).with_graceful_shutdown(tally.reaches(1)).run(fail).await.unwrap();

    let (log, tally) = (Log::new(), Counter::default());
    let handler = stateful((log.clone(), tally.clone()), async |(log, tally), cx, msg| {
        log.add(&msg.id, cx.attempt());
        assert_eq!((cx.max_deliveries(), cx.is_last_attempt()), (None, false));
        assert_eq!(cx.dead_letter_info().unwrap().detail.as_deref(), Some("why"));
        match tally.add() {
            1..4 => Err(HandlerError::permanent("not yet")),
            _ => Ok(()),
        }
    });
    let worker = bus.worker(q().dead_letters()).retry(RetryPolicy::fixed(secs(5)).jitter(0.0));
    let report = worker.with_graceful_shutdown(tally.reaches(4)).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.retried, report.dead_lettered), (1, 3, 0));
    let at: Vec<Duration> = log.all().iter().map(|(_, _, at)| *at).collect();
    assert!(at.windows(2).all(|w| w[1] - w[0] >= secs(5)), "{at:?}");
    assert_eq!(counts(&bus).await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn settings_that_cannot_work_are_refused() {
    let bus = bus(QueueSpec::new()).await;
    let worker = || bus.worker(q());
    let bad = [
        worker().concurrency(0),
        worker().prefetch(0),
        worker().handler_timeout(Duration::ZERO),
        worker().retry(RetryPolicy::fixed(secs(1)).jitter(2.0)),
    ];
    for worker in bad {
        let e = worker.run(|_cx, _msg| async { Ok(()) }).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::InvalidArgument, "{e}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_settlement_is_tried_again_beside_the_handlers() {
    let (driver, faults) = Faulty::new();
    let bus = over(driver, QueueSpec::new()).await;
    faults.copies_fail.store(3, Ordering::SeqCst);
    publish(&bus, ["bad", "good"]).await;
    let log = Log::new();
    let (seen, tally) = (log.clone(), Counter::default());
    let handler = stateful((seen, tally.clone()), async |(log, tally), cx, msg| {
        log.add(&msg.id, cx.attempt());
        tally.add();
        if &*msg.id == "bad" { Err(HandlerError::permanent("why")) } else { Ok(()) }
    });
    // The shutdown comes at once, and waits for it.
    let report = bus.worker(q()).concurrency(1).with_graceful_shutdown(tally.reaches(2)).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.dead_lettered, report.handled()), (1, 1, 2));
    assert!(log.all()[1].2 < Duration::from_millis(50), "the place was free at once: {:?}", log.all());
    assert_eq!(counts(&bus).await, [0, 0, 0, 1]);
    assert_eq!(dead_letter(&bus).await.1.attempt, Some(1));
}

/// Without an answer nobody knows whether an ack was carried out. Where doing it again does no harm it is done again, as
/// often as the lock lasts.
#[tokio::test(start_paused = true)]
async fn an_unanswered_ack_is_given_up_or_repeated_as_the_driver_says() {
    for (repeatable, handled) in [(false, 2), (true, 1)] {
        let (driver, faults) = Faulty::new();
        faults.repeatable.store(repeatable, Ordering::SeqCst);
        faults.unanswered.store(1, Ordering::SeqCst);
        let bus = over(driver, QueueSpec::new().lock(secs(300))).await;
        publish(&bus, ["m"]).await;
        let (log, tally) = (Log::new(), Counter::default());
        let handler = stateful((log.clone(), tally.clone()), async |(log, tally), cx, msg| {
            log.add(&msg.id, cx.attempt());
            tally.add();
            Ok(())
        });
        let worker = bus.worker(q()).with_graceful_shutdown(tokio::time::sleep(secs(200)));
        worker.run(handler).await.unwrap();
        assert_eq!((log.all().len(), counts(&bus).await), (handled, [0, 0, 0, 0]), "repeatable: {repeatable}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_moved_but_not_settled_is_not_moved_again() {
    let (driver, faults) = Faulty::new();
    let bus = over(driver, QueueSpec::new()).await;
    faults.copies_kept.store(1, Ordering::SeqCst);
    publish(&bus, ["bad"]).await;
    let tally = Counter::default();
    let handler = stateful(tally.clone(), async |tally, _cx, _msg| {
        tally.add();
        Err(HandlerError::permanent("why"))
    });
    bus.worker(q()).with_graceful_shutdown(tally.reaches(1)).run(handler).await.unwrap();
    // The driver here only says that it made the copy.
    assert_eq!(counts(&bus).await, [0, 0, 0, 0]);
}

#[tokio::test(start_paused = true)]
async fn no_limit_is_a_limit_too() {
    let bus = bus(QueueSpec::new()).await;
    publish(&bus, ["m"]).await;
    let tally = Counter::default();
    let handler = stateful(tally.clone(), async |tally, _cx, _msg| {
        tokio::time::sleep(secs(1)).await;
        tally.add();
        Ok(())
    });
    let worker = bus.worker(q()).handler_timeout(Duration::MAX).drain_timeout(Duration::MAX);
    let report = worker.with_graceful_shutdown(tally.reaches(1)).run(handler).await.unwrap();
    assert_eq!((report.succeeded, report.handled()), (1, 1));
}
