//! Publishes that meet an outage, a cut, a stalled connection, or a broker that holds publishers back.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{Address, Envelope, Error, ErrorKind, QueueSpec, Receipt, RetrySafety, Source, Topology};
use tokio::time::{Instant, timeout};

use super::is_ok;
use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, fail, message, messages, scenario,
    scenarios::shared::{publish_each, publish_until, take_rest_with},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "publish/no-ok-while-stalled",
            "While nothing can reach the broker no publish is Ok: what was sent times out as MayDuplicate, and is stored whole or not at all.",
            no_ok_while_stalled,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "publish/outage",
            "During an outage a publish waits up to its timeout, then it is Unavailable; what is Safe was not stored.",
            outage,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "publish/outage-ends",
            "A publish that began during an outage is Ok once the broker is back within its timeout.",
            outage_ends,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "publish/cut-under-way",
            "Publishes under way when the connection is cut are sent again with the same ids: all Ok, none lost.",
            cut_under_way,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "publish/acks-while-blocked",
            "While the broker blocks publishers, acks go on; what was held back is Ok once the block ends.",
            acks_while_blocked,
        )
        .needs(|t, _| Need::blocking(t))
        .alone(),
        scenario(
            "publish/throttled",
            "A publish to a broker that blocks is Throttled at its timeout, also if it was on its way; what is Safe was not stored.",
            throttled,
        )
        .needs(|t, _| Need::blocking(t))
        .alone(),
    ]
}

fn one_queue(bus: polybus_core::Bus) -> Fixture {
    Fixture { bus, address: Address::queue("q"), source: Source::queue("q") }
}

/// A queue, once through the direct bus and once through a bus behind the proxy, with this publish timeout.
async fn queue_behind_proxy(cx: &Cx, publish_timeout: Duration) -> Outcome<(Fixture, Fixture, crate::Proxy)> {
    let direct = cx.queue(QueueSpec::new()).await?;
    let proxy = cx.proxy().await?;
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).undeclared().through(&proxy);
    let bus = bus.options(|o| o.publish_timeout = publish_timeout).open().await?;
    Ok((direct, one_queue(bus), proxy))
}

/// A publish timeout whose end a scenario waits for. Within it the first publishes must leave this process, and the
/// client must notice an outage.
fn brief_timeout(cx: &Cx) -> Duration {
    cx.lateness(Duration::from_secs(2))
}

async fn no_ok_while_stalled(cx: Cx) -> Outcome {
    let limit = brief_timeout(&cx);
    let (direct, q, proxy) = queue_behind_proxy(&cx, limit).await?;
    publish_until(&cx, &q, &message(0), None).await?;
    proxy.stall(true);
    let sent = messages(1..20);
    let started = Instant::now();
    let results = publish_each(&q.bus, sent.iter().map(|m| (&q.address, m))).await?;
    let took = started.elapsed();
    // Publishes that waited behind the batches under way were never sent, and say Safe.
    let mut safe = BTreeSet::new();
    for (i, (message, result)) in sent.iter().zip(results).enumerate() {
        let Err(e) = result else { fail!("publish {i} is Ok, and nothing can have reached the broker") };
        ensure!(matches!(e.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "publish {i}: {e:?}");
        match e.retry() {
            RetrySafety::Safe => drop(safe.insert(message.id.clone())),
            retry => ensure_eq!(retry, RetrySafety::MayDuplicate, "retry of publish {i}: {e:?}"),
        }
    }
    ensure!(safe.len() < sent.len(), "every publish says Safe, though the first were sent");
    let most = limit + cx.lateness(Duration::from_secs(5));
    ensure!(took >= limit / 2 && took < most, "a publish timeout of {limit:?} took {took:?}");
    proxy.stall(false);
    let last = message(100);
    publish_until(&cx, &q, &last, None).await?;
    let mut sub = direct.subscribe(200).await?;
    let got = take_rest_with(&cx, &mut sub, std::slice::from_ref(&last)).await?;
    let ids: BTreeSet<&str> = sent.iter().map(|e| &*e.id).collect();
    for envelope in &got {
        let n = crate::number(envelope)?;
        ensure!(ids.contains(&*envelope.id) || n == 0 || n == 100, "never sent: {envelope:?}");
        ensure!(!safe.contains(&envelope.id), "stored, though its publish said Safe: {envelope:?}");
    }
    Ok(())
}

/// Fails unless each publish ended with one of these kinds, Safe or MayDuplicate. Returns the ids of those that say
/// Safe.
fn check_given_up(
    sent: &[Envelope],
    results: &[Result<Receipt, Error>],
    kinds: &[ErrorKind],
) -> Outcome<BTreeSet<Box<str>>> {
    let mut safe = BTreeSet::new();
    for (i, (message, result)) in sent.iter().zip(results).enumerate() {
        let Err(e) = result else { fail!("publish {i} is Ok without a broker") };
        ensure!(kinds.contains(&e.kind()), "publish {i} should be one of {kinds:?}: {e:?}");
        match e.retry() {
            RetrySafety::Safe => drop(safe.insert(message.id.clone())),
            RetrySafety::MayDuplicate => {}
            other => fail!("publish {i} says retry = {other:?}: {e:?}"),
        }
    }
    Ok(safe)
}

async fn outage(cx: Cx) -> Outcome {
    let limit = brief_timeout(&cx);
    let (direct, q, proxy) = queue_behind_proxy(&cx, limit).await?;
    publish_until(&cx, &q, &message(0), None).await?;
    proxy.refuse(true).await;
    proxy.cut();
    let sent = messages(1..50);
    let started = Instant::now();
    let results = publish_each(&q.bus, sent.iter().map(|m| (&q.address, m))).await?;
    let took = started.elapsed();
    let safe = check_given_up(&sent, &results, &[ErrorKind::Unavailable])?;
    let most = limit + cx.lateness(Duration::from_secs(5));
    ensure!(took < most, "a publish timeout of {limit:?} took {took:?}");
    ensure!(took > limit / 2, "it gave up after {took:?}, long before its timeout of {limit:?}");
    // The first publishes may have been under way at the cut. Later ones begin in the outage and are Safe, unless an
    // attempt was still under way at the timeout.
    let later = messages(50..60);
    let results = publish_each(&q.bus, later.iter().map(|m| (&q.address, m))).await?;
    let safe_later = check_given_up(&later, &results, &[ErrorKind::Unavailable])?;
    let (safe_ones, all) = (safe_later.len(), later.len());
    ensure!(safe_ones * 2 >= all, "{safe_ones} of {all} publishes in the outage say Safe");

    proxy.refuse(false).await;
    let last = message(100);
    publish_until(&cx, &q, &last, None).await?;
    let mut sub = direct.subscribe(200).await?;
    for envelope in take_rest_with(&cx, &mut sub, std::slice::from_ref(&last)).await? {
        let said_safe = safe.contains(&envelope.id) || safe_later.contains(&envelope.id);
        ensure!(!said_safe, "stored, though its publish said Safe: {envelope:?}");
    }
    Ok(())
}

async fn outage_ends(cx: Cx) -> Outcome {
    let (direct, q, proxy) = queue_behind_proxy(&cx, cx.patience()).await?;
    q.publish(message(0)).await?;
    proxy.refuse(true).await;
    proxy.cut();
    let sent = messages(1..50);
    let publishing = publish_each(&q.bus, sent.iter().map(|m| (&q.address, m)));
    tokio::pin!(publishing);
    if let Ok(results) = timeout(Duration::from_secs(1), &mut publishing).await {
        fail!("publishes ended in the outage, long before their timeout: {:?}", results?.first());
    }
    proxy.refuse(false).await;
    for (i, result) in publishing.await?.iter().enumerate() {
        is_ok(result).during(format!("publish {i}, begun in the outage"))?;
    }
    let mut sub = direct.subscribe(200).await?;
    let got = take_rest_with(&cx, &mut sub, &sent).await?;
    let ids: BTreeSet<&str> = got.iter().map(|e| &*e.id).collect();
    ensure!(sent.iter().all(|e| ids.contains(&*e.id)), "a publish that was Ok is lost");
    Ok(())
}

async fn cut_under_way(cx: Cx) -> Outcome {
    let (direct, q, proxy) = queue_behind_proxy(&cx, cx.patience()).await?;
    q.publish(message(0)).await?;
    let mut sent = Vec::new();
    for round in 0..3_u32 {
        let batch: Vec<_> = (0..400).map(|_| Envelope::new("test.big", vec![b'x'; 1024])).collect();
        proxy.cut_after(50_000 + round * 70_001);
        let results = publish_each(&q.bus, batch.iter().map(|m| (&q.address, m))).await?;
        for (i, result) in results.iter().enumerate() {
            is_ok(result).during(format!("round {round}, publish {i}"))?;
        }
        sent.extend(batch);
    }
    ensure!(proxy.opened() >= 4, "the connection was not cut: {} were opened", proxy.opened());
    let mut sub = direct.subscribe(500).await?;
    let got = take_rest_with(&cx, &mut sub, &sent).await?;
    let ids: BTreeSet<&str> = got.iter().map(|e| &*e.id).collect();
    let lost = sent.iter().filter(|e| !ids.contains(&*e.id)).count();
    ensure_eq!(lost, 0, "publishes that were Ok and are lost");
    ensure!(got.iter().all(|e| e.data.len() <= 1024), "a message that was never sent");
    Ok(())
}

async fn acks_while_blocked(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..40)).await?;
    let mut sub = q.subscribe(20).await?;
    let held = cx.collect(&mut sub, 20).await?;
    cx.block().await?;
    let sent = messages(100..110);
    let blocked: Vec<_> = sent.iter().map(|m| tokio::spawn(q.bus.publish(&q.address, m))).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let early = blocked.iter().filter(|t| t.is_finished()).count();
    ensure_eq!(early, 0, "publishes that ended while the broker holds publishers back");
    for (i, delivery) in held.into_iter().enumerate() {
        match timeout(cx.patience(), delivery.ack()).await {
            Ok(acked) => acked.during(format!("ack {i} while publishing is blocked"))?,
            Err(_) => fail!("ack {i} hangs while publishing is blocked"),
        }
    }
    let more = cx.drain(&mut sub, 20).await.during("receiving while publishing is blocked")?;
    cx.unblock().await?;
    for (i, task) in blocked.into_iter().enumerate() {
        let result = timeout(cx.patience(), task).await;
        let result = result.map_err(|_| crate::Failure::new("a publish hangs after the block"))??;
        is_ok(&result).during(format!("publish {i} after the block"))?;
    }
    let mut got = crate::numbers(&more)?;
    got.extend(crate::numbers(&take_rest_with(&cx, &mut sub, &sent).await?)?);
    got.sort_unstable();
    let wanted: Vec<usize> = (20..40).chain(100..110).collect();
    ensure_eq!(got.into_iter().collect::<BTreeSet<_>>(), wanted.into_iter().collect(), "what came after the first 20");
    Ok(())
}

async fn throttled(cx: Cx) -> Outcome {
    let (limit, direct) = (brief_timeout(&cx), cx.queue(QueueSpec::new()).await?);
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).undeclared();
    let q = one_queue(bus.options(|o| o.publish_timeout = limit).open().await?);
    publish_until(&cx, &q, &message(0), None).await?;
    cx.block().await?;
    let sent = messages(1..20);
    let started = Instant::now();
    let results = publish_each(&q.bus, sent.iter().map(|m| (&q.address, m))).await?;
    let took = started.elapsed();
    let mut safe = check_given_up(&sent, &results, &[ErrorKind::Throttled])?;
    let most = limit + cx.lateness(Duration::from_secs(5));
    ensure!(took >= limit / 2 && took < most, "a publish timeout of {limit:?} took {took:?}");
    let later = messages(20..30);
    let results = publish_each(&q.bus, later.iter().map(|m| (&q.address, m))).await?;
    let safe_later = check_given_up(&later, &results, &[ErrorKind::Throttled])?;
    ensure_eq!(safe_later.len(), later.len(), "publishes of a known block that say Safe");
    safe.extend(safe_later);
    cx.unblock().await?;
    let last = message(100);
    publish_until(&cx, &q, &last, None).await?;
    let mut sub = direct.subscribe(200).await?;
    for envelope in take_rest_with(&cx, &mut sub, std::slice::from_ref(&last)).await? {
        ensure!(!safe.contains(&envelope.id), "stored, though its publish said Safe: {envelope:?}");
    }
    Ok(())
}
