//! Rows that fail in a way that nobody expects.

use polybus_core::{Address, Envelope, Error, ErrorKind};
use polybus_patterns::store::{OutboxStore, ParkedFilter};

use super::rows_of;
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        broker::AddressTrouble,
        cx::{StoreCx, of_key},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/unexpected",
            "A row that fails unexpectedly ten times while others of its address pass is parked.",
            unexpected,
        ),
        store_scenario(
            "outbox/unexpected-for-all",
            "Where nothing of an address passes, an unexpected failure parks no row.",
            unexpected_for_all,
        ),
        store_scenario("outbox/failures", "Failures are counted with the row.", failures),
    ]
}

fn strange() -> Error {
    Error::new(ErrorKind::Unexpected, "nobody knows")
}

/// A row that has failed nine times, and its message.
async fn failed_often<T: StoreUnderTest>(cx: &StoreCx<T>, store: &crate::stores::cx::StoreOf<T>) -> Outcome<Envelope> {
    let bad = Envelope::new("t", "bad").key("bad");
    cx.enqueue(store, &Address::queue("q"), [bad.clone()]).await?;
    let table = store.outbox();
    let row = rows_of(&*table, "queue:q").await?.remove(0);
    for _ in 0..9 {
        table.record_failure(row.id, "nobody knows").await?;
    }
    Ok(bad)
}

async fn unexpected<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let bad = failed_often(&cx, &store).await?;
    broker.trouble(&to, Some(AddressTrouble::Fails(vec![bad.id.to_string()], strange())));
    cx.enqueue(&store, &to, of_key("bad", [1])).await?;
    let relay = cx.relay(&broker, &store);
    // Others have to pass in the same read. They are of the same slot, since they are of the same key's slot: all are.
    cx.eventually("the row is parked", async || {
        cx.enqueue(&store, &to, (0..32).map(|n| Envelope::new("t", "x").key(format!("k{n}")))).await?;
        Ok((store.outbox().stats(10).await?.parked == 1).then_some(()))
    })
    .await?;
    cx.eventually("its key goes on", async || Ok(broker.texts(&to).iter().any(|text| text == "1").then_some(())))
        .await?;
    relay.stop().await?;
    let parked = store.outbox().parked(&ParkedFilter::Reason("".to_owned()), 0, 10).await?;
    ensure!(parked[0].reason.contains("nobody knows"), "the reason: {}", parked[0].reason);
    ensure_eq!(parked[0].message()?.id, bad.id, "the parked message");
    Ok(())
}

async fn unexpected_for_all<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let bad = failed_often(&cx, &store).await?;
    broker.trouble(&to, Some(AddressTrouble::Fails(vec![bad.id.to_string()], strange())));
    let relay = cx.relay(&broker, &store);
    cx.eventually("four attempts", async || Ok((broker.refused(&bad.id) >= 4).then_some(()))).await?;
    ensure_eq!(store.outbox().parked(&ParkedFilter::All, 0, 10).await?, [], "parked rows");
    broker.trouble(&to, None);
    cx.published(&broker, &to, 1).await?;
    let report = relay.stop().await?;
    ensure_eq!((report.published, report.parked), (1, 0), "published and parked");
    Ok(())
}

async fn failures<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    failed_often(&cx, &store).await?;
    let rows = rows_of(&*store.outbox(), "queue:q").await?;
    ensure_eq!(rows[0].attempts, 9, "failures of the row");
    Ok(())
}
