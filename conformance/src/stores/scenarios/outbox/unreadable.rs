//! Rows that a newer version wrote: this one cannot read their heads, or does not know their addresses.

use std::time::Duration;

use bytes::Bytes;
use polybus_core::Address;
use polybus_patterns::store::{NewRow, OutboxStore, ParkedFilter, Store};
use tokio::time::Instant;

use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf, of_key},
        scenario::{StoreScenario, store_scenario},
        table_troubles::{CallEnd, TableCall, TableTrouble},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/unreadable",
            "A row whose head cannot be read is parked with the reason; until then it holds up its key alone.",
            unreadable,
        ),
        store_scenario(
            "outbox/unknown-address",
            "A row whose address is none waits, is not parked, and holds up no other address.",
            unknown_address,
        ),
    ]
}

async fn insert<T: StoreUnderTest>(store: &StoreOf<T>, address: &str, key: &str, head: &str) -> Outcome {
    let row = NewRow {
        slot: 3,
        address: address.to_owned(),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        head: head.to_owned(),
        data: Bytes::from_static(b"of a newer version"),
        delay: Duration::ZERO,
    };
    let mut tx = store.begin().await?;
    store.insert(&mut tx, &[row]).await?;
    StoreOf::<T>::commit(tx).await?;
    Ok(())
}

async fn unreadable<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    // Neither can it be parked at first.
    store.tables.set([TableTrouble::of(TableCall::Park, CallEnd::Refused)]);
    for key in ["bad", "worse"] {
        insert::<T>(&store, "queue:q", key, r#"{"version":9,"envelope":"…"}"#).await?;
    }
    let began = Instant::now();
    let relay = cx.relay(&broker, &store);
    cx.eventually("it cannot be parked", async || Ok((store.tables.met() >= 3).then_some(()))).await?;
    for round in 1..=3 {
        cx.enqueue(&store, &to, (0..64).flat_map(|n| of_key(&format!("k{n}"), [round]))).await?;
        cx.published(&broker, &to, round * 64).await?;
    }
    // One of the two rows has had five by then, and four waits, each at least half of 50 ms, 100 ms, 200 ms, 400 ms.
    cx.eventually("ten attempts", async || Ok((store.tables.met() >= 10).then_some(()))).await?;
    let (took, least) = (began.elapsed(), Duration::from_millis(25 * 15));
    ensure!(took >= least, "ten attempts to park two rows within {took:?}, and their waits alone take {least:?}");
    ensure_eq!(store.outbox().stats(10).await?.parked, 0, "rows that were parked though the table takes none");
    store.tables.set([]);
    cx.eventually("both are parked", async || Ok((store.outbox().stats(10).await?.parked == 2).then_some(()))).await?;
    cx.sentinel(&broker, &store, &to, "bad").await?;
    let report = relay.stop().await?;
    ensure_eq!((report.published, report.parked, report.may_duplicate), (193, 2, 0), "{report:?}");
    let parked = store.outbox().parked(&ParkedFilter::All, 0, 10).await?;
    let reason = &parked[0].reason;
    ensure!(reason.contains("the row's head cannot be read"), "the reason: {reason}");
    ensure_eq!(&parked[0].data[..], b"of a newer version", "the payload of the parked row");
    Ok(())
}

async fn unknown_address<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    insert::<T>(&store, "stream:of-a-newer-version", "k", "{}").await?;
    let relay = cx.relay(&broker, &store);
    for round in 1..=5 {
        cx.enqueue(&store, &to, (0..64).flat_map(|n| of_key(&format!("k{n}"), [round]))).await?;
        cx.published(&broker, &to, round * 64).await?;
    }
    let report = relay.stop().await?;
    ensure_eq!((report.published, report.parked), (320, 0), "published and parked");
    // A relay that knows the address finds it.
    let stats = store.outbox().stats(10).await?;
    ensure_eq!((stats.ready, stats.parked), (1, 0), "ready and parked");
    Ok(())
}
