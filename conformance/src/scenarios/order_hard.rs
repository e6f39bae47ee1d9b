//! Order per key where it is hard: consumers that end, windows that are full, batches that fail in part.

use std::time::Duration;

use polybus_core::{
    Address, Envelope, Error, ErrorKind, Outgoing, QueueSpec, Receipt, RetrySafety, SubscriptionSpec, TopicSpec,
    Topology, driver::KeyHolder,
};
use tokio::time::Instant;

use super::lanes::{first_numbers_of, keyed, numbers_of};
use crate::{
    Cx, During, Failure, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_after_failed, expect_kind, fail,
    number, numbers, scenario,
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    let ordered = |s: Scenario| s.needs(|_, c| Need::ordered(c));
    vec![
        ordered(scenario(
            "order_hard/close-with-a-standby",
            "An active consumer closes with unacked messages while another waits: that one goes on in order.",
            close_with_a_standby,
        )),
        scenario(
            "order_hard/crash-with-a-standby",
            "An active consumer is killed while another waits: that one goes on in order.",
            crash_with_a_standby,
        )
        .needs(|t, c| Need::ordered(c).and(Need::processes(t))),
        ordered(scenario(
            "order_hard/stop-then-settle",
            "A stopped consumer settles what it holds; then the next one goes on in order.",
            stop_then_settle,
        )),
        ordered(scenario(
            "order_hard/full-window",
            "A blocked key whose backlog is larger than the prefetch: once it is settled, all go on in order.",
            full_window,
        )),
        ordered(scenario(
            "order_hard/full-window-retry",
            "A retried head in front of more than the prefetch comes back in place, and all go on in order.",
            full_window_retry,
        )),
        ordered(scenario(
            "order_hard/failed-head",
            "A head that fails in front of nine buffered siblings holds them back, and does not burn their attempts.",
            failed_head,
        )),
        scenario(
            "order_hard/partial-failure",
            "After a failure within a key, the key's later ones are not sent; other keys are not concerned.",
            partial_failure,
        )
        .needs(|_, c| Need::ordered(c).and(Need::queue_limit(c))),
        ordered(scenario(
            "order_hard/refused-within-a-key",
            "A message refused before any I/O fails the later ones of its key in the call, and no others.",
            refused_within_a_key,
        )),
        ordered(scenario(
            "order_hard/missing-address",
            "A batch to a missing ordered queue: NotFound for each key's first, the rest are not sent.",
            missing_address,
        )),
        ordered(scenario(
            "order_hard/ten-rounds",
            "Ten consumers one after another, each closing with messages in hand, see each key in order.",
            ten_rounds,
        )),
        ordered(scenario(
            "order_hard/one-key-hog",
            "A key with 500 messages waiting does not keep the others from being handed out for ever.",
            one_key_hog,
        )),
        scenario(
            "order_hard/cut-while-holding",
            "A connection cut while messages are held: settling them is LockLost, and each key goes on in order.",
            cut_while_holding,
        )
        .needs(|t, c| Need::ordered(c).and(Need::proxy(t))),
        scenario(
            "order_hard/cut-while-publishing",
            "A connection cut within batches: each message is stored, first copies in the order of the calls.",
            cut_while_publishing,
        )
        .needs(|t, c| Need::ordered(c).and(Need::proxy(t))),
        scenario(
            "order_hard/close-on-a-topic",
            "A subscription's consumer that closes with messages in hand reorders nothing, there or beside it.",
            close_on_a_topic,
        )
        .needs(|_, c| Need::ordered_topics(c)),
        scenario(
            "order_hard/dead-letters-keep-keys",
            "Redriven dead letters of an ordered source come back with their keys, each once.",
            redriven,
        )
        .needs(|_, c| Need::ordered(c).and(Need::redrive(c))),
    ]
}

fn ordered() -> QueueSpec {
    QueueSpec::new().ordered(true).max_deliveries(50)
}

fn three_keys(n: usize) -> impl Iterator<Item = Envelope> {
    (0..n).map(|i| keyed(&format!("k{}", i % 3), i / 3))
}

/// The three keys are each from `first` to `n / 3`, in order.
fn in_order(got: &[Envelope], first: usize, n: usize, when: &str) -> Outcome {
    for key in ["k0", "k1", "k2"] {
        ensure_eq!(numbers_of(got, key)?, (first..n / 3).collect::<Vec<_>>(), "order of {key} {when}");
    }
    Ok(())
}

async fn close_with_a_standby(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut active = q.subscribe(10).await?;
    q.publish_all(three_keys(30)).await?;
    let held = cx.collect(&mut active, 3).await?;
    ensure!(held.iter().all(|d| d.envelope().data == "0"), "the first of each key is handed out first: {held:?}");
    let mut standby = other.subscribe(10).await?;
    let closing = async {
        active.close().await?;
        q.bus.close().await?;
        Ok(held)
    };
    let took_over = async { cx.drain(&mut standby, 30).await };
    let (closed, got): (Outcome<Vec<_>>, _) = tokio::join!(closing, took_over);
    in_order(&got.during("the standby")?, 0, 30, "at the standby")?;
    for d in closed.during("close")? {
        expect_kind!(d.ack().await, ErrorKind::LockLost, "ack after the close");
    }
    cx.expect_none(&mut standby).await
}

async fn crash_with_a_standby(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    q.publish_all(three_keys(30)).await?;
    let child = cx.child(&q.bus, &q.source, 10, 3).await?;
    let mut standby = q.subscribe(10).await?;
    child.kill().await?;
    in_order(&cx.drain(&mut standby, 30).await?, 0, 30, "at the standby")
}

async fn stop_then_settle(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    q.publish_all(three_keys(30)).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.collect(&mut sub, 3).await?;
    sub.stop().await?;
    for d in held {
        d.ack().await.during("ack after stop")?;
    }
    sub.close().await?;
    let mut next = other.subscribe(10).await?;
    in_order(&cx.drain(&mut next, 27).await?, 1, 30, "after the stop")?;
    cx.expect_none(&mut next).await
}

/// A head of a key that is held while more than the prefetch waits behind it, and one message of another key.
async fn behind(cx: &Cx, q: &Fixture, sub: &mut polybus_core::Subscription) -> Outcome<polybus_core::Delivery> {
    q.publish_all((0..25).map(|n| keyed("a", n))).await?;
    let held = cx.recv(sub).await?;
    ensure_eq!(number(held.envelope())?, 0, "the head");
    q.publish(keyed("b", 0)).await?;
    Ok(held)
}

fn holds_at_the_broker(cx: &Cx) -> bool {
    cx.capabilities().ordered.as_ref().is_some_and(|o| o.hold == KeyHolder::Broker)
}

async fn full_window(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    let mut sub = q.subscribe(4).await?;
    let held = behind(&cx, &q, &mut sub).await?;
    let mut got = Vec::new();
    if holds_at_the_broker(&cx) {
        got = cx.drain(&mut sub, 1).await.during("another key, beside the blocked one")?;
        ensure_eq!(got[0].key.as_deref(), Some("b"), "what goes on");
    }
    held.ack().await?;
    let left = 25 - got.len();
    got.extend(cx.drain(&mut sub, left).await?);
    ensure_eq!(numbers_of(&got, "a")?, (1..25).collect::<Vec<_>>(), "order of the key that was blocked");
    ensure_eq!(numbers_of(&got, "b")?, vec![0], "the other key");
    Ok(())
}

async fn full_window_retry(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    let mut sub = q.subscribe(4).await?;
    let held = behind(&cx, &q, &mut sub).await?;
    let (delay, began) = (Duration::from_secs(1), Instant::now());
    held.retry_after(delay).await?;
    let mut got = Vec::new();
    while got.len() < 26 {
        let d = cx.recv(&mut sub).await?;
        if got.iter().all(|e: &Envelope| e.key.as_deref() != Some("a")) && d.envelope().key.as_deref() == Some("a") {
            ensure!(began.elapsed() >= delay, "the key went on after {:?}", began.elapsed());
            ensure_eq!(d.attempt(), 2, "attempt of the retried head");
        }
        got.push(d.envelope().clone());
        d.ack().await?;
    }
    ensure_eq!(numbers_of(&got, "a")?, (0..25).collect::<Vec<_>>(), "order of the key that was held");
    cx.expect_none(&mut sub).await
}

async fn failed_head(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    q.publish_all((0..10).map(|n| keyed("a", n))).await?;
    let mut sub = q.subscribe(10).await?;
    let (delay, mut asked) = (Duration::from_millis(400), None::<Instant>);
    for attempt in 1..=4 {
        // Whatever came before it would be a sibling, which it should hold back.
        let head = cx.recv(&mut sub).await?;
        let waited = asked.map(|asked| asked.elapsed());
        ensure_eq!((number(head.envelope())?, head.attempt()), (0, attempt), "the head and its attempt");
        ensure!(waited.is_none_or(|waited| waited >= delay), "the head came again after {waited:?}, not {delay:?}");
        if attempt < 4 {
            asked = Some(Instant::now());
            head.retry_after(delay).await?;
        } else {
            head.ack().await?;
        }
    }
    for n in 1..10 {
        let d = cx.recv(&mut sub).await?;
        ensure_eq!((number(d.envelope())?, d.attempt()), (n, 1), "number and attempt");
        d.ack().await?;
    }
    Ok(())
}

fn big(key: &str, n: usize, bytes: usize) -> Envelope {
    keyed(key, n).edit(|p| p.data = vec![b'x'; bytes].into())
}

async fn partial_failure(cx: Cx) -> Outcome {
    let topology = Topology::new().queue("q", ordered());
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
    // Another call is not concerned.
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
    let q = cx.queue(ordered()).await?;
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
    let topology = Topology::new().queue("q", ordered()).queue("gone", ordered());
    let bus = cx.setup(topology).make().await??;
    let results = bus.publish_all(&Address::queue("gone"), (0..10).map(|i| keyed(["a", "b"][i % 2], i))).await;
    ensure_eq!(results.len(), 10, "results");
    for (i, result) in results.iter().enumerate() {
        match result.as_ref().map_err(Error::kind) {
            Err(ErrorKind::NotFound) => {}
            Err(ErrorKind::Unavailable) if i > 1 => {}
            _ => fail!("result {i} of a missing queue: {result:?}"),
        }
    }
    bus.declare().await.during("declare")?;
    bus.publish(&Address::queue("gone"), keyed("a", 0)).await.during("publish once it is there")?;
    Ok(())
}

async fn ten_rounds(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    q.publish_all(three_keys(90)).await?;
    let mut acked = Vec::new();
    for round in 0..10 {
        let mut sub = q.subscribe(15).await?;
        for _ in 0..6 {
            let d = cx.recv(&mut sub).await.during(format!("round {round}"))?;
            acked.push(d.envelope().clone());
            d.ack().await?;
        }
        let held = cx.recv(&mut sub).await.during(format!("round {round}, the one held"))?;
        sub.close().await?;
        drop(held);
    }
    let mut sub = q.subscribe(15).await?;
    acked.extend(cx.drain(&mut sub, 30).await?);
    in_order(&acked, 0, 90, "over all rounds")?;
    cx.expect_none(&mut sub).await
}

async fn one_key_hog(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    q.publish_all((0..500).map(|n| keyed("hog", n))).await?;
    q.publish_all((0..10).map(|n| keyed(&format!("small{n}"), n))).await?;
    let mut sub = q.subscribe(50).await?;
    let got = cx.drain(&mut sub, 510).await?;
    ensure_eq!(numbers_of(&got, "hog")?, (0..500).collect::<Vec<_>>(), "order of the hog");
    ensure_eq!(got.iter().filter(|e| e.key.as_deref() != Some("hog")).count(), 10, "the others");
    Ok(())
}

async fn cut_while_holding(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(ordered()).await?;
    q.publish_all(three_keys(30)).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    let mut sub = through.subscribe(10).await?;
    let held = cx.collect(&mut sub, 3).await?;
    proxy.cut();
    // A key that the broker keeps back is bound to the connection even so.
    if cx.target().lock_outlives.is_some() && !holds_at_the_broker(&cx) {
        let mut got = Vec::new();
        for d in held {
            got.push(d.envelope().clone());
            d.ack().await.during("ack of what outlives the cut")?;
        }
        got.extend(cx.drain(&mut sub, 27).await.during("after the cut")?);
        in_order(&got, 0, 30, "after the cut")?;
        return cx.expect_none(&mut sub).await;
    }
    // Where the broker confirms no settlement, an ack may still go out until the client has noticed the cut.
    let deadline = cx.deadline();
    while !cx.capabilities().confirmed_settlement && held.iter().any(|d| d.is_held()) {
        ensure!(Instant::now() < deadline, "the client does not notice that its connection was cut");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for d in held {
        expect_kind!(d.ack().await, ErrorKind::LockLost, "ack of what was held before the cut");
    }
    let mut got = vec![];
    while got.len() < 30 {
        let d = cx.recv(&mut sub).await.during("after the cut")?;
        got.push(d.envelope().clone());
        d.ack().await.during("ack after the cut")?;
    }
    in_order(&got, 0, 30, "after the cut")?;
    cx.expect_none(&mut sub).await
}

async fn cut_while_publishing(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(ordered()).await?;
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

async fn close_on_a_topic(cx: Cx) -> Outcome {
    let spec = TopicSpec::new()
        .ordered(true)
        .subscription("a", SubscriptionSpec::new().max_deliveries(50))
        .subscription("b", SubscriptionSpec::new().max_deliveries(50));
    let t = cx.topic(spec).await?;
    let other = t.on(cx.second_bus(&t.bus).await?);
    t.publish_all(three_keys(30)).await?;
    let mut sub = other.subscribe(10).await?;
    let held = cx.collect(&mut sub, 3).await?;
    other.bus.close().await?;
    drop(held);
    let mut again = t.subscribe(10).await?;
    in_order(&cx.drain(&mut again, 30).await?, 0, 30, "after the close")?;
    let mut beside = t.bus.subscribe(t.subscription("b")).prefetch(10).open().await?;
    let got = cx.drain(&mut beside, 30).await?;
    in_order(&got, 0, 30, "in the other subscription")?;
    cx.expect_none(&mut beside).await
}

async fn redriven(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    q.publish_all((0..6).map(|i| keyed(["a", "b"][i % 2], i / 2))).await?;
    let mut sub = q.subscribe(10).await?;
    for _ in 0..6 {
        cx.recv(&mut sub).await?.dead_letter("poison", "for a while").await?;
    }
    let moved = q.bus.redrive(&q.source, |_| true, usize::MAX).await?;
    ensure_eq!(moved.moved, 6, "redriven");
    let mut back = Vec::new();
    while back.len() < 6 {
        let d = cx.recv(&mut sub).await?;
        ensure_eq!(d.attempt(), 1, "attempt after the redrive");
        back.push(d.envelope().clone());
        d.ack().await?;
    }
    for key in ["a", "b"] {
        let mut got = numbers_of(&back, key)?;
        got.sort_unstable();
        ensure_eq!(got, vec![0, 1, 2], "what came back of {key}");
    }
    ensure_eq!(numbers(&back)?.len(), 6, "all");
    cx.expect_none(&mut sub).await
}
