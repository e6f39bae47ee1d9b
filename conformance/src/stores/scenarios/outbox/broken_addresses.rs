//! Addresses that are missing, or never answer: their rows wait, and nobody else's.

use polybus_core::{Address, Envelope, QueueSpec, Topology, memory::MemoryDriver};
use polybus_patterns::store::{OutboxStore, ParkedFilter};

use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        broker::{AddressTrouble, StoreBroker},
        cx::{StoreCx, of_key, ordered},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/missing-address",
            "Rows of a missing address wait and none is parked; once it is there, all come in order.",
            missing_address,
        ),
        store_scenario(
            "outbox/silent-address",
            "An address that never answers holds up no other one, and no direct publish.",
            silent_address,
        ),
    ]
}

async fn missing_address<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = StoreBroker::undeclared(MemoryDriver::new(), ordered(&["q"]))?;
    cx.enqueue(&store, &to, of_key("k", 0..30)).await?;
    cx.enqueue(&store, &to, of_key("other", 0..30)).await?;
    let relay = cx.relay(&broker, &store);
    cx.eventually("three attempts at the missing address", async || Ok((broker.sends(0, &to) >= 3).then_some(())))
        .await?;
    ensure_eq!(store.outbox().parked(&ParkedFilter::All, 0, 10).await?, [], "parked rows");
    broker.bus.declare().await?;
    cx.published(&broker, &to, 60).await?;
    let report = relay.stop().await?;
    ensure_eq!((report.published, report.parked), (60, 0), "published and parked");
    for key in ["k", "other"] {
        let of_key = broker.published(&to).into_iter().filter(|m| m.key.as_deref() == Some(key));
        let got: Vec<String> = of_key.map(|m| String::from_utf8_lossy(&m.data).into_owned()).collect();
        ensure_eq!(got, (0..30).map(|n| n.to_string()).collect::<Vec<_>>(), "the messages of {key}");
    }
    Ok(())
}

async fn silent_address<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, silent, well) = (cx.store().await?, Address::queue("silent"), Address::queue("well"));
    let topology = ordered(&["silent", "well"]).queue("direct", QueueSpec::new());
    let broker = StoreBroker::new(Topology::clone(&topology)).await?;
    broker.trouble(&silent, Some(AddressTrouble::Silent));
    let large = |n: usize| Envelope::new("t", vec![b'x'; 20_000]).key(format!("k{}", n % 50));
    cx.enqueue(&store, &silent, (0..300).map(large)).await?;
    let relay = cx.relay(&broker, &store);
    cx.eventually("a send to the silent address", async || Ok((broker.sends(0, &silent) >= 2).then_some(()))).await?;
    for round in 1..=5 {
        cx.enqueue(&store, &well, (0..50).map(|n| Envelope::new("t", "x").key(format!("k{n}")))).await?;
        cx.published(&broker, &well, round * 50).await?;
        let direct = broker.bus.publish(Address::queue("direct"), Envelope::new("t", "x"));
        cx.within("a direct publish", direct).await??;
    }
    ensure!(broker.published(&silent).is_empty(), "the silent address answered");
    broker.trouble(&silent, None);
    // What was under way to it may still wait for its answer, and is not waited for.
    relay.kill().await;
    Ok(())
}
