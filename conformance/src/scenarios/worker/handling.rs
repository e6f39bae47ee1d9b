//! What the worker does with each answer of a handler.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_core::{Address, ErrorKind, HandlerError, QueueSpec, Source, Topology, driver::DeadLetter, stateful};
use tokio::time::timeout;

use super::run;
use crate::{
    Cx, During, Failure, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, messages, number,
    numbers, scenario,
    scenarios::shared::{GoalCounter, HandlerLog, KeyOrderLog, keyed, roomy_delay, short_lock, wait_until},
};

pub(super) fn all() -> Vec<Scenario> {
    let buries = |s: Scenario| s.needs(|_, c| Need::dead_letters(c));
    vec![
        scenario("worker/handles-all", "200 messages are each handled once and acked.", handles_all),
        scenario(
            "worker/retry-ladder",
            "A failing message is retried after the delays of its source, then dead-lettered with the error's text.",
            retry_ladder,
        )
        .needs(|_, c| Need::retry(c, Duration::from_secs(2)).and(Need::dead_letters(c))),
        scenario("worker/retry-after", "A handler's own delay is kept in place of the source's.", retry_after)
            .needs(|_, c| Need::retry(c, Duration::from_secs(2))),
        buries(scenario("worker/permanent", "A permanent error is dead-lettered at once, with its text.", permanent)),
        buries(scenario("worker/reasons", "A handler's reason and detail come to the dead letters.", reasons)),
        buries(scenario(
            "worker/max-deliveries",
            "A failing message is handled exactly max_deliveries times.",
            max_deliveries,
        )),
        scenario("worker/panic", "A panic counts as a failure; the worker goes on.", panics),
        scenario("worker/timeout", "A handler past its timeout is dropped, and that counts as a failure.", times_out),
        scenario("worker/renewal", "A handler that takes longer than the lock keeps its message.", renewal)
            .needs(|_, c| Need::locks(c))
            .timeout(Duration::from_secs(90)),
        scenario("worker/concurrency", "As many handlers as allowed run at once, and never one more.", concurrency),
        scenario(
            "worker/ordered",
            "Eight handlers of an ordered source see each key in order, one at a time.",
            ordered,
        )
        .needs(|_, c| Need::ordered(c)),
        scenario(
            "worker/ordered-retry",
            "A failed message of an ordered source is retried in place: its key waits, the others go on.",
            ordered_retry,
        )
        .needs(|_, c| Need::ordered(c)),
        scenario("worker/missing-source", "A worker of a missing source ends with NotFound.", missing_source),
        scenario("worker/deleted-source", "A worker whose source is deleted ends with NotFound.", deleted_source)
            .needs(|_, c| Need::declare(c)),
        buries(scenario(
            "worker/of-dead-letters",
            "A worker of dead letters sees why each died; its failures stay there.",
            of_dead_letters,
        )),
        scenario("worker/trace-context", "What a handler publishes carries on its message's trace.", trace_context),
    ]
}

const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// The number of the one dead letter, and what it tells.
async fn letter(cx: &Cx, f: &Fixture) -> Outcome<(usize, DeadLetter)> {
    let mut dead = f.subscribe_dead(1).await?;
    let d = cx.recv(&mut dead).await.during("the dead letter")?;
    let n = number(d.envelope())?;
    let info = d.dead_letter_info().cloned().ok_or_else(|| Failure::new("the dead letter tells nothing"))?;
    d.ack().await?;
    Ok((n, info))
}

async fn handles_all(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..200)).await?;
    let log = HandlerLog::default();
    let handler = stateful(log.clone(), async |log, _, msg| {
        log.add(&msg, 0);
        tokio::task::yield_now().await;
        Ok(())
    });
    let report = run(&cx, q.bus.worker(q.source.clone()).concurrency(8), log.1.reaches(200), handler).await?;
    ensure_eq!((report.succeeded, report.handled()), (200, 200), "handled");
    let mut got = numbers(log.all().iter().map(|r| &r.message))?;
    got.sort_unstable();
    ensure_eq!(got, (0..200).collect::<Vec<_>>(), "each once");
    let mut sub = q.subscribe(10).await?;
    cx.expect_none(&mut sub).await.during("after all were handled")
}

async fn retry_ladder(cx: Cx) -> Outcome {
    let delays = [300, 600, 1000].map(Duration::from_millis);
    let q = cx.queue(QueueSpec::new().retry(delays).max_deliveries(4)).await?;
    q.publish(message(1)).await?;
    let log = HandlerLog::default();
    let handler = stateful(log.clone(), async |log, cx, msg| {
        log.add(&msg, cx.attempt());
        Err(format!("failed at {}", cx.attempt()).into())
    });
    let report = run(&cx, q.bus.worker(q.source.clone()).concurrency(2), log.1.reaches(4), handler).await?;
    ensure_eq!((report.retried, report.dead_lettered), (3, 1), "what became of the failures");
    let runs = log.all();
    ensure_eq!(runs.iter().map(|r| r.attempt).collect::<Vec<_>>(), vec![1, 2, 3, 4], "attempts");
    for (pair, delay) in runs.windows(2).zip(delays) {
        let gap = pair[1].at - pair[0].at;
        // The policy's jitter is 10 %, the broker may add 10 %, and a busy machine adds more.
        let busy = cx.lateness(Duration::from_secs(if cx.time_is_free() { 0 } else { 5 }));
        let most = delay.mul_f64(1.21) + busy;
        ensure!(gap >= delay && gap <= most, "retried after {gap:?}, wanted {delay:?} and at most 21 % more");
    }
    let (n, info) = letter(&cx, &q).await?;
    ensure_eq!((n, info.attempt), (1, Some(4)), "message and attempt of the dead letter");
    ensure_eq!(info.reason.as_deref(), Some("max-deliveries-exceeded"), "its reason");
    ensure!(info.detail.as_deref().is_some_and(|d| d.contains("failed at 4")), "its detail: {:?}", info.detail);
    Ok(())
}

async fn retry_after(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().retry([Duration::from_secs(600)])).await?;
    q.publish(message(1)).await?;
    let log = HandlerLog::default();
    let handler = stateful(log.clone(), async |log, cx, msg| match log.add(&msg, cx.attempt()) {
        1 => Err(HandlerError::retry_after(Duration::from_secs(1), "not yet")),
        _ => Ok(()),
    });
    run(&cx, q.bus.worker(q.source.clone()), log.1.reaches(2), handler).await?;
    let runs = log.all();
    ensure_eq!(runs[1].attempt, 2, "attempt");
    let gap = runs[1].at - runs[0].at;
    ensure!(gap >= Duration::from_secs(1), "retried after {gap:?}, the handler asked for 1 s");
    Ok(())
}

async fn permanent(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish(message(1)).await?;
    let log = HandlerLog::default();
    let handler = stateful(log.clone(), async |log, cx, msg| {
        log.add(&msg, cx.attempt());
        Err(HandlerError::permanent("never good"))
    });
    let report = run(&cx, q.bus.worker(q.source.clone()), log.1.reaches(1), handler).await?;
    ensure_eq!((report.dead_lettered, report.handled()), (1, 1), "what became of it");
    let (_, info) = letter(&cx, &q).await?;
    ensure_eq!((info.reason.as_deref(), info.attempt), (Some("permanent"), Some(1)), "reason and attempt");
    ensure!(info.detail.as_deref().is_some_and(|d| d.contains("never good")), "detail: {:?}", info.detail);
    let mut sub = q.subscribe(1).await?;
    cx.expect_none(&mut sub).await
}

async fn reasons(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish(message(1)).await?;
    let log = HandlerLog::default();
    let handler = stateful(log.clone(), async |log, cx, msg| {
        log.add(&msg, cx.attempt());
        Err(HandlerError::dead_letter("no-customer", "customer 7 — “gone” since 2019"))
    });
    run(&cx, q.bus.worker(q.source.clone()), log.1.reaches(1), handler).await?;
    let (_, info) = letter(&cx, &q).await?;
    ensure_eq!(info.reason.as_deref(), Some("no-customer"), "reason");
    ensure_eq!(info.detail.as_deref(), Some("customer 7 — “gone” since 2019"), "detail");
    ensure_eq!(info.origin.as_deref(), Some("queue:q"), "origin");
    Ok(())
}

async fn max_deliveries(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(3).retry([Duration::ZERO])).await?;
    q.publish_all(messages(0..5)).await?;
    let log = HandlerLog::default();
    let handler = stateful(log.clone(), async |log, cx, msg| {
        log.add(&msg, cx.attempt());
        Err("always".into())
    });
    let worker = q.bus.worker(q.source.clone()).concurrency(1).prefetch(1);
    run(&cx, worker, log.1.reaches(15), handler).await?;
    let mut dead = q.subscribe_dead(5).await?;
    let mut got = numbers(&cx.drain(&mut dead, 5).await?)?;
    got.sort_unstable();
    ensure_eq!(got, (0..5).collect::<Vec<_>>(), "dead letters");
    let mut sub = q.subscribe(1).await?;
    cx.expect_none(&mut sub).await?;
    for n in 0..5 {
        let attempts: Vec<u32> =
            log.all().iter().filter(|r| r.message.data == n.to_string()).map(|r| r.attempt).collect();
        ensure_eq!(attempts, vec![1, 2, 3], "attempts of message {n}");
    }
    Ok(())
}

async fn panics(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().retry([Duration::ZERO])).await?;
    q.publish_all(messages(0..10)).await?;
    let (log, done) = (HandlerLog::default(), GoalCounter::default());
    let handler = stateful((log.clone(), done.clone()), async |(log, done), cx, msg| {
        if log.add(&msg, cx.attempt()) == 1 && cx.attempt() == 1 {
            // `panic!` would print a backtrace each time.
            std::panic::resume_unwind(Box::new("deliberate"));
        }
        done.add();
        Ok(())
    });
    let report = run(&cx, q.bus.worker(q.source.clone()).concurrency(3), done.reaches(10), handler).await?;
    ensure_eq!((report.retried, report.succeeded), (10, 10), "what became of panics and of their retries");
    ensure!(log.all().iter().all(|r| r.attempt <= 2), "attempts: {:?}", log.all());
    Ok(())
}

async fn times_out(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().retry([Duration::ZERO])).await?;
    q.publish_all(messages(0..4)).await?;
    let (log, done) = (HandlerLog::default(), GoalCounter::default());
    let handler = stateful((log.clone(), done.clone()), async |(log, done), cx, msg| {
        if log.add(&msg, cx.attempt()) == 1 {
            std::future::pending::<()>().await;
        }
        done.add();
        Ok(())
    });
    let worker = q.bus.worker(q.source.clone()).concurrency(2).handler_timeout(Duration::from_millis(300));
    let report = run(&cx, worker, done.reaches(4), handler).await?;
    ensure_eq!((report.retried, report.succeeded), (4, 4), "what became of timeouts and of their retries");
    Ok(())
}

async fn renewal(cx: Cx) -> Outcome {
    let lock = short_lock(&cx);
    let q = cx.queue(QueueSpec::new().lock(lock)).await?;
    q.publish(message(1)).await?;
    let log = HandlerLog::default();
    let begun = GoalCounter::default();
    let takes = lock * 3;
    let handler = stateful((log.clone(), begun.clone(), takes), async |(log, begun, takes), cx, msg| {
        begun.add();
        tokio::time::sleep(takes).await;
        if cx.is_lock_lost() {
            return Err("the lock was lost".into());
        }
        log.add(&msg, cx.attempt());
        Ok(())
    });
    let other = q.on(cx.second_bus(&q.bus).await?);
    let worker = q.bus.worker(q.source.clone()).concurrency(1);
    let beside = async {
        begun.reaches(1).await;
        let mut sub = other.subscribe(1).await?;
        cx.expect_none_for(&mut sub, takes).await.during("while the handler runs")
    };
    let (report, beside) = tokio::join!(run(&cx, worker, log.1.reaches(1), handler), beside);
    beside?;
    ensure_eq!(report?.succeeded, 1, "handled");
    ensure_eq!(begun.get(), 1, "runs");
    let mut sub = other.subscribe(1).await?;
    cx.expect_none(&mut sub).await.during("after the ack")
}

async fn concurrency(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..60)).await?;
    #[derive(Default)]
    struct Gauge(AtomicUsize, AtomicUsize);
    let (gauge, done) = (Arc::new(Gauge::default()), GoalCounter::default());
    let state = (gauge.clone(), done.clone(), GoalCounter::default(), cx.patience());
    let handler = stateful(state, async |(gauge, done, begun, patience), _, _| {
        let now = gauge.0.fetch_add(1, Ordering::SeqCst) + 1;
        gauge.1.fetch_max(now, Ordering::SeqCst);
        begun.add();
        // No handler ends before five have begun. Then five run at once, and a sixth would be noticed.
        let _ = timeout(patience, begun.reaches(5)).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        gauge.0.fetch_sub(1, Ordering::SeqCst);
        done.add();
        Ok(())
    });
    run(&cx, q.bus.worker(q.source.clone()).concurrency(5).prefetch(20), done.reaches(60), handler).await?;
    ensure_eq!(gauge.1.load(Ordering::SeqCst), 5, "most handlers at once");
    Ok(())
}

async fn ordered(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().ordered(true).retry([Duration::ZERO]).max_deliveries(20)).await?;
    q.publish_all((0..200).map(|i| keyed(&format!("k{}", i % 20), i / 20))).await?;
    let (lanes, done) = (KeyOrderLog::new(200), GoalCounter::default());
    let wrong = Arc::new(parking_lot::Mutex::new(None));
    let handler = stateful((lanes.clone(), done.clone(), wrong.clone()), async |(lanes, done, wrong), cx, msg| {
        let (key, n) = (msg.key.as_deref().unwrap_or_default(), number(&msg).unwrap_or(usize::MAX));
        if let Err(e) = lanes.begin(key, n) {
            wrong.lock().get_or_insert(e);
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
        let fails = n % 4 == 1 && cx.attempt() == 1;
        lanes.end(key, (!fails).then_some(n));
        if fails {
            return Err("once more".into());
        }
        done.add();
        Ok(())
    });
    run(&cx, q.bus.worker(q.source.clone()).concurrency(8).prefetch(100), done.reaches(200), handler).await?;
    if let Some(wrong) = wrong.lock().take() {
        return Err(wrong);
    }
    lanes.all_in_order(20, 10)
}

async fn ordered_retry(cx: Cx) -> Outcome {
    let delay = roomy_delay(&cx);
    let q = cx.queue(QueueSpec::new().ordered(true).retry([delay])).await?;
    q.publish_all((0..8).map(|i| keyed(["a", "b"][i % 2], i / 2))).await?;
    let (log, done) = (HandlerLog::default(), GoalCounter::default());
    let handler = stateful((log.clone(), done.clone()), async |(log, done), cx, msg| {
        log.add(&msg, cx.attempt());
        if msg.key.as_deref() == Some("a") && msg.data == "1" && cx.attempt() == 1 {
            return Err("once".into());
        }
        done.add();
        Ok(())
    });
    run(&cx, q.bus.worker(q.source.clone()).concurrency(4).prefetch(20), done.reaches(8), handler).await?;
    let runs = log.all();
    let of = |key: &str| -> Vec<_> {
        let of = runs.iter().filter(|r| r.message.key.as_deref() == Some(key));
        of.map(|r| (r.message.data.clone(), r.attempt, r.at)).collect()
    };
    let (a, b) = (of("a"), of("b"));
    let told: Vec<String> =
        a.iter().map(|(n, attempt, _)| format!("{}/{attempt}", String::from_utf8_lossy(n))).collect();
    ensure_eq!(told, ["0/1", "1/1", "1/2", "2/1", "3/1"], "numbers and attempts of the failing key");
    let (failed, again) = (a[1].2, a[2].2);
    ensure!(again - failed >= delay, "retried after {:?}, not {delay:?}", again - failed);
    ensure!(b.iter().all(|(_, _, at)| *at < again), "the other key waited for the retry");
    Ok(())
}

async fn missing_source(cx: Cx) -> Outcome {
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).undeclared().open().await?;
    let worker = bus.worker(Source::queue("q")).run(stateful((), async |(), _, _| Ok(())));
    let ended =
        timeout(cx.patience(), worker).await.map_err(|_| Failure::new("the worker goes on without a source"))?;
    expect_kind!(ended, ErrorKind::NotFound, "the worker's end");
    Ok(())
}

async fn deleted_source(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish(message(1)).await?;
    let log = HandlerLog::default();
    let handler = stateful(log.clone(), async |log, _, msg| {
        log.add(&msg, 1);
        Ok(())
    });
    let worker = tokio::spawn(q.bus.worker(q.source.clone()).run(handler));
    wait_until(&cx, "the first message to be handled", || log.1.get() == 1).await?;
    cx.second_bus(&q.bus).await?.delete().await.during("delete")?;
    let ended = timeout(cx.patience(), worker).await.map_err(|_| Failure::new("the worker goes on"))??;
    expect_kind!(ended, ErrorKind::NotFound, "the worker's end");
    Ok(())
}

async fn of_dead_letters(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(2)).await?;
    q.publish_all(messages(0..3)).await?;
    let mut sub = q.subscribe(3).await?;
    for d in cx.collect(&mut sub, 3).await? {
        d.dead_letter("poison", "on purpose").await?;
    }
    let (log, done) = (HandlerLog::default(), GoalCounter::default());
    let handler = stateful((log.clone(), done.clone()), async |(log, done), cx, msg| {
        let told = cx.dead_letter_info().and_then(|d| d.reason.clone());
        if told.as_deref() != Some("poison") || cx.max_deliveries().is_some() {
            return Err(format!("told {told:?}").into());
        }
        // These are more failures than max_deliveries, which does not apply to dead letters.
        if log.add(&msg, cx.attempt()) <= 3 {
            return Err("later".into());
        }
        done.add();
        Ok(())
    });
    let retry = polybus_core::RetryPolicy::fixed(Duration::from_millis(20));
    run(&cx, q.bus.worker(q.source.dead_letters()).retry(retry), done.reaches(3), handler).await?;
    let mut dead = q.subscribe_dead(3).await?;
    cx.expect_none(&mut dead).await.during("after all dead letters were handled")
}

async fn trace_context(cx: Cx) -> Outcome {
    let topology = Topology::new().queue("q", QueueSpec::new()).queue("out", QueueSpec::new());
    let bus = cx.bus(topology).await?;
    bus.publish(Address::queue("q"), message(1).traceparent(PARENT)).await?;
    let log = HandlerLog::default();
    let handler = stateful((log.clone(), bus.clone()), async |(log, bus), _, msg| {
        bus.publish(Address::queue("out"), message(2)).await?;
        log.add(&msg, 1);
        Ok(())
    });
    run(&cx, bus.worker(Source::queue("q")), log.1.reaches(1), handler).await?;
    ensure_eq!(log.all()[0].message.traceparent.as_deref(), Some(PARENT), "the trace of the handled message");
    let mut sub = bus.subscribe(Source::queue("out")).open().await?;
    let got = cx.drain(&mut sub, 1).await?;
    let trace = got[0].traceparent.as_deref().unwrap_or_default();
    ensure_eq!(trace.get(..36), PARENT.get(..36), "the trace of what the handler published: {trace:?}");
    ensure!(trace.get(36..52) != PARENT.get(36..52), "it has the parent's span: {trace:?}");
    Ok(())
}
