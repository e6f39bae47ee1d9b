//! Relays that are stopped, killed and share their work.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_core::{Address, Envelope, Error, ErrorKind};
use polybus_patterns::store::{OutboxStore, Store};
use tokio::time::Instant;

use crate::{
    During, Outcome, ensure, ensure_eq,
    stores::{
        broker::{AddressTrouble, StoreBroker},
        cx::{StoreCx, StoreOf, of_key},
        relays::{LEASE, RunningRelay, relay},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/once-on-a-healthy-run",
            "A relay that is stopped and started again publishes every message once.",
            once_on_a_healthy_run,
        ),
        store_scenario(
            "outbox/relays-share",
            "Two relays share the slots, and those of a killed one are taken over within its lease.",
            relays_share,
        ),
        store_scenario(
            "outbox/commits-behind",
            "A row that is committed after a later one of its slot was published is published as well.",
            commits_behind,
        )
        .needs_parallel_writers(),
        store_scenario(
            "outbox/late-commits",
            "With late commits and killed relays, nothing is lost, and first copies keep the order of their key.",
            late_commits,
        ),
        store_scenario(
            "outbox/lost-answers",
            "Where the broker's answers are lost, every message comes at least once, under its own id and in order.",
            lost_answers,
        ),
    ]
}

async fn once_on_a_healthy_run<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let mut published = 0;
    for round in 0..3 {
        let keys = (0..400).map(|n| Envelope::new("t", (round * 400 + n).to_string()).key(format!("k{}", n % 40)));
        cx.enqueue(&store, &to, keys).await?;
        // In the middle: with the others still there.
        let report = cx.relay_until(&broker, &store, &to, round * 400 + 100).await?;
        published += report.published;
        ensure_eq!((report.may_duplicate, report.leases_lost, report.parked), (0, 0, 0), "{report:?}");
    }
    published += cx.relay_until(&broker, &store, &to, 1_200).await?.published;
    ensure_eq!(published, 1_200, "published by all relays");
    let mut texts: Vec<usize> = broker.texts(&to).iter().filter_map(|text| text.parse().ok()).collect();
    texts.sort_unstable();
    ensure_eq!(texts, (0..1_200).collect::<Vec<_>>(), "messages");
    ensure_eq!(store.outbox().stats(10).await?.ready, 0, "rows that are left");
    Ok(())
}

async fn relays_share<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let second = cx.second(&store).await?;
    let first = cx.relay(&broker, &store);
    let other = RunningRelay::start(relay(&broker.second_bus(1)?, &second));
    let mut sent = 0;
    let both = async || {
        let keys = (0..32).map(|n| Envelope::new("t", "x").key(format!("k{n}")));
        cx.enqueue(&store, &to, keys).await?;
        sent += 32;
        cx.published(&broker, &to, sent).await?;
        Ok((broker.sends(0, &to) > 0 && broker.sends(1, &to) > 0).then_some(()))
    };
    cx.eventually("both relays publish", both).await?;
    first.kill().await;
    let killed = Instant::now();
    let keys = (0..64).map(|n| Envelope::new("t", "x").key(format!("k{n}")));
    cx.enqueue(&store, &to, keys).await?;
    // Not by their number: what was published and not yet deleted at the kill comes twice.
    cx.eventually("all rows are gone", async || Ok((store.outbox().stats(10).await?.ready == 0).then_some(()))).await?;
    let took = killed.elapsed();
    // Free slots are looked for twice a second; the rest is for a slow machine.
    let most = LEASE + cx.lateness(Duration::from_secs(3));
    ensure!(took <= most, "taken over after {took:?}, and the lease is {LEASE:?}");
    other.stop().await?;
    let ids: BTreeSet<String> = broker.published(&to).into_iter().map(|m| m.id.to_string()).collect();
    ensure_eq!(ids.len(), sent + 64, "messages");
    Ok(())
}

async fn commits_behind<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    // Two keys of one slot: of 17 keys, two are.
    let probes = (0..17).map(|n| Envelope::new("t", "x").key(format!("k{n}")));
    cx.enqueue(&store, &Address::queue("probe"), probes).await?;
    let mut rows = super::rows_of(&*store.outbox(), "queue:probe").await?;
    rows.sort_by_key(|row| row.slot);
    let pair = rows.windows(2).find(|pair| pair[0].slot == pair[1].slot);
    let key =
        |n: usize| pair.and_then(|pair| pair[n].key.clone()).map(|key| String::from_utf8_lossy(&key).into_owned());
    let (early, late) = (key(0).unwrap_or_default(), key(1).unwrap_or_default());
    let relay = cx.relay(&broker, &store);
    let mut tx = store.begin().await?;
    cx.outbox(&store).enqueue_all(&mut tx, to.clone(), of_key(&early, [0])).await?;
    cx.sentinel(&broker, &store, &to, &late).await?;
    StoreOf::<T>::commit(tx).await?;
    cx.published(&broker, &to, 2).await?;
    relay.stop().await?;
    ensure_eq!(broker.texts(&to), ["sentinel", "0"], "what was published");
    Ok(())
}

const KEYS: usize = 24;
const PRODUCERS: usize = 8;
const OF_A_PRODUCER: usize = 40;

/// The last number of each key. The entity's lock is held from when a number is taken until it is committed, so the
/// order of the numbers is that of the commits.
type KeyNumbers = Arc<[AtomicUsize; KEYS]>;

async fn late_commits<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let numbers: KeyNumbers = Arc::new(std::array::from_fn(|_| AtomicUsize::new(0)));
    let second = cx.second(&store).await?;
    let mut producers = tokio::task::JoinSet::new();
    for producer in 0..PRODUCERS {
        let own = if producer % 2 == 0 { store.clone() } else { second.clone() };
        producers.spawn_local(produce(cx.clone(), own, to.clone(), numbers.clone()));
    }
    let mut relays: Vec<RunningRelay> = Vec::new();
    let deadline = Instant::now() + cx.patience();
    let mut produced = false;
    loop {
        while relays.len() < 3 {
            let own = if relays.len() == 1 { &second } else { &store };
            relays.push(RunningRelay::start(relay(&broker.bus, own)));
        }
        tokio::time::sleep(Duration::from_millis(200 + cx.random(400))).await;
        if !produced {
            relays.swap_remove(cx.random(3) as usize).kill().await;
        }
        while let Some(done) = producers.try_join_next() {
            done??;
        }
        produced = producers.is_empty();
        if produced && store.outbox().stats(10).await?.ready == 0 {
            break;
        }
        ensure!(Instant::now() < deadline, "{} messages were published in time", broker.published(&to).len());
    }
    for relay in relays {
        relay.stop().await?;
    }
    in_order_of_commits(&broker, &to, &numbers)
}

/// Enqueues messages of random keys, each in a transaction that commits late.
async fn produce<T: StoreUnderTest>(cx: StoreCx<T>, store: StoreOf<T>, to: Address, numbers: KeyNumbers) -> Outcome {
    for _ in 0..OF_A_PRODUCER {
        let key = cx.random(KEYS as u64) as usize;
        let name = format!("k{key}");
        let mut tx = store.begin().await?;
        T::lock_entity(&mut tx, &name).await?;
        let n = numbers[key].fetch_add(1, Ordering::SeqCst);
        cx.outbox(&store).enqueue_all(&mut tx, to.clone(), of_key(&name, [n])).await?;
        tokio::time::sleep(Duration::from_millis(cx.random(15))).await;
        StoreOf::<T>::commit(tx).await?;
    }
    Ok(())
}

/// Every message came, and the first copies of each key are in the order of its commits.
fn in_order_of_commits(broker: &StoreBroker, to: &Address, numbers: &KeyNumbers) -> Outcome {
    let mut seen = BTreeSet::new();
    let first: Vec<Envelope> = broker.published(to).into_iter().filter(|m| seen.insert(m.id.clone())).collect();
    ensure_eq!(first.len(), PRODUCERS * OF_A_PRODUCER, "messages");
    for (key, count) in numbers.iter().enumerate() {
        let name = format!("k{key}");
        let of_key = first.iter().filter(|m| m.key.as_deref() == Some(&*name));
        let got: Vec<String> = of_key.map(|m| String::from_utf8_lossy(&m.data).into_owned()).collect();
        let wanted: Vec<String> = (0..count.load(Ordering::SeqCst)).map(|n| n.to_string()).collect();
        ensure_eq!(got, wanted, "the first copies of {name}");
    }
    Ok(())
}

async fn lost_answers<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let lost = Error::new(ErrorKind::Unavailable, "the answer was lost").may_duplicate();
    broker.trouble(&to, Some(AddressTrouble::LosesAnswers(3, lost)));
    cx.enqueue(&store, &to, of_key("k", 0..50)).await?;
    let relay = cx.relay(&broker, &store);
    cx.eventually("all rows are gone", async || Ok((store.outbox().stats(10).await?.ready == 0).then_some(()))).await?;
    relay.stop().await.during("stop")?;
    let mut first: Vec<String> = Vec::new();
    let mut ids = BTreeSet::new();
    for message in broker.published(&to) {
        if ids.insert(message.id.clone()) {
            first.push(String::from_utf8_lossy(&message.data).into_owned());
        }
    }
    ensure_eq!(first, (0..50).map(|n| n.to_string()).collect::<Vec<_>>(), "first copies");
    ensure!(broker.published(&to).len() > 50, "no answer was lost, so this proves nothing");
    Ok(())
}
