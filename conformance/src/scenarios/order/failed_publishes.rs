//! Publishes that fail within a key, and connections that are cut within batches.

use std::time::Duration;

use polybus_core::{Address, Envelope, Error, ErrorKind, Outgoing, Receipt, RetrySafety, Topology};

use super::{ordered_queue, three_keys};
use crate::{
    Cx, During, Failure, Need, Outcome, Scenario, ensure_eq, expect_after_failed, expect_kind, fail, scenario,
    scenarios::shared::{first_numbers_of, keyed, numbers_of},
};

pub(super) fn all() -> Vec<Scenario> {
    let ordered = |s: Scenario| s.needs(|_, c| Need::ordered(c));
    vec![
        scenario(
            "order/partial-failure",
            "After a failure within a key, the key's later ones are not sent; other keys are not concerned.",
            partial_failure,
        )
        .needs(|_, c| Need::ordered(c).and(Need::queue_limit(c))),
        ordered(scenario(
            "order/refused-within-a-key",
            "A message refused before any I/O fails the later ones of its key in the call, and no others.",
            refused_within_a_key,
        )),
        ordered(scenario(
            "order/missing-address",
            "A batch to a missing ordered queue: NotFound for each key's first, the rest are not sent.",
            missing_address,
        )),
        scenario(
            "order/cut-while-publishing",
            "A connection cut within batches: each message is stored, first copies in the order of the calls.",
            cut_while_publishing,
        )
        .needs(|t, c| Need::ordered(c).and(Need::proxy(t))),
    ]
}

fn big(key: &str, n: usize, bytes: usize) -> Envelope {
    keyed(key, n).edit(|p| p.data = vec![b'x'; bytes].into())
}

async fn partial_failure(cx: Cx) -> Outcome {
    let topology = Topology::new().queue("q", ordered_queue());
    let bus = cx.setup(topology).parameter("max_message_size", "64KiB").open().await?;
    let to = Address::queue("q");
    let mut sent: Vec<Envelope> = (0..20).map(|i| keyed(["a", "b"][i % 2], i / 2)).collect();
    sent[6] = big("a", 3, 100_000);
    let failed = sent[6].id.clone();
    let results = bus.publish_all(&to, sent.clone()).await;
    for (i, result) in results.iter().enumerate() {
        let what = format!("result {i}");
        match (i % 2, i) {
            (0, 6) => drop(expect_kind!(result.clone(), ErrorKind::PayloadTooLarge, "{what}")),
            (0, 7..) => after_failed(result, &failed, &what)?,
            _ => drop(result.clone().during(what)?),
        }
    }
    // The failure concerns its own call alone.
    bus.publish(&to, keyed("a", 99)).await.during("the key, in another call")?;
    let mut sub = bus.subscribe(polybus_core::Source::queue("q")).prefetch(20).open().await?;
    let got = cx.drain(&mut sub, 14).await?;
    ensure_eq!(numbers_of(&got, "a")?, vec![0, 1, 2, 99], "what was stored of the key");
    ensure_eq!(numbers_of(&got, "b")?, (0..10).collect::<Vec<_>>(), "what was stored of the other");
    cx.expect_none(&mut sub).await
}

fn after_failed(result: &Result<Receipt, Error>, id: &str, what: &str) -> Outcome {
    expect_after_failed(result, id, what)?;
    match result {
        Err(e) if e.retry() == RetrySafety::Safe => Ok(()),
        _ => Err(Failure::new(format!("{what}: not sent, so Safe to send again: {result:?}"))),
    }
}

async fn refused_within_a_key(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let mut sent: Vec<Outgoing> = (0..12).map(|i| keyed(["a", "b", "c"][i % 3], i / 3).into()).collect();
    let past = q.bus.now() - Duration::from_secs(60);
    sent[4].envelope = sent[4].envelope.clone().expires_at(past);
    let failed = sent[4].envelope.id.clone();
    let results = q.bus.publish_all(&q.address, sent).await;
    for (i, result) in results.iter().enumerate() {
        let what = format!("result {i}");
        match i {
            4 => drop(expect_kind!(result.clone(), ErrorKind::InvalidArgument, "{what}")),
            7 | 10 => after_failed(result, &failed, &what)?,
            _ => drop(result.clone().during(what)?),
        }
    }
    let mut sub = q.subscribe(20).await?;
    let got = cx.drain(&mut sub, 9).await?;
    ensure_eq!(numbers_of(&got, "b")?, vec![0], "what was stored of the key");
    cx.expect_none(&mut sub).await
}

async fn missing_address(cx: Cx) -> Outcome {
    let topology = Topology::new().queue("q", ordered_queue()).queue("gone", ordered_queue());
    let bus = cx.setup(topology).make().await??;
    let results = bus.publish_all(Address::queue("gone"), (0..10).map(|i| keyed(["a", "b"][i % 2], i))).await;
    ensure_eq!(results.len(), 10, "results");
    for (i, result) in results.iter().enumerate() {
        match result.as_ref().map_err(Error::kind) {
            Err(ErrorKind::NotFound) => {}
            Err(ErrorKind::Unavailable) if i > 1 => {}
            _ => fail!("result {i} of a missing queue: {result:?}"),
        }
    }
    bus.declare().await.during("declare")?;
    bus.publish(Address::queue("gone"), keyed("a", 0)).await.during("publish once it is there")?;
    Ok(())
}

async fn cut_while_publishing(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(ordered_queue()).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    through.publish_all(three_keys(3)).await?;
    for (round, bytes) in [40_000, 3_000, 90_000].into_iter().enumerate() {
        proxy.cut_after(bytes);
        let first = 3 + round * 300;
        through.publish_all(three_keys(first + 300).skip(first)).await.during(format!("round {round}"))?;
    }
    let mut sub = q.subscribe(100).await?;
    let mut got = Vec::new();
    let mut distinct = std::collections::BTreeSet::new();
    while distinct.len() < 903 {
        let d = cx.recv(&mut sub).await.during(format!("{} of 903 messages so far", distinct.len()))?;
        distinct.insert(d.envelope().id.clone());
        got.push(d.envelope().clone());
        d.ack().await?;
    }
    for key in ["k0", "k1", "k2"] {
        ensure_eq!(first_numbers_of(&got, key)?, (0..301).collect::<Vec<_>>(), "first copies of {key}");
    }
    Ok(())
}
