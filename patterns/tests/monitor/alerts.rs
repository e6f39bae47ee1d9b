//! What fires, what resolves, and what is unknown.

use std::time::Duration;

use polybus_core::{Error, ErrorKind, Source};
use polybus_patterns::monitor::{AlertKind, AlertState, Monitor, Rule};

use crate::scripted::{Answer, Running, Scripted, Told, line, polls};

fn payments() -> Source {
    Source::queue("payments")
}

fn backlog() -> Rule {
    Rule::depth(payments()).named("backlog").above(100).clear_below(50)
}

#[tokio::test(start_paused = true)]
async fn noise_around_a_threshold_fires_one_alert() {
    let (driver, told) = (Scripted::new(), Told::default());
    driver.answer("payments", Answer::Counts(99, 0));
    let monitor = told.sink(Monitor::new(&driver.bus(&["payments"])).rule(backlog()));
    let running = Running::start(monitor);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for depth in [101, 99, 102, 98, 103, 97, 104, 60, 130, 51, 101, 99] {
        driver.answer("payments", Answer::Counts(depth, 0));
        polls(1).await;
    }
    // Polls above at 15, 45 and 75 s.
    assert_eq!(told.lines(), vec![line(75, "backlog", "firing")]);
    driver.answer("payments", Answer::Counts(50, 0));
    polls(2).await;
    assert_eq!(told.lines()[1..], [line(195, "backlog", "resolved")]);
    let alert = &told.all()[0];
    assert_eq!((alert.value, alert.threshold, alert.source.as_str()), (Some(103.0), Some(100.0), "queue:payments"));
    assert_eq!((alert.kind, alert.backend, alert.cause), (AlertKind::Depth, "memory", None));
    assert_eq!(alert.at - alert.since, Duration::from_secs(60), "since the first poll above");
    assert_eq!(told.all()[1].since, alert.since);
    let report = running.end().await;
    assert_eq!((report.fired, report.resolved, report.failed, report.sent, report.dropped), (1, 1, 0, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_is_unknown_and_resolves_nothing() {
    let (driver, told) = (Scripted::new(), Told::default());
    driver.answer("payments", Answer::Counts(500, 0));
    let remind = Duration::from_secs(60);
    let monitor = told.sink(Monitor::new(&driver.bus(&["payments"])).rule(backlog().held_for(1)).remind_every(remind));
    let running = Running::start(monitor);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(told.lines(), vec![line(0, "backlog", "firing")]);

    driver.answer("payments", Answer::Fails(ErrorKind::Unavailable));
    polls(4).await;
    assert_eq!(told.lines().len(), 1, "four failed polls are no alert, and no reminder comes meanwhile");
    polls(1).await;
    assert_eq!(told.lines()[1..], [line(75, "unknown queue:payments", "firing")]);
    assert_eq!(told.all()[1].cause, Some("Unavailable"));
    assert_eq!((told.all()[1].value, told.all()[1].threshold), (None, None));
    polls(6).await;
    assert_eq!(told.lines()[2..], [line(135, "unknown queue:payments", "reminder")], "of the unknown one alone");

    // It is back, and the backlog is still there: that one was never resolved, and is not fired again.
    driver.answer("payments", Answer::Counts(500, 0));
    polls(1).await;
    assert_eq!(told.lines()[3..], [line(180, "backlog", "reminder")]);
    driver.answer("payments", Answer::Counts(0, 0));
    polls(1).await;
    // Two answers resolve it not yet, and it was time to remind.
    let reminder = line(195, "unknown queue:payments", "reminder");
    assert_eq!(told.lines()[4..], [reminder, line(195, "backlog", "resolved")]);
    polls(1).await;
    assert_eq!(told.lines()[6..], [line(210, "unknown queue:payments", "resolved")], "the third answer in a row");
    let report = running.end().await;
    assert_eq!((report.fired, report.resolved, report.failed), (2, 2, 11));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_comes_and_goes_makes_one_unknown_alert() {
    let (driver, told) = (Scripted::new(), Told::default());
    driver.answer("payments", Answer::Fails(ErrorKind::Unavailable));
    let running = Running::start(told.sink(Monitor::new(&driver.bus(&["payments"])).rule(backlog())));
    tokio::time::sleep(Duration::from_secs(1)).await;
    polls(4).await;
    for _ in 0..5 {
        driver.answer("payments", Answer::Counts(500, 0));
        polls(2).await;
        driver.answer("payments", Answer::Fails(ErrorKind::Unavailable));
        polls(5).await;
    }
    assert_eq!(told.lines(), vec![line(60, "unknown queue:payments", "firing")]);
    // Holds count while it still fires.
    driver.answer("payments", Answer::Counts(500, 0));
    polls(3).await;
    let (known, fired) = (line(630, "unknown queue:payments", "resolved"), line(630, "backlog", "firing"));
    assert_eq!(told.lines()[1..], [known, fired]);
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn failed_polls_neither_count_for_a_hold_nor_end_it_until_all_is_unknown() {
    let (driver, told) = (Scripted::new(), Told::default());
    driver.answer("payments", Answer::Counts(500, 0));
    let running = Running::start(told.sink(Monitor::new(&driver.bus(&["payments"])).rule(backlog())));
    tokio::time::sleep(Duration::from_secs(1)).await;
    polls(1).await; // two polls above
    driver.answer("payments", Answer::Fails(ErrorKind::Timeout));
    polls(4).await;
    assert_eq!(told.lines(), vec![]);
    driver.answer("payments", Answer::Counts(500, 0));
    polls(1).await;
    assert_eq!(told.lines(), vec![line(90, "backlog", "firing")], "the third");
    driver.answer("payments", Answer::Counts(0, 0));
    polls(1).await;
    driver.answer("payments", Answer::Counts(500, 0));
    polls(2).await; // two polls above
    driver.answer("payments", Answer::Fails(ErrorKind::Timeout));
    polls(5).await;
    driver.answer("payments", Answer::Counts(500, 0));
    polls(2).await;
    let fired = || told.of(AlertKind::Depth).iter().filter(|alert| alert.state == AlertState::Firing).count();
    assert_eq!(fired(), 1, "what pended was forgotten: this is the second poll of a hold that began anew");
    polls(1).await;
    assert_eq!(fired(), 2);
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_broker_does_not_tell_is_unknown_and_not_zero() {
    let (driver, told) = (Scripted::new(), Told::default());
    driver.answer("payments", Answer::Counts(500, 3));
    let letters = Rule::dead_letters(payments()).named("letters").held_for(1);
    let monitor = Monitor::new(&driver.bus(&["payments"])).rule(letters).rule(backlog().held_for(1));
    let running = Running::start(told.sink(monitor));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(told.lines(), vec![line(0, "letters", "firing"), line(0, "backlog", "firing")]);
    // As RabbitMQ answers while somebody goes through the dead letters.
    driver.answer("payments", Answer::DepthAlone(10));
    polls(5).await;
    let wanted = [line(15, "backlog", "resolved"), line(75, "unknown letters", "firing")];
    assert_eq!(told.lines()[2..], wanted, "the other rule of the source goes on");
    assert_eq!(told.all()[3].cause, Some("NotTold"));
    driver.answer("payments", Answer::Counts(10, 0));
    polls(3).await;
    assert_eq!(told.lines()[4..], [line(90, "letters", "resolved"), line(120, "unknown letters", "resolved")]);
    assert_eq!(running.end().await.failed, 0);
}

#[tokio::test(start_paused = true)]
async fn the_cause_says_what_is_missing_and_shows_no_text_of_an_error() {
    for kind in [ErrorKind::NotFound, ErrorKind::PermissionDenied, ErrorKind::Unauthenticated] {
        let (driver, told) = (Scripted::new(), Told::default());
        driver.answer("payments", Answer::Fails(kind));
        let running = Running::start(told.sink(Monitor::new(&driver.bus(&["payments"])).rule(backlog())));
        polls(5).await;
        running.end().await;
        let alerts = told.all();
        assert_eq!((alerts.len(), alerts[0].cause), (1, Some(kind.as_str())));
        assert!(!format!("{:?} {}", alerts[0], alerts[0]).contains("hunter2"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_measurement_that_fails_panics_or_is_no_number_is_unknown() {
    let (driver, told) = (Scripted::new(), Told::default());
    let monitor = Monitor::new(&driver.bus(&[]))
        .rule(Rule::measure("fails", async || Err(Error::invalid("no"))).above(1))
        .rule(Rule::measure("panics", async || panic!("no")).above(1))
        .rule(Rule::measure("nan", async || Ok(Some(f64::NAN))).above(1))
        .rule(Rule::measure("none", async || Ok(None)).above(1))
        .rule(Rule::measure("hangs", std::future::pending).above(1))
        .rule(Rule::measure("well", async || Ok(Some(2.0))).above(1));
    let running = Running::start(told.sink(monitor));
    polls(6).await;
    running.end().await;
    let mut unknown: Vec<_> = told.of(AlertKind::Unknown).into_iter().map(|a| (a.name, a.cause.unwrap())).collect();
    unknown.sort();
    let wanted = [
        ("unknown fails", "InvalidArgument"),
        ("unknown hangs", "Timeout"),
        ("unknown nan", "NotTold"),
        ("unknown none", "NotTold"),
        ("unknown panics", "Panicked"),
    ];
    assert_eq!(unknown, wanted.map(|(name, cause)| (name.to_owned(), cause)));
    assert_eq!(told.of(AlertKind::Measure).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn growth_and_rising_dead_letters_look_over_their_window() {
    let (driver, told) = (Scripted::new(), Told::default());
    let window = Duration::from_secs(60);
    let growth = Rule::growth(payments()).named("growth").over(window).above(100).clear_below(0).held_for(1);
    let rising = Rule::dead_letters_rising(payments()).named("rising").over(window).above(5).held_for(1);
    driver.answer("payments", Answer::Counts(0, 1000));
    let running = Running::start(told.sink(Monitor::new(&driver.bus(&["payments"])).rule(growth).rule(rising)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    // 50 messages in each 15 s are 200 a minute; letters are old but for four.
    for n in 1..=4 {
        driver.answer("payments", Answer::Counts(50 * n, 1000 + n));
        polls(1).await;
    }
    assert_eq!(told.lines(), vec![line(60, "growth", "firing")]);
    assert_eq!(told.all()[0].value, Some(200.0));
    driver.answer("payments", Answer::Counts(200, 1007));
    polls(1).await;
    assert_eq!(told.lines()[1..], [line(75, "rising", "firing")]);
    polls(4).await;
    assert_eq!(told.lines()[2..], [line(105, "rising", "resolved"), line(120, "growth", "resolved")]);
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_dead_letters_fires_whatever_the_interval() {
    for every in [15, 150, 299] {
        let (driver, told) = (Scripted::new(), Told::default());
        driver.answer("payments", Answer::Counts(0, 5));
        let rule = Rule::dead_letters_rising(payments()).named("rising");
        let monitor = Monitor::new(&driver.bus(&["payments"])).every(Duration::from_secs(every)).rule(rule);
        let running = Running::start(told.sink(monitor));
        tokio::time::sleep(Duration::from_secs(1)).await;
        driver.answer("payments", Answer::Counts(0, 6));
        tokio::time::sleep(Duration::from_secs(every)).await;
        assert_eq!(told.lines(), vec![line(every, "rising", "firing")]);
        tokio::time::sleep(Duration::from_secs(10 * every.max(60))).await;
        assert_eq!(told.lines().len(), 2, "and resolves when the window has passed");
        running.end().await;
    }
}
