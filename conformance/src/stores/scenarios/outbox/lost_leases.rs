//! Leases that are lost in the middle of a batch, and leases of different terms.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{Address, Envelope};
use polybus_patterns::store::OutboxStore;

use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        broker::AddressTrouble,
        cx::{StoreCx, of_key},
        relays::{RunningRelay, relay},
        scenario::{StoreScenario, store_scenario},
        table_troubles::{CallEnd, TableCall, TableTrouble},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/lease-lost",
            "Leases that are lost in the middle of a batch cost duplicates and nothing else, and their number is told.",
            lease_lost,
        ),
        store_scenario(
            "outbox/two-terms",
            "Relays with leases of different terms share the slots, and neither takes the other's.",
            two_terms,
        ),
    ]
}

const SHORT: Duration = Duration::from_secs(1);

async fn lease_lost<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let second = cx.second(&store).await?;
    broker.trouble(&to, Some(AddressTrouble::AnswersLate(0)));
    cx.enqueue(&store, &to, (0..80).map(|n| Envelope::new("t", n.to_string()).key(format!("k{}", n % 40)))).await?;
    let stands_still = RunningRelay::start(relay(&broker.bus, &store).lease(SHORT));
    // The first row of each key. The others are sent once it was answered.
    cx.published(&broker, &to, 40).await?;
    store.tables.set([TableTrouble::of(TableCall::Leases, CallEnd::Hangs)]);
    let other = RunningRelay::start(relay(&broker.second_bus(1)?, &second).lease(SHORT));
    cx.eventually("the other one has published all", async || {
        Ok((second.outbox().stats(10).await?.ready == 0).then_some(()))
    })
    .await?;
    broker.trouble(&to, None);
    store.tables.set([]);
    cx.published(&broker, &to, 160).await?;
    // Its own messages, in order: that of a key that it has and the next one.
    let report = stands_still.stop().await?;
    ensure_eq!((report.published, report.may_duplicate), (0, 80), "published, and published twice: {report:?}");
    let report = other.stop().await?;
    ensure_eq!((report.published, report.may_duplicate, report.leases_lost), (80, 0, 0), "of the other: {report:?}");
    let mut seen = BTreeSet::new();
    let first: Vec<Envelope> = broker.published(&to).into_iter().filter(|m| seen.insert(m.id.clone())).collect();
    for key in 0..40 {
        let of_key = first.iter().filter(|m| m.key.as_deref() == Some(&*format!("k{key}")));
        let got: Vec<String> = of_key.map(|m| String::from_utf8_lossy(&m.data).into_owned()).collect();
        ensure_eq!(got, [key.to_string(), (key + 40).to_string()], "the first copies of k{key}");
    }
    Ok(())
}

async fn two_terms<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let second = cx.second(&store).await?;
    let long = RunningRelay::start(relay(&broker.bus, &store).lease(cx.patience() * 2));
    cx.enqueue(&store, &to, of_key("k", [0])).await?;
    cx.published(&broker, &to, 1).await?;
    let short = RunningRelay::start(relay(&broker.second_bus(1)?, &second).lease(SHORT));
    let mut sent = 1;
    let mut round = async || {
        cx.enqueue(&store, &to, (0..64).map(|n| Envelope::new("t", "x").key(format!("k{n}")))).await?;
        sent += 64;
        cx.published(&broker, &to, sent).await
    };
    // It says that it lives, and asks for slots, three times.
    cx.eventually("the other relay asks", async || Ok((second.tables.about_leases() >= 6).then_some(()))).await?;
    round().await?;
    // The one with the long term does not look before a third of it, so that the other one gets nothing from it.
    ensure_eq!(broker.sends(1, &to), 0, "sends of the relay that has no slot");
    let report = long.stop().await?;
    ensure_eq!((report.leases_lost, report.may_duplicate), (0, 0), "of the long term: {report:?}");
    round().await?;
    ensure!(broker.sends(1, &to) > 0, "the other relay publishes now");
    let report = short.stop().await?;
    ensure_eq!((report.leases_lost, report.may_duplicate), (0, 0), "of the short term: {report:?}");
    ensure_eq!(store.outbox().stats(10).await?.ready, 0, "rows that are left");
    Ok(())
}
