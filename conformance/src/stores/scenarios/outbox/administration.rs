//! Looking after what waits: parked rows, pauses, counts.

use std::time::Duration;

use polybus_core::{Address, Envelope, Outgoing};
use polybus_patterns::store::{OutboxStore, ParkedFilter};

use super::rows_of;
use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, of_key},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/parked-pages",
            "Parked rows come in pages by their ids, and a filter picks by id, address or reason.",
            parked_pages,
        ),
        store_scenario(
            "outbox/retry",
            "A parked row that is retried comes back under its id, in its old place, and lets its key go.",
            retry,
        ),
        store_scenario(
            "outbox/two-hold-a-key",
            "A key that two parked rows hold goes on when both were retried or discarded, not before.",
            two_hold_a_key,
        ),
        store_scenario(
            "outbox/parked-by-two",
            "A row that several relays park, delete and retry at once is there once, or not at all.",
            parked_by_two,
        ),
        store_scenario("outbox/pause", "Nothing is published to a paused address, and all of it once resumed.", pause),
        store_scenario("outbox/stats", "What waits is counted up to the cap, with the age of the oldest.", stats),
    ]
}

async fn parked_pages<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let table = store.outbox();
    for queue in ["a", "b"] {
        cx.enqueue(&store, &Address::queue(queue), of_key("k", 0..6)).await?;
        for (n, row) in rows_of(&*table, &format!("queue:{queue}")).await?.iter().enumerate() {
            table.park(row.id, if n % 2 == 0 { "even_1%" } else { "odd" }, false).await?;
        }
    }
    let all = table.parked(&ParkedFilter::All, 0, 100).await?;
    ensure_eq!(all.len(), 12, "parked rows");
    ensure!(all.is_sorted_by_key(|row| row.id), "the ids do not rise");
    let mut paged = Vec::new();
    while let page = table.parked(&ParkedFilter::All, paged.last().map_or(0, |id| *id), 5).await?
        && !page.is_empty()
    {
        ensure!(page.len() <= 5, "a page of {}", page.len());
        paged.extend(page.iter().map(|row| row.id));
    }
    ensure_eq!(paged, all.iter().map(|row| row.id).collect::<Vec<_>>(), "all pages");
    for (filter, wanted) in [
        (ParkedFilter::Address("queue:a".into()), 6),
        (ParkedFilter::Address("queue".into()), 0),
        (ParkedFilter::Reason("even".into()), 6),
        (ParkedFilter::Reason("even_1%".into()), 6),
        // These are no patterns.
        (ParkedFilter::Reason("%".into()), 0),
        (ParkedFilter::Reason("e_en".into()), 0),
        (ParkedFilter::Ids(vec![all[0].id, all[7].id, i64::MAX]), 2),
        (ParkedFilter::Ids(vec![]), 0),
    ] {
        ensure_eq!(table.parked(&filter, 0, 100).await?.len(), wanted, "parked rows by {filter:?}");
    }
    ensure_eq!(table.discard_parked(&ParkedFilter::Reason("odd".into())).await?, 6, "discarded rows");
    ensure_eq!(table.retry_parked(&ParkedFilter::Address("queue:b".into())).await?, 3, "retried rows");
    ensure_eq!(table.parked(&ParkedFilter::All, 0, 100).await?.len(), 3, "rows that are still parked");
    ensure_eq!(rows_of(&*table, "queue:b").await?.len(), 3, "rows that are back");
    Ok(())
}

async fn retry<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let table = store.outbox();
    cx.enqueue(&store, &to, of_key("k", 0..6)).await?;
    let before = rows_of(&*table, "queue:q").await?;
    table.park(before[0].id, "x", true).await?;
    table.park(before[2].id, "x", true).await?;
    ensure_eq!(rows_of(&*table, "queue:q").await?, [], "rows of the held key");
    ensure_eq!(table.retry_parked(&ParkedFilter::All).await?, 2, "rows retried");
    let after = rows_of(&*table, "queue:q").await?;
    let which = |rows: &[polybus_patterns::store::StoredRow]| rows.iter().map(|r| (r.id, r.slot)).collect::<Vec<_>>();
    ensure_eq!(which(&after), which(&before), "ids, times and slots");
    cx.relay_until(&broker, &store, &to, 6).await?;
    ensure_eq!(broker.texts(&to), (0..6).map(|n| n.to_string()).collect::<Vec<_>>(), "what was published");
    Ok(())
}

async fn two_hold_a_key<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let table = store.outbox();
    cx.enqueue(&store, &to, of_key("k", 0..4)).await?;
    cx.enqueue(&store, &Address::queue("other"), of_key("k", 0..4)).await?;
    let rows = rows_of(&*table, "queue:q").await?;
    table.park(rows[0].id, "x", true).await?;
    table.park(rows[1].id, "x", true).await?;
    ensure_eq!(rows_of(&*table, "queue:other").await?.len(), 4, "rows of the same key at another address");
    table.discard_parked(&ParkedFilter::Ids(vec![rows[0].id.id])).await?;
    ensure_eq!(rows_of(&*table, "queue:q").await?.len(), 0, "rows while one more holds the key");
    table.retry_parked(&ParkedFilter::Ids(vec![rows[1].id.id])).await?;
    let left: Vec<i64> = rows_of(&*table, "queue:q").await?.iter().map(|row| row.id.id).collect();
    ensure_eq!(left, rows[1..].iter().map(|row| row.id.id).collect::<Vec<_>>(), "rows once none holds it");
    Ok(())
}

async fn parked_by_two<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let (table, other) = (store.outbox(), cx.second(&store).await?.outbox());
    cx.enqueue(&store, &to, (0..20).map(|n| Envelope::new("t", "x").key(format!("k{n}")))).await?;
    let rows = rows_of(&*table, "queue:q").await?;
    // What a broker says may be long, and may hold what the database's text cannot.
    let reason = format!("a\u{0}b {}", "é".repeat(100_000));
    let mut deleted = 0;
    for row in &rows {
        let (one, two, gone) =
            tokio::join!(table.park(row.id, &reason, true), other.park(row.id, &reason, true), async {
                if row.id.id % 2 == 0 { other.delete(&[row.id]).await } else { Ok(0) }
            });
        one?;
        two?;
        deleted += gone?;
    }
    let parked = table.parked(&ParkedFilter::All, 0, 100).await?;
    ensure_eq!(parked.len() as u64 + deleted, 20, "rows that are parked or deleted");
    ensure!(parked.iter().all(|row| row.reason.starts_with('a')), "a reason is another one");
    ensure_eq!(rows_of(&*table, "queue:q").await?, [], "rows that are neither");
    let all = ParkedFilter::All;
    let (one, two) = tokio::join!(table.retry_parked(&all), other.retry_parked(&all));
    ensure_eq!(one? + two?, parked.len() as u64, "rows retried by both");
    let back: Vec<i64> = rows_of(&*table, "queue:q").await?.iter().map(|row| row.id.id).collect();
    ensure_eq!(back, parked.iter().map(|row| row.id).collect::<Vec<_>>(), "rows that are back");
    Ok(())
}

async fn pause<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, paused, other) = (cx.store().await?, Address::queue("paused"), Address::queue("other"));
    let broker = cx.ordered_broker(&["paused", "other"]).await?;
    let outbox = cx.outbox(&store);
    let relay = cx.relay(&broker, &store);
    outbox.pause(paused.clone()).await?;
    ensure_eq!(outbox.paused().await?, ["queue:paused"], "paused addresses");
    cx.enqueue(&store, &paused, of_key("k", 0..10)).await?;
    // A relay that drains the address reads on, without asking again which addresses there are.
    ensure!(rows_of(&*store.outbox(), "queue:paused").await?.is_empty(), "rows of a paused address were read");
    // Several rounds of the relay.
    for _ in 0..5 {
        cx.sentinel(&broker, &store, &other, "k").await?;
    }
    ensure_eq!(broker.published(&paused).len(), 0, "messages at the paused address");
    outbox.resume(paused.clone()).await?;
    cx.published(&broker, &paused, 10).await?;
    relay.stop().await?;
    ensure_eq!(broker.texts(&paused), (0..10).map(|n| n.to_string()).collect::<Vec<_>>(), "messages once resumed");
    Ok(())
}

async fn stats<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let table = store.outbox();
    let empty = table.stats(10).await?;
    ensure_eq!((empty.ready, empty.scheduled, empty.parked, empty.oldest_age), (0, 0, 0, None), "an empty outbox");
    let late = || Outgoing::from(Envelope::new("t", "x")).delay(Duration::from_secs(3_600));
    cx.enqueue(&store, &to, of_key("k", 0..40)).await?;
    cx.enqueue(&store, &to, (0..30).map(|_| late())).await?;
    for row in rows_of(&*table, "queue:q").await?.iter().take(15) {
        table.park(row.id, "x", false).await?;
    }
    let all = table.stats(1_000).await?;
    ensure_eq!((all.ready, all.scheduled, all.parked), (25, 30, 15), "ready, scheduled and parked");
    ensure!(all.oldest_age.is_some(), "the oldest row has no age");
    let capped = table.stats(10).await?;
    ensure_eq!((capped.ready, capped.scheduled, capped.parked), (10, 10, 10), "the same up to a cap of 10");
    if cx.abilities().clock {
        cx.move_clock(&store, 100);
        let age = table.stats(10).await?.oldest_age.unwrap_or_default();
        ensure!((95..200).contains(&age.as_secs()), "after 100 s the oldest row is {age:?} old");
    }
    Ok(())
}
