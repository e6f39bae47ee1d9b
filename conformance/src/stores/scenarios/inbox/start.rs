//! What a worker with an inbox is refused at its start.

use std::{future::ready, time::Duration};

use polybus_core::{ErrorKind, QueueSpec, Source, Topology};
use polybus_patterns::Inbox;

use super::effect;
use crate::{
    Outcome, expect_kind,
    scenarios::shared::GoalCounter,
    stores::{
        broker::StoreBroker,
        cx::StoreCx,
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![store_scenario(
        "inbox/refused-at-the-start",
        "A retention shorter than the retries, a timeout below the patience and too small a pool are refused.",
        refused,
    )]
}

async fn refused<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let spec = QueueSpec::new().max_deliveries(4).retry([Duration::from_secs(3_600)]);
    let broker = StoreBroker::new(Topology::new().queue("q", spec)).await?;
    let worker = || broker.bus.worker(Source::queue("q")).concurrency(2).with_graceful_shutdown(ready(()));
    let handler = |inbox: Inbox<_>| effect::<T>(&inbox, &GoalCounter::default());
    let hours = |n: u64| Duration::from_secs(n * 3_600);
    let inbox = || Inbox::new(&store, "billing");
    expect_kind!(worker().run(handler(inbox().retention(hours(26)))).await, ErrorKind::InvalidArgument);
    let impatient = worker().handler_timeout(Duration::from_secs(30));
    expect_kind!(impatient.run(handler(inbox())).await, ErrorKind::InvalidArgument);
    let both = || inbox().patience(Duration::from_secs(20)).handler_timeout(Duration::from_secs(20));
    let impatient = worker().handler_timeout(Duration::from_secs(39));
    expect_kind!(impatient.run(handler(both())).await, ErrorKind::InvalidArgument);
    if cx.abilities().parallel_writers {
        let crowded = broker.bus.worker(Source::queue("q")).concurrency(1_000).with_graceful_shutdown(ready(()));
        expect_kind!(crowded.run(handler(inbox())).await, ErrorKind::InvalidArgument);
    }
    worker().run(handler(inbox().retention(hours(27)))).await?;
    worker().handler_timeout(Duration::from_secs(40)).run(handler(both())).await?;
    Ok(())
}
