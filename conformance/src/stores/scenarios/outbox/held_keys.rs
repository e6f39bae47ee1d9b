//! A key that a parked row holds up: its later rows wait, and nobody else's.

use polybus_core::{Address, Envelope, Error, ErrorKind, memory::MemoryDriver};
use polybus_patterns::store::{OutboxStore, ParkedFilter};

use crate::{
    Outcome, ensure, ensure_eq,
    stores::{
        broker::{AddressTrouble, StoreBroker},
        cx::{StoreCx, of_key, ordered},
        relays::{RunningRelay, relay},
        scenario::{StoreScenario, store_scenario},
        target::StoreUnderTest,
    },
};

pub(super) fn all<T: StoreUnderTest>() -> Vec<StoreScenario<T>> {
    vec![
        store_scenario(
            "outbox/held-key",
            "A parked row with hold_key holds up 2,000 rows of its key and no other key, for the next relay as well.",
            held_key,
        ),
        store_scenario(
            "outbox/beside-a-held-key",
            "A row of another key does not wait for one that fails again and again, nor for its next attempt.",
            beside_a_held_key,
        ),
        store_scenario("outbox/key-goes-on", "Without hold_key, a key goes on behind its parked row.", key_goes_on),
    ]
}

/// A broker whose largest message is small, and a message that is larger.
async fn narrow_broker() -> Outcome<(StoreBroker, Envelope)> {
    let broker = StoreBroker::undeclared(MemoryDriver::new().max_message_size(10_000), ordered(&["q"]))?;
    broker.bus.declare().await?;
    Ok((broker, Envelope::new("t", vec![b'x'; 20_000]).key("bad")))
}

async fn held_key<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let (broker, poison) = narrow_broker().await?;
    cx.enqueue(&store, &to, [poison]).await?;
    cx.enqueue(&store, &to, of_key("bad", 0..2_000)).await?;
    let holding = || RunningRelay::start(relay(&broker.bus, &store).hold_key(true));
    let of_others = |round: usize| (0..100).map(move |n| Envelope::new("t", "x").key(format!("{round}-{n}")));
    for round in 0..2 {
        // The second one has never seen the parked row.
        let relay = holding();
        cx.enqueue(&store, &to, of_others(round)).await?;
        cx.published(&broker, &to, (round + 1) * 100).await?;
        cx.eventually("the row is parked", async || Ok((store.outbox().stats(10).await?.parked == 1).then_some(())))
            .await?;
        relay.stop().await?;
    }
    let bad = |broker: &StoreBroker| -> Vec<String> {
        let of_key = broker.published(&to).into_iter().filter(|m| m.key.as_deref() == Some("bad"));
        of_key.map(|m| String::from_utf8_lossy(&m.data).into_owned()).collect()
    };
    // The rows in front of the parked one went before it was parked: there are none.
    ensure_eq!(bad(&broker).len(), 0, "messages of the held key");
    let parked = store.outbox().parked(&ParkedFilter::All, 0, 10).await?;
    ensure!(parked.len() == 1 && parked[0].holds_key, "parked: {parked:?}");
    let relay = holding();
    let discarded = cx.outbox(&store).discard_parked(&ParkedFilter::Ids(vec![parked[0].id])).await?;
    ensure_eq!(discarded, 1, "rows discarded");
    cx.published(&broker, &to, 2_200).await?;
    relay.stop().await?;
    ensure_eq!(bad(&broker), (0..2_000).map(|n| n.to_string()).collect::<Vec<_>>(), "the held key's messages");
    Ok(())
}

async fn beside_a_held_key<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let broker = cx.ordered_broker(&["q"]).await?;
    let relay = cx.relay(&broker, &store);
    // Of all slots.
    let others = || (0..64).map(|n| Envelope::new("t", "x").key(format!("k{n}")));
    let bad = Envelope::new("t", "bad").key("bad");
    let denied = Error::new(ErrorKind::PermissionDenied, "not this key");
    broker.trouble(&to, Some(AddressTrouble::Fails(vec![bad.id.to_string()], denied)));
    cx.enqueue(&store, &to, std::iter::once(bad.clone()).chain(others())).await?;
    cx.published(&broker, &to, 64).await?;
    let mut sent = 64;
    let mut passed = false;
    // Each wait for the next attempt is twice as long as the one before, from 400 ms after the fifth on: in one of them
    // the others come, however slow the machine is.
    for attempts in 5..=11 {
        cx.eventually("attempts", async || Ok((broker.refused(&bad.id) >= attempts).then_some(()))).await?;
        let before = broker.refused(&bad.id);
        cx.enqueue(&store, &to, others()).await?;
        sent += 64;
        cx.published(&broker, &to, sent).await?;
        passed = broker.refused(&bad.id) == before;
        if passed {
            break;
        }
    }
    ensure!(passed, "rows of other keys came with the next attempt at the one that fails, each time");
    broker.trouble(&to, None);
    cx.published(&broker, &to, sent + 1).await?;
    let report = relay.stop().await?;
    ensure_eq!(report.parked, 0, "parked rows");
    Ok(())
}

async fn key_goes_on<T: StoreUnderTest>(cx: StoreCx<T>) -> Outcome {
    let (store, to) = (cx.store().await?, Address::queue("q"));
    let (broker, poison) = narrow_broker().await?;
    cx.enqueue(&store, &to, of_key("bad", 0..3)).await?;
    cx.enqueue(&store, &to, [poison]).await?;
    cx.enqueue(&store, &to, of_key("bad", 3..6)).await?;
    let report = cx.relay_until(&broker, &store, &to, 6).await?;
    ensure_eq!((report.published, report.parked), (6, 1), "published and parked");
    ensure_eq!(broker.texts(&to), (0..6).map(|n| n.to_string()).collect::<Vec<_>>(), "what was published");
    let parked = store.outbox().parked(&ParkedFilter::All, 0, 10).await?;
    ensure!(parked.len() == 1 && !parked[0].holds_key, "parked: {parked:?}");
    ensure_eq!(parked[0].message()?.data.len(), 20_000, "the payload of the parked row");
    Ok(())
}
