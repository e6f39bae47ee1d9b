//! A monitor, a worker and messages on the memory driver.

use std::{sync::Arc, time::Duration};

use polybus_core::{
    Address, Bus, BusOptions, Envelope, HandlerContext, HandlerError, QueueSpec, Source, Topology, memory::MemoryDriver,
};
use polybus_patterns::monitor::{AgeGauge, AlertKind, Monitor, Rule};
use tokio::sync::{Semaphore, oneshot};

use crate::scripted::{Running, Told, line, polls};

async fn bus() -> Bus {
    let topology = Topology::new().queue("payments", QueueSpec::new().max_deliveries(1));
    let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology)).unwrap();
    bus.declare().await.unwrap();
    bus
}

fn payments() -> Source {
    Source::queue("payments")
}

async fn publish(bus: &Bus, messages: usize) {
    for _ in 0..messages {
        bus.publish(Address::queue("payments"), Envelope::new("payment.made", "secret").time(bus.now())).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_fires_and_a_purge_resolves() {
    let (bus, told) = (bus().await, Told::default());
    let rule = Rule::dead_letters(payments()).named("letters").held_for(1);
    let running = Running::start(told.sink(Monitor::new(&bus).rule(rule)));
    publish(&bus, 2).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = bus.worker(payments()).with_graceful_shutdown(async { drop(stopped.await) });
    let fails = |_: HandlerContext, _: Envelope| async { Err(HandlerError::from("no")) };
    let worker = tokio::spawn(worker.run(fails));
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(told.lines().len(), 1);
    assert_eq!(told.all()[0].value, Some(2.0));
    stop.send(()).unwrap();
    assert_eq!(worker.await.unwrap().unwrap().dead_lettered, 2);
    bus.purge(payments().dead_letters()).await.unwrap();
    polls(1).await;
    assert_eq!(told.lines()[1..], [line(45, "letters", "resolved")]);
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_is_deleted_is_unknown_and_its_alert_stays() {
    let (bus, told) = (bus().await, Told::default());
    publish(&bus, 5).await;
    let rule = Rule::depth(payments()).named("backlog").above(1).held_for(1);
    let running = Running::start(told.sink(Monitor::new(&bus).rule(rule)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    bus.delete().await.unwrap();
    polls(5).await;
    let wanted = [line(0, "backlog", "firing"), line(75, "unknown queue:payments", "firing")];
    assert_eq!(told.lines(), wanted);
    assert_eq!(told.all()[1].cause, Some("NotFound"));
    bus.declare().await.unwrap();
    polls(3).await;
    let wanted = [line(90, "backlog", "resolved"), line(120, "unknown queue:payments", "resolved")];
    assert_eq!(told.lines()[2..], wanted);
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_shows_in_the_age_and_one_that_works_does_not() {
    let (bus, told) = (bus().await, Told::default());
    let gauge = AgeGauge::new(&bus, payments());
    let rule = Rule::age(payments()).named("age").above(Duration::from_secs(60)).held_for(1);
    let running = Running::start(told.sink(Monitor::new(&bus).rule(rule).age_gauge(&gauge)));
    // A worker with one place, and handlers that wait for the test.
    let open = Arc::new(Semaphore::new(0));
    let waits = open.clone();
    let handler = move |_: HandlerContext, _: Envelope| {
        let open = waits.clone();
        async move {
            open.acquire().await.unwrap().forget();
            Ok(())
        }
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let worker =
        bus.worker(payments()).concurrency(1).prefetch(1).with_graceful_shutdown(async { drop(stopped.await) });
    let worker = tokio::spawn(worker.run(gauge.watch(handler)));

    // Hours of quiet, then a message each 15 s that is handled at once.
    tokio::time::sleep(Duration::from_secs(7200)).await;
    open.add_permits(20);
    for _ in 0..20 {
        publish(&bus, 1).await;
        polls(1).await;
    }
    assert_eq!(told.lines(), vec![]);
    assert!(gauge.last_age().is_some_and(|age| age < Duration::from_secs(1)));

    // The handlers hang, and messages wait.
    publish(&bus, 5).await;
    polls(4).await;
    assert_eq!(told.lines(), vec![], "not yet a minute");
    polls(2).await;
    let alerts = told.of(AlertKind::Age);
    assert_eq!(alerts.len(), 1);
    assert!(alerts[0].value.is_some_and(|age| (60.0..=91.0).contains(&age)), "{:?}", alerts[0].value);

    // The next poll sees how old they were when they were handed over, and the one after it that nothing waits.
    open.add_permits(100);
    polls(3).await;
    assert_eq!(told.of(AlertKind::Age).len(), 2, "resolved");
    stop.send(()).unwrap();
    worker.await.unwrap().unwrap();
    running.end().await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_and_a_message_without_a_time_say_nothing_of_age() {
    let bus = bus().await;
    let gauge = AgeGauge::new(&bus, payments());
    let message = Envelope::new("payment.made", "{}");
    gauge.handed_over(&message.clone().edit(|fields| fields.time = None), 1);
    assert_eq!(gauge.last_age(), None);
    let old = message.clone().time(bus.now() - Duration::from_secs(600));
    gauge.handed_over(&old, 2);
    assert_eq!(gauge.last_age(), None);
    gauge.handed_over(&old, 1);
    assert_eq!(gauge.last_age(), Some(Duration::from_secs(600)));
    // A producer's clock that is ahead.
    gauge.handed_over(&message.time(bus.now() + Duration::from_secs(600)), 1);
    assert_eq!(gauge.last_age(), Some(Duration::ZERO));
}

/// All handlers hang, and everything is fetched: nothing waits, and nothing is done.
#[tokio::test(start_paused = true)]
async fn handlers_that_hang_show_in_the_age_though_nothing_waits() {
    let (bus, told) = (bus().await, Told::default());
    let gauge = AgeGauge::new(&bus, payments());
    let rule = Rule::age(payments()).named("age").above(Duration::from_secs(60)).held_for(1);
    let running = Running::start(told.sink(Monitor::new(&bus).rule(rule).age_gauge(&gauge)));
    let (stop, stopped) = oneshot::channel::<()>();
    let open = Arc::new(Semaphore::new(0));
    let waits = open.clone();
    let handler = move |_: HandlerContext, _: Envelope| {
        let open = waits.clone();
        async move {
            open.acquire().await.unwrap().forget();
            Ok(())
        }
    };
    let worker = bus.worker(payments()).concurrency(8).with_graceful_shutdown(async { drop(stopped.await) });
    let worker = tokio::spawn(worker.run(gauge.watch(handler)));
    publish(&bus, 3).await;
    polls(6).await;
    assert_eq!(bus.stats(payments()).await.unwrap().ready, Some(0));
    assert_eq!(told.lines(), vec![line(75, "age", "firing")]);
    polls(40).await;
    assert_eq!(told.lines().len(), 1, "it does not resolve while they hang");
    open.add_permits(3);
    polls(2).await;
    assert_eq!(told.lines().len(), 2, "resolved");
    stop.send(()).unwrap();
    worker.await.unwrap().unwrap();
    running.end().await;
}
