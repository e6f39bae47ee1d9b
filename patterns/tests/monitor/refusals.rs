//! What is refused before the first poll.

use std::time::Duration;

use polybus_core::{ErrorKind, Source};
use polybus_patterns::monitor::{AgeGauge, Monitor, Rule, TracingSink};

use crate::scripted::Scripted;

fn payments() -> Source {
    Source::queue("payments")
}

async fn refused(monitor: Monitor) -> (ErrorKind, String) {
    let error = monitor.run(tokio::time::sleep(Duration::from_secs(1))).await.unwrap_err();
    (error.kind(), error.to_string())
}

#[tokio::test(start_paused = true)]
async fn rules_and_settings_that_cannot_work() {
    let driver = Scripted::new();
    let bus = driver.bus(&["payments"]);
    let with = |rule: Rule| Monitor::new(&bus).rule(rule);
    let depth = || Rule::depth(payments());
    let rising = || Rule::dead_letters_rising(payments());
    for (monitor, word) in [
        (Monitor::new(&bus), "has no rule"),
        (with(depth()), "set above"),
        (with(depth().above(f64::NAN)), "finite"),
        (with(depth().above(10).clear_below(11)), "must not be higher"),
        (with(depth().above(10).held_for(0)), "0 polls"),
        (with(depth().above(10).keep_firing_for(0)), "0 polls"),
        (with(depth().above(10).over(Duration::ZERO)), "over"),
        (with(depth().above(10).over(Duration::from_secs(86_401))), "at most 1 day"),
        (with(depth().above(-1)), "below 0"),
        (with(depth().above(0).clear_below(-1)), "ever comes down"),
        (with(rising().held_for(3)).every(Duration::from_secs(150)), "held_for shorter"),
        (with(rising().held_for(Duration::from_secs(300))), "held_for shorter"),
        (with(rising().held_for(Duration::from_secs(1))).every(Duration::from_secs(300)), "held_for shorter"),
        (with(depth().above(1)).rule(depth().above(2).named("unknown queue:payments")), "two alerts are named"),
        (with(depth().above(1)).rule(depth().above(2).named("queue:payments")), "two alerts are named"),
        (with(depth().above(1).named("a")).rule(depth().above(2).named("unknown a")), "two alerts are named"),
        (with(depth().above(1)).sink(TracingSink::default()).sink(TracingSink::default()), "two sinks are named"),
        (with(depth().above(10).named("")), "1 to 200"),
        (with(depth().above(10).named("a\nb")), "control"),
        (with(Rule::depth(payments().dead_letters()).above(10)), "use the rule dead_letters of queue:payments"),
        (with(depth().above(10)).rule(depth().above(20)), "two rules are named"),
        (with(Rule::age(payments()).above(10)), "needs an AgeGauge of queue:payments"),
        (with(depth().above(10)).every(Duration::from_millis(999)), "from 1 s to 1 day"),
        (with(depth().above(10)).every(Duration::MAX), "from 1 s to 1 day"),
        (with(depth().above(10)).remind_every(Duration::ZERO), "remind_every"),
        (with(depth().above(10)).unknown_after(1), "one failed poll is no alert"),
        (with(depth().above(10)).named("Shop"), "a-z"),
    ] {
        let (kind, text) = refused(monitor).await;
        assert!(kind == ErrorKind::ConfigInvalid && text.contains(word), "{word}: {text}");
    }
    assert_eq!(driver.asked("payments"), vec![], "before the first poll");
    // And those at the limit are not refused.
    let gauge = AgeGauge::new(&bus, payments());
    let monitor = with(depth().above(10).clear_below(10).held_for(1).named("a".repeat(200)))
        .rule(depth().above(20))
        .rule(depth().above(1).over(Duration::from_secs(86_400)).named("day"))
        .rule(rising().over(Duration::from_millis(2_001)).held_for(3))
        .rule(rising().held_for(Duration::from_secs(299)).named("long"))
        .rule(Rule::growth(payments()).above(0).clear_below(-5))
        .rule(Rule::measure("cold", async || Ok(Some(-20.0))).above(-18))
        .rule(Rule::age(payments()).above(Duration::from_secs(1)))
        .age_gauge(&gauge)
        .every(Duration::from_secs(1))
        .unknown_after(2)
        .remind_every(None);
    monitor.run(tokio::time::sleep(Duration::from_secs(1))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_tells_no_counts_has_measurements_alone() {
    let bus = Scripted::without_stats().bus(&["payments"]);
    let (kind, text) = refused(Monitor::new(&bus).rule(Rule::dead_letters(payments()))).await;
    assert!(kind == ErrorKind::Unsupported && text.contains("tells no counts"), "{text}");
    let measured = Monitor::new(&bus).rule(Rule::measure("own", async || Ok(Some(1.0))).above(0).held_for(1));
    assert_eq!(measured.run(tokio::time::sleep(Duration::from_secs(1))).await.unwrap().fired, 1);
}
