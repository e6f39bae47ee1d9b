//! Rows that fail in a way that nobody expects.

use std::time::Duration;

use polybus_core::{Address, Envelope, Error, ErrorKind};
use polybus_patterns::store::{OutboxStore, ParkedFilter};
use tokio::time::Instant;

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
        store_scenario(
            "outbox/unexpected-everywhere",
            "An address that fails unexpectedly for every row waits beside others; once it is well, all come in order.",
            unexpected_everywhere,
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

const KEYS: usize = 20;
const OF_A_KEY: usize = 10;

/// The most attempts at rows that an address may have had in this time: the first one at each key, and then one row of
/// each slot of a lane, after waits that double from 25 ms.
fn most_attempts(time: Duration) -> usize {
    let mut waits = 0;
    let mut over = Duration::from_millis(25);
    while over <= time {
        waits += 1;
        over += Duration::from_millis(25 << waits);
    }
    // One more is under way.
    KEYS + 4 * (waits + 1)
}

async fn unexpected_everywhere<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to, well) = (cx.store().await?, Address::queue("q"), Address::queue("well"));
    let broker = cx.ordered_broker(&["q", "well"]).await?;
    broker.trouble(&to, Some(AddressTrouble::FailsAll(strange())));
    let all = (0..OF_A_KEY).flat_map(|n| (0..KEYS).map(move |key| (n, key)));
    let all = all.map(|(n, key)| Envelope::new("t", n.to_string()).key(format!("k{key}")));
    cx.enqueue(&store, &to, all).await?;
    let began = Instant::now();
    let relay = cx.relay(&broker, &store);
    let mut rounds = 0;
    while began.elapsed() < Duration::from_millis(800) || broker.all_refused() == 0 {
        rounds += 1;
        cx.enqueue(&store, &well, of_key("k", [rounds])).await?;
        cx.published(&broker, &well, rounds).await?;
    }
    let (attempts, most) = (broker.all_refused(), most_attempts(began.elapsed()));
    ensure!(attempts <= most, "{attempts} attempts at rows, and {most} are enough");
    ensure_eq!(store.outbox().parked(&ParkedFilter::All, 0, 10).await?, [], "parked rows");
    broker.trouble(&to, None);
    cx.published(&broker, &to, KEYS * OF_A_KEY).await?;
    let report = relay.stop().await?;
    ensure_eq!((report.published, report.parked), ((KEYS * OF_A_KEY + rounds) as u64, 0), "published and parked");
    for key in 0..KEYS {
        let of_key = broker.published(&to).into_iter().filter(|m| m.key.as_deref() == Some(&*format!("k{key}")));
        let got: Vec<String> = of_key.map(|m| String::from_utf8_lossy(&m.data).into_owned()).collect();
        ensure_eq!(got, (0..OF_A_KEY).map(|n| n.to_string()).collect::<Vec<_>>(), "the messages of k{key}");
    }
    Ok(())
}

async fn failures<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    failed_often(&cx, &store).await?;
    let rows = rows_of(&*store.outbox(), "queue:q").await?;
    ensure_eq!(rows[0].attempts, 9, "failures of the row");
    Ok(())
}
