//! Sinks that hang, fail and panic.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use polybus_patterns::monitor::{Alert, Monitor, Rule, SINK_QUEUE, SinkError};
use tokio::time::Instant;

use crate::scripted::{Running, Scripted, Told, line, polls};

/// A value that fires and resolves by turns: an alert at each poll.
fn restless() -> Rule {
    let polls = AtomicU64::new(0);
    let value = move || {
        let value = polls.fetch_add(1, Ordering::Relaxed) % 2;
        async move { Ok(Some(1.0 - value as f64)) }
    };
    Rule::measure("restless", value).above(0).held_for(1)
}

#[tokio::test(start_paused = true)]
async fn a_hung_sink_holds_nothing_up() {
    let told = Told::default();
    let monitor = Monitor::new(&Scripted::new().bus(&[])).rule(restless()).sink_fn("hung", |_| pending());
    let running = Running::start(told.sink(monitor));
    let n = 400;
    tokio::time::sleep(Duration::from_secs(1)).await;
    polls(n - 1).await;
    let lines = told.lines();
    assert_eq!(lines.len(), n as usize, "the other sink was told at each poll");
    assert!(lines.iter().enumerate().all(|(i, (at, ..))| *at == 15 * i as u64), "and at once");
    let start = Instant::now();
    let report = running.end().await;
    assert_eq!(start.elapsed(), Duration::from_secs(10), "it is waited for no longer than the drain timeout");
    assert_eq!((report.polls, report.sent, report.dropped), (n, n, n), "none of the hung one's was sent");
}

#[tokio::test(start_paused = true)]
async fn a_sink_that_is_too_slow_drops_the_oldest_above_its_limit() {
    let got: Arc<Mutex<Vec<Alert>>> = Arc::default();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (sink_got, sink_gate) = (got.clone(), gate.clone());
    let slow = move |alert: Alert| {
        let (got, gate) = (sink_got.clone(), sink_gate.clone());
        async move {
            gate.acquire().await.unwrap().forget();
            got.lock().push(alert);
            Ok(())
        }
    };
    // All in less than the 15 s that a try may take.
    let rules = SINK_QUEUE + 3;
    let mut monitor = Monitor::new(&Scripted::new().bus(&[])).sink_fn("slow", slow);
    for n in 0..rules {
        monitor = monitor.rule(Rule::measure(format!("{n}"), async || Ok(Some(1.0))).above(0).held_for(1));
    }
    let running = Running::start(monitor);
    tokio::time::sleep(Duration::from_secs(1)).await;
    gate.add_permits(10_000);
    let report = running.end().await;
    assert_eq!(got.lock().len() as u64 + report.dropped, rules as u64);
    assert!((2..=3).contains(&report.dropped), "one may be in hand: {}", report.dropped);
}

#[tokio::test(start_paused = true)]
async fn a_try_that_fails_panics_or_hangs_is_done_again_up_to_three_times() {
    let tries: Arc<Mutex<Vec<(u128, String)>>> = Arc::default();
    let start = Instant::now();
    let seen = tries.clone();
    let flaky = move |alert: Alert| {
        seen.lock().push((start.elapsed().as_millis(), alert.id.clone()));
        let n = seen.lock().len();
        async move {
            match n {
                1 => panic!("the sink panics"),
                2 => Err(SinkError::again("busy")),
                _ => Ok(()),
            }
        }
    };
    let measure = || Rule::measure("on", async || Ok(Some(1.0))).above(0).held_for(1);
    let running = Running::start(Monitor::new(&Scripted::new().bus(&[])).rule(measure()).sink_fn("flaky", flaky));
    polls(2).await;
    let report = running.end().await;
    assert_eq!((report.sent, report.dropped), (1, 0));
    let tries = tries.lock().clone();
    assert_eq!(tries.len(), 3);
    assert!(tries.iter().all(|(_, id)| *id == tries[0].1), "all tries have one id");
    let waits = [tries[1].0 - tries[0].0, tries[2].0 - tries[1].0];
    assert!((500..=1_001).contains(&waits[0]) && (2_500..=5_001).contains(&waits[1]), "{waits:?}");

    // A fourth there is not before long.
    let count = Arc::new(AtomicUsize::new(0));
    let tried = count.clone();
    let failing = move |_| {
        tried.fetch_add(1, Ordering::Relaxed);
        async { Err(SinkError::again("down")) }
    };
    let running = Running::start(Monitor::new(&Scripted::new().bus(&[])).rule(measure()).sink_fn("failing", failing));
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(count.load(Ordering::Relaxed), 3);
    let report = running.end().await;
    assert_eq!((count.load(Ordering::Relaxed), report.sent, report.dropped), (4, 0, 1), "one more at the end");
}

/// What a sink that was away for an hour is told when it is back.
#[tokio::test(start_paused = true)]
async fn a_sink_that_is_away_gets_the_newest_of_each_alert_when_it_is_back() {
    let is_away = Arc::new(AtomicBool::new(true));
    let tries = Arc::new(AtomicUsize::new(0));
    let got: Arc<Mutex<Vec<(String, &'static str)>>> = Arc::default();
    let at: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let times = at.clone();
    let (away, tried, taken) = (is_away.clone(), tries.clone(), got.clone());
    let sink = move |alert: Alert| {
        tried.fetch_add(1, Ordering::Relaxed);
        let (taken, times) = (taken.clone(), times.clone());
        let is_away = away.load(Ordering::Relaxed);
        async move {
            if is_away {
                return Err(SinkError::again("away"));
            }
            taken.lock().push((alert.name, alert.state.as_str()));
            times.lock().push(Instant::now());
            Ok(())
        }
    };
    // One that fires for good, one that is resolved after two polls, and one that fires in the end.
    let from = |name: &str, high: std::ops::Range<u64>| {
        let polls = AtomicU64::new(0);
        let value = move || {
            let value = high.contains(&polls.fetch_add(1, Ordering::Relaxed));
            async move { Ok(Some(f64::from(u8::from(value)))) }
        };
        Rule::measure(name, value).above(0).held_for(1)
    };
    let monitor = Monitor::new(&Scripted::new().bus(&[]))
        .remind_every(None)
        .rule(from("lasts", 0..u64::MAX))
        .rule(from("is-over", 0..20))
        .sink_fn("away", sink);
    let running = Running::start(monitor);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let n = tries.load(Ordering::Relaxed);
    assert!((15..60).contains(&n), "{n} tries in an hour, with growing waits");
    is_away.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(301)).await;
    let mut told = got.lock().clone();
    told.sort();
    assert_eq!(told, [("is-over".into(), "resolved"), ("lasts".into(), "firing")]);
    let report = running.end().await;
    assert_eq!((report.sent, report.dropped), (2, 1), "the one that was over is told as such alone");
    assert_eq!(got.lock().len(), 2);
    let at = at.lock().clone();
    assert_eq!(at[0], at[1], "the first that is sent lets the other follow at once");
}

#[tokio::test(start_paused = true)]
async fn what_a_sink_refuses_is_not_sent_again_and_its_wait_is_bounded() {
    let tries: Arc<Mutex<Vec<u64>>> = Arc::default();
    let start = Instant::now();
    let seen = tries.clone();
    let sink = move |_| {
        seen.lock().push(start.elapsed().as_secs());
        let n = seen.lock().len();
        async move {
            match n {
                1 => Err(SinkError::again("busy").after(Duration::from_secs(40))),
                2 => Err(SinkError::again("busy").after(Duration::from_secs(86_400))),
                _ => Err(SinkError::refused("never")),
            }
        }
    };
    let rule = Rule::measure("on", async || Ok(Some(1.0))).above(0).held_for(1);
    let running = Running::start(Monitor::new(&Scripted::new().bus(&[])).rule(rule).sink_fn("busy", sink));
    polls(10).await;
    let report = running.end().await;
    assert_eq!((report.sent, report.dropped), (0, 1));
    assert_eq!(*tries.lock(), [0, 40, 100], "a minute at most");
}

#[tokio::test(start_paused = true)]
async fn a_try_that_hangs_is_given_up_and_what_is_refused_is_tried_once() {
    let measure = || Rule::measure("on", async || Ok(Some(1.0))).above(0).held_for(1);
    for (hangs, tries) in [(true, 3), (false, 1)] {
        let count = Arc::new(AtomicUsize::new(0));
        let tried = count.clone();
        let sink = move |_| {
            tried.fetch_add(1, Ordering::Relaxed);
            async move { if hangs { pending().await } else { Err(SinkError::refused("never")) } }
        };
        let running = Running::start(Monitor::new(&Scripted::new().bus(&[])).rule(measure()).sink_fn("sink", sink));
        // Three times 15 s, and 6 s between them.
        tokio::time::sleep(Duration::from_secs(52)).await;
        assert_eq!(count.load(Ordering::Relaxed), tries);
        let start = Instant::now();
        let report = running.end().await;
        assert_eq!((report.sent, report.dropped), (0, 1));
        let drained = if hangs { 10 } else { 0 };
        assert_eq!(start.elapsed(), Duration::from_secs(drained), "one more try of what hung, and none of the other");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_sent_before_the_end() {
    let told = Told::default();
    let sent = told.clone();
    let slow = move |alert: Alert| {
        let _ = &sent;
        async move {
            tokio::time::sleep(Duration::from_secs(3)).await;
            drop(alert);
            Ok(())
        }
    };
    let rule = |n| Rule::measure(format!("{n}"), async || Ok(Some(1.0))).above(0).held_for(1);
    let monitor = (0..5).fold(Monitor::new(&Scripted::new().bus(&[])).sink_fn("slow", slow), |m, n| m.rule(rule(n)));
    let running = Running::start(monitor);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Three end within the drain timeout, at 3, 6 and 9 s; the one in hand and the one behind it do not.
    let report = running.end().await;
    assert_eq!((report.sent, report.dropped), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn reminders_come_at_their_interval() {
    let told = Told::default();
    let rule = Rule::measure("on", async || Ok(Some(1.0))).above(0).held_for(1);
    let monitor = Monitor::new(&Scripted::new().bus(&[])).rule(rule).remind_every(Duration::from_secs(3600));
    let running = Running::start(told.sink(monitor));
    tokio::time::sleep(Duration::from_secs(2 * 3600 + 1)).await;
    let wanted = [line(0, "on", "firing"), line(3600, "on", "reminder"), line(7200, "on", "reminder")];
    assert_eq!(told.lines(), wanted);
    let all = told.all();
    assert!(all[0].id != all[1].id && all[0].since == all[2].since);
    running.end().await;
}
