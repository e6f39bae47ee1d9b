//! A deployment that is rolled back from version 3 to version 2 loses nothing.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{
    Bus, Envelope, HandlerError, QueueSpec, RetryPolicy,
    redrive::{RedriveOptions, RedriveVerdict},
    stateful,
};
use polybus_patterns::types::{Router, Types, Unknown};
use tokio::sync::oneshot;

use crate::events::{
    PlacedV2, PlacedV3, Seen, bus, dead_letters, orders, publish, redrive, see, seen, types_v2, types_v3, v1, v2, v3,
    work,
};

fn code_v2(types: &Types, got: &Seen) -> Router<Seen> {
    types.router(got.clone()).on(async |got, _cx, placed: PlacedV2| {
        see(&got, placed.order);
        Ok(())
    })
}

fn code_v3(got: &Seen) -> Router<Seen> {
    types_v3().router(got.clone()).on(async |got, _cx, placed: PlacedV3| {
        assert_eq!((placed.cents, &*placed.currency), (1200, "EUR"));
        see(&got, placed.order);
        Ok(())
    })
}

/// Orders of all three versions: producers are deployed one by one.
async fn produce(bus: &Bus, orders: std::ops::Range<u32>) {
    for n in orders {
        let order = n.to_string();
        let message = match n % 3 {
            0 => Envelope::event(&v1(&order)),
            1 => Envelope::event(&v2(&order)),
            _ => Envelope::event(&v3(&order)),
        };
        publish(bus, message.unwrap()).await;
    }
}

/// Why the router is shipped with version 1: what a build without one says of a newer version is said of much else.
#[tokio::test(start_paused = true)]
async fn a_build_without_a_router_gives_newer_versions_other_reasons() {
    let (bus, _driver) = bus(QueueSpec::new().max_deliveries(2)).await;
    let newer = || Envelope::event(&v3("o")).unwrap();
    publish(&bus, newer()).await;
    let plain = stateful((), async |(), _cx, msg| {
        msg.decode::<PlacedV2>()?;
        Ok(())
    });
    let report = work(&bus, plain).await;
    assert_eq!((report.retried, dead_letters(&bus).await[0].0.as_str()), (1, "max-deliveries-exceeded"));
    publish(&bus, newer()).await;
    let permanent = stateful((), async |(), _cx, msg| {
        msg.decode::<PlacedV2>().map_err(HandlerError::permanent)?;
        Ok(())
    });
    let report = work(&bus, permanent).await;
    assert_eq!((report.retried, dead_letters(&bus).await[0].0.as_str()), (0, "permanent"));
}

/// The redrive filter of the page takes both reasons: to a build from before an alias the new name is no version.
#[tokio::test(start_paused = true)]
async fn a_rollback_to_before_an_alias_leaves_unknown_types() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    let got = Seen::default();
    publish(&bus, Envelope::event(&v2("o")).unwrap().edit(|fields| fields.event_type = "order.created".into())).await;
    assert_eq!(work(&bus, code_v2(&types_v2(), &got)).await.dead_lettered, 1);
    let report = bus
        .redrive_each(orders(), RedriveOptions::new(), |letter| match letter.reason() {
            Some("unknown-version" | "unknown-type") => RedriveVerdict::Redrive,
            _ => RedriveVerdict::Keep,
        })
        .await
        .unwrap();
    assert_eq!(report.moved, 1);
    let types = types_v2().alias::<PlacedV2>("order.created");
    assert_eq!(work(&bus, code_v2(&types, &got)).await.succeeded, 1);
    assert_eq!(seen(&got), ["o"]);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_loses_nothing() {
    let (bus, _driver) = bus(QueueSpec::new()).await;
    let got = Seen::default();
    produce(&bus, 0..30).await;
    assert_eq!(work(&bus, code_v3(&got)).await.succeeded, 30);

    // The consumers go back to version 2, the producers do not.
    produce(&bus, 30..90).await;
    let report = work(&bus, code_v2(&types_v2(), &got)).await;
    assert_eq!((report.succeeded, report.dead_lettered), (40, 20));
    let stats = bus.stats(orders()).await.unwrap();
    assert_eq!((stats.ready, stats.dead_lettered), (Some(0), Some(20)));

    // Whoever redrives too early has them back, and no more than that.
    assert_eq!(redrive(&bus).await, 20);
    assert_eq!(work(&bus, code_v2(&types_v2(), &got)).await.dead_lettered, 20);

    // Version 3 comes again, and what is dead is redriven.
    produce(&bus, 90..120).await;
    assert_eq!(redrive(&bus).await, 20);
    let report = work(&bus, code_v3(&got)).await;
    assert_eq!((report.succeeded, report.dead_lettered), (50, 0));
    assert_eq!(bus.stats(orders()).await.unwrap().dead_lettered, Some(0));
    let all = seen(&got);
    assert_eq!(all.len(), 120, "none twice");
    let all: BTreeSet<String> = all.into_iter().collect();
    assert_eq!(all, (0..120).map(|n| n.to_string()).collect(), "none lost");
}

async fn of_one_key(bus: &Bus) {
    for (n, message) in
        [Envelope::event(&v2("1")), Envelope::event(&v3("2")), Envelope::event(&v2("3"))].into_iter().enumerate()
    {
        publish(bus, message.unwrap().key("order-7").id(format!("{n}"))).await;
    }
}

/// Runs a worker until the condition holds.
async fn work_until(bus: &Bus, router: Router<Seen>, condition: impl Fn() -> bool) {
    let (stop, stopped) = oneshot::channel::<()>();
    let worker = bus.worker(orders()).retry(RetryPolicy::fixed(Duration::from_secs(1)));
    let worker = worker.with_graceful_shutdown(async move { drop(stopped.await) });
    let worker = tokio::spawn(worker.run(router));
    let began = tokio::time::Instant::now();
    while !condition() {
        assert!(began.elapsed() < Duration::from_secs(3600), "in vain");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Time for what should not come.
    tokio::time::sleep(Duration::from_secs(100)).await;
    stop.send(()).unwrap();
    worker.await.unwrap().unwrap();
}

/// As the docs say: a dead letter lets its key go on.
#[tokio::test(start_paused = true)]
async fn dead_letters_cost_the_order_of_their_key() {
    let (bus, _driver) = bus(QueueSpec::new().ordered(true)).await;
    let got = Seen::default();
    of_one_key(&bus).await;
    work(&bus, code_v2(&types_v2(), &got)).await;
    redrive(&bus).await;
    work(&bus, code_v3(&got)).await;
    assert_eq!(seen(&got), ["1", "3", "2"]);
}

#[tokio::test(start_paused = true)]
async fn trying_again_keeps_the_order_of_the_key() {
    let queue = QueueSpec::new().ordered(true).max_deliveries(100).max_hold(Duration::from_secs(60));
    let (bus, _driver) = bus(queue).await;
    let got = Seen::default();
    of_one_key(&bus).await;
    let types = types_v2().unknown_version(Unknown::RetryAfter(Duration::from_secs(30)));
    let first = got.clone();
    work_until(&bus, code_v2(&types, &got), || !first.lock().unwrap().is_empty()).await;
    assert_eq!(*got.lock().unwrap(), ["1"], "the third waits behind the second");
    work(&bus, code_v3(&got)).await;
    assert_eq!(seen(&got), ["1", "2", "3"]);
    assert!(dead_letters(&bus).await.is_empty());
}
