//! Rows that were published and cannot be deleted: a trigger refuses it, or a right is missing.

use std::time::Duration;

use polybus_core::{Address, Envelope};
use polybus_patterns::store::{OutboxStore, RowId};
use tokio::time::Instant;

use super::rows_of;
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, of_key},
        scenario::{StoreScenario, store_scenario},
        table_troubles::{CallEnd, TableCall, TableTrouble},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/delete-refused",
            "Rows that cannot be deleted are published again few at a time, after growing waits; others go on.",
            delete_refused,
        ),
        store_scenario(
            "outbox/one-delete-refused",
            "A row that cannot be deleted holds up no other one of its address.",
            one_delete_refused,
        ),
    ]
}

const ROWS: usize = 200;
/// One of the four lanes has five or more.
const ATTEMPTS: usize = 20;

async fn delete_refused<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, bad, well) = (cx.store().await?, Address::queue("bad"), Address::queue("well"));
    let broker = cx.ordered_broker(&["bad", "well"]).await?;
    cx.enqueue(&store, &bad, (0..ROWS).map(|n| Envelope::new("t", "x").key(format!("k{n}")))).await?;
    let rows: Vec<RowId> = rows_of(&*store.outbox(), "queue:bad").await?.iter().map(|row| row.id).collect();
    let refused = TableTrouble { rows: Some(rows), ..TableTrouble::of(TableCall::Delete, CallEnd::Refused) };
    store.tables.set([refused]);
    let began = Instant::now();
    let relay = cx.relay(&broker, &store);
    let mut rounds = 0;
    while store.tables.met() < ATTEMPTS {
        rounds += 1;
        cx.enqueue(&store, &well, of_key("k", [rounds])).await?;
        cx.published(&broker, &well, rounds).await?;
        ensure!(began.elapsed() < cx.patience(), "{} attempts to delete", store.tables.met());
    }
    let took = began.elapsed();
    // Four waits of a lane, each at least half of 50 ms, 100 ms, 200 ms, 400 ms.
    let least = Duration::from_millis(25 * 15);
    ensure!(took >= least, "{ATTEMPTS} attempts within {took:?}, and their waits alone take {least:?}");
    // All of them once, and then one row of each slot. Each lane may have published and not tried to delete yet.
    let (copies, most) = (broker.published(&bad).len(), ROWS + 4 * store.tables.met());
    ensure!(copies <= most, "{copies} messages of {ROWS} rows by {} attempts", store.tables.met());
    store.tables.set([]);
    cx.eventually("all rows are gone", async || Ok((store.outbox().stats(10).await?.ready == 0).then_some(()))).await?;
    let report = relay.stop().await?;
    ensure_eq!(report.published, (ROWS + rounds) as u64, "published: {report:?}");
    let again = (broker.published(&bad).len() - ROWS) as u64;
    ensure!(report.may_duplicate >= again, "{again} were published again, and the report says {report:?}");
    Ok(())
}

async fn one_delete_refused<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    cx.enqueue(&store, &to, (0..ROWS).map(|n| Envelope::new("t", "x").key(format!("k{n}")))).await?;
    // One in the middle: others are before and behind it.
    let rows = rows_of(&*store.outbox(), "queue:q").await?;
    let refused = Some(vec![rows[ROWS / 2].id]);
    store.tables.set([TableTrouble { rows: refused, ..TableTrouble::of(TableCall::Delete, CallEnd::Refused) }]);
    let relay = cx.relay(&broker, &store);
    cx.eventually("one row is left", async || Ok((store.outbox().stats(10).await?.ready == 1).then_some(()))).await?;
    store.tables.set([]);
    cx.eventually("no row is left", async || Ok((store.outbox().stats(10).await?.ready == 0).then_some(()))).await?;
    let report = relay.stop().await?;
    ensure_eq!((report.published, report.parked), (ROWS as u64, 0), "published and parked");
    Ok(())
}
