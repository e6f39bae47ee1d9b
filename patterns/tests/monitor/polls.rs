//! When sources are polled, and what a slow one does to others.

use std::time::Duration;

use polybus_core::{ErrorKind, Source};
use polybus_patterns::monitor::{AlertKind, Monitor, Rule};
use tokio::time::Instant;

use crate::scripted::{Answer, Running, Scripted, Told, line, polls};

#[tokio::test(start_paused = true)]
async fn sources_that_hang_delay_no_other() {
    let (driver, told) = (Scripted::new(), Told::default());
    let hung: Vec<String> = (0..40).map(|n| format!("hung{n}")).collect();
    let mut names: Vec<&str> = hung.iter().map(String::as_str).collect();
    // Behind all of them, so that it has to wait for a place.
    names.push("well");
    let bus = driver.bus(&names);
    let mut monitor = Monitor::new(&bus);
    for name in &hung {
        driver.answer(name, Answer::Hangs);
        monitor = monitor.rule(Rule::depth(Source::queue(name.as_str())).above(1));
    }
    driver.answer("well", Answer::Counts(10, 0));
    let running = Running::start(told.sink(monitor.rule(Rule::depth(Source::queue("well")).above(1))));
    polls(20).await;
    // Its first poll may be lost to those that took all places; from then on they have places of their own.
    let asked = driver.asked("well");
    assert!(asked.len() >= 19, "{}", asked.len());
    for pair in asked.windows(2) {
        assert!(pair[1] - pair[0] <= Duration::from_secs(16), "{:?}", pair[1] - pair[0]);
    }
    assert_eq!(told.of(AlertKind::Depth).len(), 1);
    // Each of the others is unknown, though not each was asked five times.
    let unknown = told.of(AlertKind::Unknown);
    assert_eq!(unknown.len(), 40);
    assert!(unknown.iter().all(|alert| alert.cause == Some("Timeout")));
    // When they answer again, all of them do.
    for name in &hung {
        driver.answer(name, Answer::Counts(0, 0));
    }
    polls(14).await;
    assert_eq!(told.of(AlertKind::Unknown).len(), 80, "all are resolved");
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_poll_has_four_fifths_of_the_interval_and_none_overlap() {
    let (driver, told) = (Scripted::new(), Told::default());
    let bus = driver.bus(&["slow", "slower"]);
    // 8 s is within the limit of 8 s, and 9 s is not.
    driver.answer("slow", Answer::Takes(Duration::from_millis(7_900), 10));
    driver.answer("slower", Answer::Takes(Duration::from_millis(8_100), 10));
    let rule = |queue| Rule::depth(Source::queue(queue)).above(1).held_for(1);
    let monitor = Monitor::new(&bus).every(Duration::from_secs(10)).rule(rule("slow")).rule(rule("slower"));
    let running = Running::start(told.sink(monitor));
    tokio::time::sleep(Duration::from_secs(59)).await;
    let lines = told.lines();
    assert_eq!(lines, vec![line(7, "depth queue:slow", "firing"), line(48, "unknown queue:slower", "firing")]);
    for queue in ["slow", "slower"] {
        let asked = driver.asked(queue);
        assert_eq!(asked.len(), 6, "{queue}");
        assert!(asked.windows(2).all(|pair| pair[1] - pair[0] == Duration::from_secs(10)));
    }
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_panics_is_unknown() {
    let (driver, told) = (Scripted::new(), Told::default());
    driver.answer("payments", Answer::Panics);
    let running = Running::start(
        told.sink(Monitor::new(&driver.bus(&["payments"])).rule(Rule::dead_letters(Source::queue("payments")))),
    );
    polls(5).await;
    assert_eq!(told.all().iter().map(|alert| alert.cause).collect::<Vec<_>>(), [Some("Panicked")]);
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn all_rules_about_a_source_share_its_polls() {
    let driver = Scripted::new();
    let payments = Source::queue("payments");
    let monitor = Monitor::new(&driver.bus(&["payments"]))
        .rule(Rule::depth(&payments).above(1))
        .rule(Rule::growth(&payments).above(1))
        .rule(Rule::dead_letters(&payments));
    let running = Running::start(monitor);
    polls(3).await;
    assert_eq!(running.end().await.polls, 4);
    assert_eq!(driver.asked("payments").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn ends_when_the_bus_is_closed_and_on_a_shutdown_at_once() {
    let (driver, told) = (Scripted::new(), Told::default());
    let bus = driver.bus(&["payments"]);
    let rule = || Rule::dead_letters(Source::queue("payments"));
    let running = Running::start(told.sink(Monitor::new(&bus).rule(rule())));
    polls(1).await;
    bus.close().await.unwrap();
    let error = running.task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(told.lines(), vec![], "somebody closed it on purpose");

    driver.answer("payments", Answer::Hangs);
    let running = Running::start(Monitor::new(&driver.bus(&["payments"])).rule(rule()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    running.end().await;
    assert_eq!(start.elapsed(), Duration::ZERO, "no poll that hangs is waited for");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_dropped_polls_no_more() {
    let driver = Scripted::new();
    let told = Told::default();
    let rule = Rule::depth(Source::queue("payments")).above(0).held_for(1);
    let running = Running::start(told.sink(Monitor::new(&driver.bus(&["payments"])).rule(rule)));
    polls(2).await;
    running.task.abort();
    assert!(running.task.await.is_err());
    let asked = driver.asked("payments").len();
    driver.answer("payments", Answer::Counts(10, 0));
    polls(10).await;
    assert_eq!((driver.asked("payments").len(), told.lines()), (asked, vec![]));
}

/// To wait for a place and to ask have one limit together.
#[tokio::test(start_paused = true)]
async fn a_poll_that_waits_for_a_place_has_no_longer_than_others() {
    let (driver, told) = (Scripted::new(), Told::default());
    let names: Vec<String> = (0..17).map(|n| format!("q{n}")).collect();
    let bus = driver.bus(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let rule = |name: &String| Rule::depth(Source::queue(name.as_str())).above(1).held_for(1);
    // Sixteen take all places for 6 s; the last one asks after that, and takes 6 s too, which is 12 s in all.
    names.iter().for_each(|name| driver.answer(name, Answer::Takes(Duration::from_secs(6), 5)));
    let monitor = names.iter().map(rule).fold(Monitor::new(&bus), Monitor::rule);
    let running = Running::start(told.sink(monitor));
    tokio::time::sleep(Duration::from_secs(14)).await;
    assert_eq!(told.lines().len(), 16);
    assert_eq!(running.end().await.failed, 1, "it was given up after 10 s");
}
