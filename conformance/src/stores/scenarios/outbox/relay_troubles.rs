//! Troubles of a relay itself: calls that panic or never answer, and a bus that is closed under it.

use std::time::Duration;

use polybus_core::{Address, Envelope, ErrorKind};
use polybus_patterns::store::OutboxStore;
use tokio::time::Instant;

use crate::{
    Failure, Outcome, ensure, ensure_eq,
    stores::{
        broker::AddressTrouble,
        cx::{StoreCx, of_key},
        relays::{RunningRelay, relay},
        scenario::{StoreScenario, store_scenario},
        table_troubles::{
            CallEnd,
            TableCall::{self, Addresses, Delete, Leases, PromoteDue, Read},
            TableTrouble,
        },
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/panics",
            "A panic of the store or of the broker's driver fails the call that it happened in, and nothing is lost.",
            panics,
        ),
        store_scenario(
            "outbox/hanging-read",
            "A read that never answers holds up no other address, and no stop of the relay.",
            hanging_read,
        ),
        store_scenario(
            "outbox/closed-bus",
            "A relay whose bus was closed ends with that error; another one has its slots and rows at once.",
            closed_bus,
        ),
    ]
}

async fn panics<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let relay = cx.relay(&broker, &store);
    let mut came = 0;
    let twice = |call: TableCall| TableTrouble { left: 2, ..TableTrouble::of(call, CallEnd::Panics) };
    for call in [Addresses, Read, Delete, Leases, PromoteDue] {
        store.tables.set([twice(call)]);
        cx.enqueue(&store, &to, of_key("k", came..came + 20)).await?;
        came += 20;
        cx.eventually("two panics", async || Ok((store.tables.met() == 2).then_some(()))).await?;
        cx.eventually("all rows are gone", async || Ok((store.outbox().stats(10).await?.ready == 0).then_some(())))
            .await?;
    }
    broker.trouble(&to, Some(AddressTrouble::Panics));
    let sends = broker.sends(0, &to);
    cx.enqueue(&store, &to, of_key("k", came..came + 20)).await?;
    cx.eventually("two panics of the driver", async || Ok((broker.sends(0, &to) >= sends + 2).then_some(()))).await?;
    broker.trouble(&to, None);
    cx.eventually("all rows are gone", async || Ok((store.outbox().stats(10).await?.ready == 0).then_some(()))).await?;
    let report = relay.stop().await?;
    ensure_eq!((report.published, report.parked), (came as u64 + 20, 0), "published and parked");
    let mut first: Vec<usize> = Vec::new();
    for n in broker.texts(&to).iter().filter_map(|text| text.parse().ok()) {
        if !first.contains(&n) {
            first.push(n);
        }
    }
    ensure_eq!(first, (0..came + 20).collect::<Vec<_>>(), "first copies");
    Ok(())
}

async fn hanging_read<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, bad, well) = (cx.store().await?, Address::queue("bad"), Address::queue("well"));
    let broker = cx.ordered_broker(&["bad", "well"]).await?;
    let address = Some("queue:bad".to_owned());
    store.tables.set([TableTrouble { address, ..TableTrouble::of(Read, CallEnd::Hangs) }]);
    cx.enqueue(&store, &bad, of_key("k", [0])).await?;
    let relay = cx.relay(&broker, &store);
    cx.eventually("the read hangs", async || Ok((store.tables.met() == 1).then_some(()))).await?;
    for round in 1..=5 {
        cx.enqueue(&store, &well, (0..64).map(|n| Envelope::new("t", "x").key(format!("k{n}")))).await?;
        cx.published(&broker, &well, round * 64).await?;
    }
    let began = Instant::now();
    relay.stop().await?;
    // The limit of a call is half a minute.
    let (took, most) = (began.elapsed(), cx.lateness(Duration::from_secs(3)));
    ensure!(took <= most, "it took {took:?} to stop beside a read that hangs, and {most:?} are enough");
    store.tables.set([]);
    cx.relay_until(&broker, &store, &bad, 1).await?;
    Ok(())
}

async fn closed_bus<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let bus = broker.separate_bus(1)?;
    // As long as nobody would wait for.
    let lease = cx.patience() * 2;
    let ends = RunningRelay::start(relay(&bus, &store).lease(lease));
    cx.enqueue(&store, &to, of_key("k", [0])).await?;
    cx.published(&broker, &to, 1).await?;
    bus.close().await?;
    cx.enqueue(&store, &to, of_key("k", 1..20)).await?;
    match cx.within("the relay ends", ends.ended()).await? {
        Err(e) if e.kind() == ErrorKind::Closed => {}
        other => return Err(Failure::new(format!("the relay of a closed bus ended with {other:?}"))),
    }
    let report = cx.relay_until(&broker, &store, &to, 20).await?;
    ensure_eq!((report.published, report.parked), (19, 0), "published and parked");
    ensure_eq!(broker.texts(&to), (0..20).map(|n| n.to_string()).collect::<Vec<_>>(), "what was published");
    Ok(())
}
