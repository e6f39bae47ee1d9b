//! The numbers that an outbox draws.

use std::{collections::BTreeMap, sync::atomic::Ordering::SeqCst, time::Duration};

use polybus_core::{Address, Envelope, ErrorKind};
use polybus_patterns::{Outbox, store::Store};

use crate::{
    Failure, Outcome, ensure, ensure_eq, expect_kind,
    stores::{
        broker::StoreBroker,
        cx::{StoreCx, StoreOf, of_key},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "sequence/numbers",
            "The messages of a key have the numbers 1, 2, 3 at each address, and those without a key have none.",
            numbers,
        ),
        store_scenario("sequence/rolled-back", "A transaction that is rolled back leaves no gap.", rolled_back),
        store_scenario(
            "sequence/not-written",
            "A message that is refused leaves no gap, also where the transaction goes on.",
            not_written,
        ),
        store_scenario(
            "sequence/byte-exact-keys",
            "Keys that are nearly the same, long ones and those with U+0000 count apart.",
            byte_exact_keys,
        ),
        store_scenario(
            "sequence/refused-numbers",
            "A message with a number or a source of its own is refused, and so is one outside a transaction, and a statement for \
             another client.",
            refused,
        ),
        store_scenario(
            "sequence/transactions-wait",
            "A transaction that draws for a key waits for the one that did before, and comes behind it.",
            transactions_wait,
        )
        .needs_parallel_writers(),
        store_scenario(
            "sequence/other-way-round",
            "Transactions that enqueue for the same keys in another order do not lock each other out.",
            other_way_round,
        )
        .needs_parallel_writers(),
    ]
}

/// The numbers of each key, as they were published, beside the payloads.
pub(super) fn published(broker: &StoreBroker, to: &Address) -> BTreeMap<String, Vec<(Option<u64>, String)>> {
    let mut keys: BTreeMap<String, Vec<(Option<u64>, String)>> = BTreeMap::new();
    for m in broker.published(to) {
        let key = m.key.as_deref().unwrap_or("no key").to_owned();
        keys.entry(key).or_default().push((m.sequence, String::from_utf8_lossy(&m.data).into_owned()));
    }
    keys
}

fn sequenced<T: StoreUnderTest>(cx: &StoreCx<T>, store: &StoreOf<T>) -> Outbox<StoreOf<T>> {
    cx.outbox(store).sequenced()
}

async fn numbers<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let store = cx.store().await?;
    let (q, other) = (Address::queue("q"), Address::queue("other"));
    let broker =
        StoreBroker::new(crate::stores::cx::ordered(&["other"]).queue("q", polybus_core::QueueSpec::new())).await?;
    let outbox = sequenced(&cx, &store);
    for round in 0..3 {
        let mut tx = store.begin().await?;
        let both = [("b", 0), ("a", 0), ("b", 1), ("a", 1)];
        let mixed = both.map(|(key, n)| Envelope::new("t", (round * 2 + n).to_string()).key(key));
        outbox.enqueue_all(&mut tx, q.clone(), mixed).await?;
        outbox.enqueue(&mut tx, q.clone(), Envelope::new("t", "keyless")).await?;
        outbox.enqueue_all(&mut tx, other.clone(), of_key("a", [round])).await?;
        StoreOf::<T>::commit(tx).await?;
    }
    let relay = cx.relay(&broker, &store);
    cx.published(&broker, &q, 15).await?;
    cx.published(&broker, &other, 3).await?;
    relay.stop().await?;
    let in_order = |most: u64| (0..most).map(|n| (Some(n + 1), n.to_string())).collect::<Vec<_>>();
    let keys = published(&broker, &q);
    let sorted = |key: &str| {
        let mut of_key = keys.get(key).cloned().unwrap_or_default();
        of_key.sort();
        of_key
    };
    ensure_eq!(sorted("a"), in_order(6), "numbers of a");
    ensure_eq!(sorted("b"), in_order(6), "numbers of b");
    ensure!(keys.get("no key").is_some_and(|all| all.iter().all(|(n, _)| n.is_none())), "keyless: {keys:?}");
    ensure_eq!(published(&broker, &other).remove("a").unwrap_or_default(), in_order(3), "numbers at another address");
    Ok(())
}

async fn rolled_back<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let outbox = sequenced(&cx, &store);
    for n in 0..6 {
        let mut tx = store.begin().await?;
        outbox.enqueue_all(&mut tx, to.clone(), of_key("k", [n])).await?;
        match n % 2 {
            0 => StoreOf::<T>::commit(tx).await?,
            _ => drop(tx),
        }
    }
    cx.relay_until(&broker, &store, &to, 3).await?;
    let wanted = [(Some(1), "0"), (Some(2), "2"), (Some(3), "4")].map(|(n, text)| (n, text.to_owned()));
    ensure_eq!(published(&broker, &to).remove("k").unwrap_or_default(), wanted, "numbers of k");
    Ok(())
}

async fn not_written<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let outbox = sequenced(&cx, &store).max_row(2000);
    let mut tx = store.begin().await?;
    outbox.enqueue_all(&mut tx, to.clone(), of_key("k", [0])).await?;
    let large = Envelope::new("t", vec![b'x'; 3000]).key("k");
    let batch = || [Envelope::new("t", "small").key("k"), Envelope::new("t", "new").key("new")];
    let too_large = batch().into_iter().chain([large]);
    expect_kind!(outbox.enqueue_all(&mut tx, to.clone(), too_large).await, ErrorKind::PayloadTooLarge);
    store.state.refused_inserts.store(1, SeqCst);
    expect_kind!(outbox.enqueue_all(&mut tx, to.clone(), batch()).await, ErrorKind::PayloadTooLarge);
    outbox.enqueue_all(&mut tx, to.clone(), of_key("k", [1])).await?;
    outbox.enqueue_all(&mut tx, to.clone(), of_key("new", [0])).await?;
    StoreOf::<T>::commit(tx).await?;
    cx.relay_until(&broker, &store, &to, 3).await?;
    let keys = published(&broker, &to);
    let of = |key: &str| keys.get(key).cloned().unwrap_or_default().into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    ensure_eq!(of("k"), [Some(1), Some(2)], "numbers of k");
    ensure_eq!(of("new"), [Some(1)], "numbers of a key whose first message was refused");
    Ok(())
}

/// Keys that a careless database takes for one another.
pub(super) fn near_keys() -> Vec<String> {
    let long = "\u{e4}".repeat(128);
    ["A", "a", "a ", " a", "a\u{0}", "a\u{0}b", "\u{e4}", "a\u{308}"]
        .map(str::to_owned)
        .into_iter()
        .chain([long])
        .collect()
}

async fn byte_exact_keys<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let outbox = sequenced(&cx, &store);
    let keys = near_keys();
    for n in 0..3 {
        let mut tx = store.begin().await?;
        let one_each = keys.iter().map(|key| Envelope::new("t", n.to_string()).key(key.as_str()));
        outbox.enqueue_all(&mut tx, to.clone(), one_each).await?;
        StoreOf::<T>::commit(tx).await?;
    }
    cx.relay_until(&broker, &store, &to, keys.len() * 3).await?;
    let numbers = published(&broker, &to);
    for key in keys {
        let of_key: Vec<Option<u64>> = numbers.get(&key).into_iter().flatten().map(|(n, _)| *n).collect();
        ensure_eq!(of_key, [Some(1), Some(2), Some(3)], "numbers of {key:?}");
    }
    Ok(())
}

async fn refused<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let outbox = sequenced(&cx, &store);
    let mut tx = store.begin().await?;
    let own = Envelope::new("t", "own").key("k").sequence(7);
    expect_kind!(outbox.enqueue(&mut tx, to.clone(), own).await, ErrorKind::InvalidArgument);
    let row = outbox.row(to.clone(), Envelope::new("t", "row").key("k")).await.map(drop);
    expect_kind!(row, ErrorKind::Unsupported);
    let foreign = Envelope::new("t", "foreign").key("k").source("/other");
    expect_kind!(outbox.enqueue(&mut tx, to.clone(), foreign).await, ErrorKind::InvalidArgument);
    drop(tx);
    let mut plain = cx.target().plain(&store.inner).await?;
    let outside = outbox.enqueue_outside(&mut plain, to.clone(), of_key("k", [0])).await;
    expect_kind!(outside, ErrorKind::InvalidArgument);
    outbox.enqueue_outside(&mut plain, to.clone(), [Envelope::new("t", "no key")]).await?;
    Ok(())
}

async fn transactions_wait<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let outbox = sequenced(&cx, &store);
    for round in 0..5 {
        let mut first = store.begin().await?;
        outbox.enqueue_all(&mut first, to.clone(), of_key("k", [round * 2])).await?;
        let second = {
            let (store, outbox, to) = (cx.second(&store).await?, outbox.clone(), to.clone());
            tokio::task::spawn_local(async move {
                let mut tx = store.begin().await?;
                outbox.enqueue_all(&mut tx, to, of_key("k", [round * 2 + 1])).await?;
                StoreOf::<T>::commit(tx).await?;
                Ok::<_, Failure>(())
            })
        };
        tokio::time::sleep(Duration::from_millis(50)).await;
        ensure!(!second.is_finished(), "it did not wait for the transaction that drew before");
        StoreOf::<T>::commit(first).await?;
        cx.within("the second one", second).await???;
    }
    cx.relay_until(&broker, &store, &to, 10).await?;
    let wanted: Vec<_> = (0..10).map(|n| (Some(n + 1), n.to_string())).collect();
    ensure_eq!(published(&broker, &to).remove("k").unwrap_or_default(), wanted, "numbers of k");
    Ok(())
}

async fn other_way_round<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    const ROUNDS: usize = 40;
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let mut tasks = Vec::new();
    for turned in [false, true, false, true] {
        let (store, outbox, to) = (cx.second(&store).await?, sequenced(&cx, &store), to.clone());
        tasks.push(tokio::task::spawn_local(async move {
            for _ in 0..ROUNDS {
                let mut keys: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
                if turned {
                    keys.reverse();
                }
                let messages = keys.into_iter().map(|key| Envelope::new("t", "x").key(key));
                let mut tx = store.begin().await?;
                outbox.enqueue_all(&mut tx, to.clone(), messages).await?;
                StoreOf::<T>::commit(tx).await?;
            }
            Ok::<_, Failure>(())
        }));
    }
    for task in tasks {
        cx.within("all rounds", task).await???;
    }
    let broker = cx.ordered_broker(&["q"]).await?;
    cx.relay_until(&broker, &store, &to, 4 * ROUNDS * 10).await?;
    for (key, numbers) in published(&broker, &to) {
        let numbers: Vec<Option<u64>> = numbers.into_iter().map(|(n, _)| n).collect();
        let wanted: Vec<Option<u64>> = (1..=4 * ROUNDS as u64).map(Some).collect();
        ensure_eq!(numbers, wanted, "numbers of {key}");
    }
    Ok(())
}
