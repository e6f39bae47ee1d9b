//! From the outbox through three relays to a consumer that loses, doubles and delays on purpose.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use polybus_core::{Address, Envelope};
use polybus_patterns::{SequenceGuard, sequence::SequenceFinding, store::Store};

use super::{Found, Handled, guarded, handle};
use crate::{
    Failure, Outcome, ensure, ensure_eq,
    stores::{
        cx::{StoreCx, StoreOf},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

/// How many consumers handle side by side, each some of the keys.
const CONSUMERS: usize = 16;

/// How many keys, and how many messages of each. `POLYBUS_SEQUENCE_FLOW=1000x100` makes it a long run.
#[derive(Clone, Copy)]
struct Size {
    keys: usize,
    of_a_key: usize,
}

fn size() -> Size {
    let set = std::env::var("POLYBUS_SEQUENCE_FLOW").ok();
    let set = set.as_deref().and_then(|set| set.split_once('x'));
    let set = set.and_then(|(keys, of_a_key)| Some((keys.parse().ok()?, of_a_key.parse().ok()?)));
    let (keys, of_a_key) = set.unwrap_or((40, 12));
    Size { keys, of_a_key }
}

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    let Size { keys, of_a_key } = size();
    let mut flow = store_scenario(
        "sequence/flow",
        "Of numbered messages through three relays, what is lost, doubled and delayed on purpose is found, and nothing else.",
        flow,
    );
    flow.timeout += Duration::from_millis(2) * u32::try_from(keys * of_a_key).unwrap_or(u32::MAX);
    vec![flow]
}

/// What was done to the messages, by key and number.
#[derive(Default)]
struct Done {
    lost: BTreeSet<(String, u64)>,
    doubled: BTreeSet<(String, u64)>,
    delayed: BTreeSet<(String, u64)>,
}

async fn flow<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to, Size { keys, of_a_key }) = (cx.store().await?, Address::queue("q"), size());
    let broker = cx.ordered_broker(&["q"]).await?;
    let mut relays = Vec::new();
    for _ in 0..3 {
        relays.push(cx.relay(&broker, &cx.second(&store).await?));
    }
    let outbox = cx.outbox(&store).sequenced();
    for n in 0..of_a_key {
        for keys in (0..keys).collect::<Vec<_>>().chunks(keys.div_ceil(4)) {
            let mut tx = store.begin().await?;
            let one_each = keys.iter().map(|key| Envelope::new("t", format!("{key}/{n}")).key(format!("k{key}")));
            outbox.enqueue_all(&mut tx, to.clone(), one_each).await?;
            StoreOf::<T>::commit(tx).await?;
        }
    }
    cx.eventually("all were published", async || {
        let ids: BTreeSet<String> = broker.published(&to).into_iter().map(|m| m.id.to_string()).collect();
        Ok((ids.len() == keys * of_a_key).then_some(()))
    })
    .await?;
    for relay in relays {
        relay.stop().await?;
    }
    let mut seen = BTreeSet::new();
    let first = broker.published(&to).into_iter().filter(|m| seen.insert(m.id.clone())).collect();
    let (stream, done) = spoiled(&cx, first);
    ensure!(!done.lost.is_empty() && !done.doubled.is_empty() && !done.delayed.is_empty(), "this proves nothing");
    let (found, handled) = (Found::default(), Handled::default());
    let handler = Arc::new(guarded::<T>(&store, found.of(SequenceGuard::new().expect_first()), &handled));
    let mut consumers = Vec::new();
    for mine in shared_out(stream) {
        let handler = handler.clone();
        consumers.push(tokio::task::spawn_local(async move {
            for message in &mine {
                handle(&handler, message).await??;
            }
            Ok::<_, Failure>(())
        }));
    }
    for consumer in consumers {
        consumer.await??;
    }
    let told = told(&found)?;
    ensure_eq!(told.lost, done.lost, "lost");
    ensure_eq!(told.doubled, done.doubled, "doubled");
    ensure_eq!(told.delayed, done.delayed, "delayed");
    let (effects, wanted) = (cx.effects(&store).await?, keys * of_a_key - done.lost.len());
    ensure!(effects.len() == wanted && effects.values().all(|n| *n == 1), "{} effects of {wanted}", effects.len());
    Ok(())
}

/// The messages of each consumer, those of one key at one consumer.
fn shared_out(messages: Vec<Envelope>) -> Vec<Vec<Envelope>> {
    let (mut consumers, mut places) = (vec![Vec::new(); CONSUMERS], BTreeMap::new());
    for message in messages {
        let next = places.len() % CONSUMERS;
        let place = *places.entry(message.key.clone()).or_insert(next);
        consumers[place].push(message);
    }
    consumers
}

/// The messages as a bad broker delivers them. The last ones of a key come as they are, so that a loss before them
/// shows.
fn spoiled<T: StoreUnderTest>(cx: &StoreCx<T>, messages: Vec<Envelope>) -> (Vec<Envelope>, Done) {
    let mut keys: BTreeMap<String, Vec<Envelope>> = BTreeMap::new();
    for message in messages {
        keys.entry(message.key.as_deref().unwrap_or_default().to_owned()).or_default().push(message);
    }
    let (mut streams, mut done) = (Vec::new(), Done::default());
    for (key, messages) in keys {
        let (mut stream, mut waits): (Vec<Envelope>, Option<Envelope>) = (Vec::new(), None);
        for (n, message) in messages.into_iter().enumerate() {
            let id = (key.clone(), n as u64 + 1);
            match cx.random(if n + 2 < size().of_a_key { 10 } else { 1 }) {
                1 => drop(done.lost.insert(id)),
                2 => {
                    stream.extend([message.clone(), message]);
                    done.doubled.insert(id);
                }
                3 if waits.is_none() => {
                    waits = Some(message);
                    done.delayed.insert(id);
                }
                _ => {
                    stream.push(message);
                    stream.extend(waits.take());
                }
            }
        }
        streams.push(stream.into_iter());
    }
    // The keys side by side.
    let mut all = Vec::new();
    while !streams.is_empty() {
        let place = cx.random(streams.len() as u64) as usize;
        match streams[place].next() {
            Some(message) => all.push(message),
            None => drop(streams.swap_remove(place)),
        }
    }
    (all, done)
}

/// What the guard said was done.
fn told(found: &Found) -> Outcome<Done> {
    let mut done = Done::default();
    for (key, finding) in found.all() {
        match finding {
            SequenceFinding::Gap { first, last } => done.lost.extend((first..=last).map(|n| (key.clone(), n))),
            SequenceFinding::Late { number } => {
                ensure!(done.lost.remove(&(key.clone(), number)), "{key} {number} is late, and was not missing");
                done.delayed.insert((key, number));
            }
            SequenceFinding::Copy { number } => drop(done.doubled.insert((key, number))),
            other => return Err(Failure::new(format!("{key}: {other:?}"))),
        }
    }
    Ok(done)
}
