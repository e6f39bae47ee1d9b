//! Declaring at a broker that is not ready yet.

use std::{sync::atomic::Ordering, time::Duration};

use polybus_core::{topology::*, *};
use tokio::time::{Instant, timeout};

use crate::script::{Scripted, scripted};

fn not_ready() -> Error {
    Error::new(ErrorKind::Unavailable, "starting").safe()
}

/// A bus that can declare, whose first declares answer this, each after a while.
fn bus(answers: Vec<(Duration, Error)>) -> (Scripted, Bus) {
    let s = scripted(|s| {
        s.capabilities.get_mut().unwrap().declare = true;
        s.declares.get_mut().unwrap().extend(answers);
    });
    let mut options = BusOptions::topology(Topology::new().queue("q", QueueSpec::new()));
    options.publish_timeout = Duration::from_secs(10);
    let bus = s.bus(options);
    (s, bus)
}

fn declared(s: &Scripted) -> usize {
    s.0.declared.load(Ordering::SeqCst)
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_a_broker_that_is_not_ready() {
    let (s, bus) = bus(vec![(Duration::ZERO, not_ready()); 5]);
    bus.declare().await.unwrap();
    assert_eq!(declared(&s), 6);
    s.0.declares.lock().unwrap().push_back((Duration::ZERO, not_ready()));
    bus.verify().await.unwrap();
    assert_eq!(declared(&s), 8);
}

#[tokio::test(start_paused = true)]
async fn it_waits_up_to_the_publish_timeout_and_says_why() {
    let (s, bus) = bus(vec![(Duration::ZERO, not_ready()); 1000]);
    let began = Instant::now();
    let e = bus.declare().await.unwrap_err();
    assert_eq!((e.kind(), e.retry(), e.operation()), (ErrorKind::Unavailable, RetrySafety::Safe, "declare"));
    assert_eq!((e.backend(), e.message()), ("script", "starting"));
    let (took, asked) = (began.elapsed(), declared(&s));
    assert!((8..=10).contains(&took.as_secs()) && (5..30).contains(&asked), "{asked} times in {took:?}");
}

#[tokio::test(start_paused = true)]
async fn everything_else_is_told_at_once() {
    let kinds = [
        ErrorKind::PermissionDenied,
        ErrorKind::Unauthenticated,
        ErrorKind::AlreadyExists,
        ErrorKind::ConfigInvalid,
        ErrorKind::Unexpected,
    ];
    let others = kinds.map(|kind| Error::new(kind, "no")).into_iter().chain([
        Error::new(ErrorKind::Unavailable, "for good"),
        Error::new(ErrorKind::Unavailable, "halfway").may_duplicate(),
        Error::new(ErrorKind::Timeout, "no answer").safe(),
        Error::new(ErrorKind::Throttled, "slower").may_duplicate(),
    ]);
    for other in others {
        let (s, bus) = bus(vec![(Duration::ZERO, other.clone())]);
        let began = Instant::now();
        let e = bus.declare().await.unwrap_err();
        assert_eq!((e.kind(), e.retry(), declared(&s)), (other.kind(), other.retry(), 1));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_declaration_is_not_cut_short() {
    let denied = Error::new(ErrorKind::PermissionDenied, "no");
    let (s, bus) = bus(vec![(Duration::ZERO, not_ready()), (Duration::from_secs(60), denied)]);
    assert_eq!(bus.declare().await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(declared(&s), 2);
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_bus_or_its_caller() {
    let (s, bus) = bus(vec![(Duration::ZERO, not_ready()); 1000]);
    assert!(timeout(Duration::from_secs(1), bus.declare()).await.is_err());
    let asked = declared(&s);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(declared(&s), asked, "a declare goes on though nobody waits for it");
    let waiting = bus.clone();
    let waiting = tokio::spawn(async move { waiting.declare().await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    bus.close().await.unwrap();
    let e = waiting.await.unwrap().unwrap_err();
    assert_eq!((e.kind(), e.operation()), (ErrorKind::Closed, "declare"));
}
