//! Publishing, the hard ones: neighbours of failures, outages, brokers that push back.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{
    Address, Envelope, Error, ErrorKind, QueueSpec, Receipt, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology,
};
use tokio::time::{Instant, timeout};

use super::tools::{publish_each, publish_until, rest, rest_with, same, stored};
use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, message, messages, scenario,
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "publish_hard/missing-topic-among-neighbours",
            "Publishes to a missing topic fail as NotFound; a hundred neighbours under way on other addresses do not.",
            missing_topic_among_neighbours,
        )
        .needs(|_, c| Need::topics(c)),
        scenario(
            "publish_hard/missing-queue-interleaved",
            "Publishes to a missing queue among those to existing ones: every result is what was stored.",
            missing_queue_interleaved,
        ),
        scenario(
            "publish_hard/deleted-under-way",
            "A queue deleted under many publishes makes each of them Ok or NotFound; others' go on.",
            deleted_under_way,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "publish_hard/huge-headers",
            "40 headers of 8 KiB are refused before any I/O, and the connection lives.",
            huge_headers,
        ),
        scenario(
            "publish_hard/no-ok-while-stalled",
            "While nothing can reach the broker no publish is Ok: what was sent times out as MayDuplicate, and is stored whole or not at all.",
            no_ok_while_stalled,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "publish_hard/outage",
            "During an outage a publish waits up to its timeout, then it is Unavailable; what is Safe was not stored.",
            outage,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "publish_hard/outage-ends",
            "A publish that began during an outage is Ok once the broker is back within its timeout.",
            outage_ends,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "publish_hard/cut-under-way",
            "Publishes under way when the connection is cut are sent again with the same ids: all Ok, none lost.",
            cut_under_way,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "publish_hard/acks-while-blocked",
            "While the broker blocks publishers, acks go on; what was held back is Ok once the block ends.",
            acks_while_blocked,
        )
        .needs(|t, _| Need::blocking(t))
        .alone(),
        scenario(
            "publish_hard/throttled",
            "A publish to a broker that blocks is Throttled at its timeout, also if it was on its way; what is Safe was not stored.",
            throttled,
        )
        .needs(|t, _| Need::blocking(t))
        .alone(),
    ]
}

fn is_ok(result: &Result<Receipt, Error>) -> Outcome {
    match result {
        Ok(_) => Ok(()),
        Err(e) => fail!("expected Ok, got {e:?}"),
    }
}

async fn missing_topic_among_neighbours(cx: Cx) -> Outcome {
    let topology = Topology::new()
        .queue("q", QueueSpec::new())
        .topic("t", TopicSpec::new().subscription("a", SubscriptionSpec::new()));
    let bus = cx.bus(topology).await?;
    let (queue, topic, nowhere) = (Address::queue("q"), Address::topic("t"), Address::topic("nowhere"));
    let (mut on_queue, mut on_topic) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let sent = messages(0..120);
        let to = |i: usize| match i % 12 {
            5 | 9 => &nowhere,
            n if n % 2 == 0 => &queue,
            _ => &topic,
        };
        let results = publish_each(&bus, sent.iter().enumerate().map(|(i, m)| (to(i), m))).await?;
        for (i, result) in results.into_iter().enumerate() {
            let address = to(i);
            if address == &nowhere {
                expect_kind!(result, ErrorKind::NotFound, "round {round}, publish {i} to {address}");
            } else {
                is_ok(&result).during(format!("round {round}, publish {i} to {address}"))?;
                if address == &queue { &mut on_queue } else { &mut on_topic }.push(sent[i].clone());
            }
        }
    }
    for (source, sent) in [(Source::queue("q"), on_queue), (Source::subscription("t", "a"), on_topic)] {
        let what = format!("what was published to {source}");
        let mut sub = bus.subscribe(source).prefetch(200).open().await?;
        same(&sent, &rest(&cx, &mut sub, sent.len()).await?, &what)?;
    }
    Ok(())
}

async fn missing_queue_interleaved(cx: Cx) -> Outcome {
    let topology = Topology::new().queue("a", QueueSpec::new()).queue("b", QueueSpec::new());
    let bus = cx.bus(topology).await?;
    let queues = ["a", "nowhere", "b"].map(Address::queue);
    let sent = messages(0..300);
    let to = |i: usize| &queues[i % 3];
    let mut results = Vec::new();
    // In three waves, the later ones on publishers that have seen a failure.
    for wave in 0..3 {
        let range = wave * 100..wave * 100 + 100;
        results.extend(publish_each(&bus, range.map(|i| (to(i), &sent[i]))).await?);
    }
    for (i, result) in results.iter().enumerate() {
        match result {
            Ok(_) if i % 3 != 1 => {}
            Err(e) if i % 3 == 1 && e.kind() == ErrorKind::NotFound => {}
            other => fail!("publish {i} to {}: {other:?}", to(i)),
        }
    }
    for (at, name) in [(0, "a"), (2, "b")] {
        let wanted: Vec<Envelope> = sent.iter().skip(at).step_by(3).cloned().collect();
        let mut sub = bus.subscribe(Source::queue(name)).prefetch(200).open().await?;
        same(&wanted, &rest(&cx, &mut sub, wanted.len()).await?, &format!("what was Ok on queue {name}"))?;
    }
    Ok(())
}

async fn deleted_under_way(cx: Cx) -> Outcome {
    let doomed = cx.setup(Topology::new().queue("doomed", QueueSpec::new())).open().await?;
    let bus = cx.bus(Topology::new().queue("q", QueueSpec::new())).await?;
    let (good, bad) = (Address::queue("q"), Address::queue("doomed"));
    let (kept, lost) = (messages(0..300), messages(0..300));
    let both = kept.iter().map(|m| (&good, m)).zip(lost.iter().map(|m| (&bad, m))).flat_map(|(a, b)| [a, b]);
    let tasks: Vec<_> = both.map(|(to, m)| tokio::spawn(bus.publish(to, m))).collect();
    tokio::task::yield_now().await;
    doomed.delete().await.during("delete")?;
    let mut results = Vec::new();
    for task in tasks {
        results.push(timeout(cx.patience() * 2, task).await.map_err(|_| crate::Failure::new("a publish hangs"))??);
    }
    for (i, result) in results.iter().enumerate().filter(|(i, _)| i % 2 == 0) {
        is_ok(result).during(format!("publish {} to the queue that stays", i / 2))?;
    }
    let doomed: Vec<_> = results.into_iter().skip(1).step_by(2).collect();
    stored(&lost, &doomed, ErrorKind::NotFound).during("on the deleted queue")?;
    let gone = Fixture { bus: bus.clone(), address: bad, source: Source::queue("doomed") };
    publish_until(&cx, &gone, &message(0), Some(ErrorKind::NotFound)).await?;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(200).open().await?;
    // RabbitMQ 4.0 may end the whole connection for it (541), and what had no confirm then is sent again: at least once.
    let mut left = rest_with(&cx, &mut sub, &kept).await?;
    let mut ids = std::collections::HashSet::new();
    left.retain(|envelope| ids.insert(envelope.id.clone()));
    same(&kept, &left, "on the queue that stays")
}

async fn huge_headers(cx: Cx) -> Outcome {
    let calls = crate::Calls::new();
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls).open().await?;
    let q = Fixture { bus, address: Address::queue("q"), source: Source::queue("q") };
    q.publish(message(0)).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.recv(&mut sub).await?;
    let before = calls.total();
    let huge = || (0..40).fold(message(1), |m, i| m.header(format!("h{i}"), "x".repeat(8 * 1024)));
    for _ in 0..3 {
        expect_kind!(q.bus.publish(&q.address, huge()).await, ErrorKind::PayloadTooLarge);
    }
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    let results = q.bus.publish_all(&q.address, vec![message(2), huge(), message(3)]).await;
    ensure!(results[0].is_ok() && results[2].is_ok(), "the neighbours: {results:?}");
    ensure!(results[1].is_err(), "huge headers were Ok in a batch");
    ensure!(held.is_held(), "the delivery in hand was lost, and with it the connection");
    held.ack().await.during("ack after the refusal")?;
    let mut got = crate::numbers(&cx.drain(&mut sub, 2).await?)?;
    got.sort_unstable();
    ensure_eq!(got, [2, 3], "the neighbours");
    cx.expect_none(&mut sub).await
}

fn one_queue(bus: polybus_core::Bus) -> Fixture {
    Fixture { bus, address: Address::queue("q"), source: Source::queue("q") }
}

/// A queue, seen directly and through a proxy with this publish timeout.
async fn behind(cx: &Cx, publish_timeout: Duration) -> Outcome<(Fixture, Fixture, crate::Proxy)> {
    let direct = cx.queue(QueueSpec::new()).await?;
    let proxy = cx.proxy().await?;
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).undeclared().through(&proxy);
    let bus = bus.options(|o| o.publish_timeout = publish_timeout).open().await?;
    Ok((direct, one_queue(bus), proxy))
}

/// A publish timeout whose end is waited for: within it the first ones must leave this process, and the client notice
/// an outage.
fn brief(cx: &Cx) -> Duration {
    cx.lateness(Duration::from_secs(2))
}

async fn no_ok_while_stalled(cx: Cx) -> Outcome {
    let limit = brief(&cx);
    let (direct, q, proxy) = behind(&cx, limit).await?;
    publish_until(&cx, &q, &message(0), None).await?;
    proxy.stall(true);
    let sent = messages(1..20);
    let started = Instant::now();
    let results = publish_each(&q.bus, sent.iter().map(|m| (&q.address, m))).await?;
    let took = started.elapsed();
    // What waited behind the batches on their way was never sent, and may say so.
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
    let got = rest_with(&cx, &mut sub, std::slice::from_ref(&last)).await?;
    let ids: BTreeSet<&str> = sent.iter().map(|e| &*e.id).collect();
    for envelope in &got {
        let n = crate::number(envelope)?;
        ensure!(ids.contains(&*envelope.id) || n == 0 || n == 100, "never sent: {envelope:?}");
        ensure!(!safe.contains(&envelope.id), "stored, though its publish said Safe: {envelope:?}");
    }
    Ok(())
}

/// Publishes that end while the broker cannot be had: each must be of one of these kinds, and Safe or MayDuplicate. The ids
/// of those that say Safe.
fn given_up(sent: &[Envelope], results: &[Result<Receipt, Error>], kinds: &[ErrorKind]) -> Outcome<BTreeSet<Box<str>>> {
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
    let limit = brief(&cx);
    let (direct, q, proxy) = behind(&cx, limit).await?;
    publish_until(&cx, &q, &message(0), None).await?;
    proxy.refuse(true).await;
    proxy.cut();
    let sent = messages(1..50);
    let started = Instant::now();
    let results = publish_each(&q.bus, sent.iter().map(|m| (&q.address, m))).await?;
    let took = started.elapsed();
    let safe = given_up(&sent, &results, &[ErrorKind::Unavailable])?;
    let most = limit + cx.lateness(Duration::from_secs(5));
    ensure!(took < most, "a publish timeout of {limit:?} took {took:?}");
    ensure!(took > limit / 2, "it gave up after {took:?}, long before its timeout of {limit:?}");
    // The first may have met the cut on their way. Those that begin in the outage cannot; but of what is tried once more as the
    // time runs out, nobody knows.
    let later = messages(50..60);
    let results = publish_each(&q.bus, later.iter().map(|m| (&q.address, m))).await?;
    let safe_later = given_up(&later, &results, &[ErrorKind::Unavailable])?;
    let (safe_ones, all) = (safe_later.len(), later.len());
    ensure!(safe_ones * 2 >= all, "{safe_ones} of {all} publishes in the outage say Safe");

    proxy.refuse(false).await;
    let last = message(100);
    publish_until(&cx, &q, &last, None).await?;
    let mut sub = direct.subscribe(200).await?;
    for envelope in rest_with(&cx, &mut sub, std::slice::from_ref(&last)).await? {
        let said_safe = safe.contains(&envelope.id) || safe_later.contains(&envelope.id);
        ensure!(!said_safe, "stored, though its publish said Safe: {envelope:?}");
    }
    Ok(())
}

async fn outage_ends(cx: Cx) -> Outcome {
    let (direct, q, proxy) = behind(&cx, cx.patience()).await?;
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
    let got = rest_with(&cx, &mut sub, &sent).await?;
    let ids: BTreeSet<&str> = got.iter().map(|e| &*e.id).collect();
    ensure!(sent.iter().all(|e| ids.contains(&*e.id)), "a publish that was Ok is lost");
    Ok(())
}

async fn cut_under_way(cx: Cx) -> Outcome {
    let (direct, q, proxy) = behind(&cx, cx.patience()).await?;
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
    let got = rest_with(&cx, &mut sub, &sent).await?;
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
    got.extend(crate::numbers(&rest_with(&cx, &mut sub, &sent).await?)?);
    got.sort_unstable();
    let wanted: Vec<usize> = (20..40).chain(100..110).collect();
    ensure_eq!(got.into_iter().collect::<BTreeSet<_>>(), wanted.into_iter().collect(), "what came after the first 20");
    Ok(())
}

async fn throttled(cx: Cx) -> Outcome {
    let (limit, direct) = (brief(&cx), cx.queue(QueueSpec::new()).await?);
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).undeclared();
    let q = one_queue(bus.options(|o| o.publish_timeout = limit).open().await?);
    publish_until(&cx, &q, &message(0), None).await?;
    cx.block().await?;
    let sent = messages(1..20);
    let started = Instant::now();
    let results = publish_each(&q.bus, sent.iter().map(|m| (&q.address, m))).await?;
    let took = started.elapsed();
    let mut safe = given_up(&sent, &results, &[ErrorKind::Throttled])?;
    let most = limit + cx.lateness(Duration::from_secs(5));
    ensure!(took >= limit / 2 && took < most, "a publish timeout of {limit:?} took {took:?}");
    let later = messages(20..30);
    let results = publish_each(&q.bus, later.iter().map(|m| (&q.address, m))).await?;
    let safe_later = given_up(&later, &results, &[ErrorKind::Throttled])?;
    ensure_eq!(safe_later.len(), later.len(), "publishes of a known block that say Safe");
    safe.extend(safe_later);
    cx.unblock().await?;
    let last = message(100);
    publish_until(&cx, &q, &last, None).await?;
    let mut sub = direct.subscribe(200).await?;
    for envelope in rest_with(&cx, &mut sub, std::slice::from_ref(&last)).await? {
        ensure!(!safe.contains(&envelope.id), "stored, though its publish said Safe: {envelope:?}");
    }
    Ok(())
}
