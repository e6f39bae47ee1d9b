//! Every publish has a result, and the result is true.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{
    Address, Envelope, ErrorKind, QueueSpec, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology,
};
use tokio::time::timeout;

use crate::{
    CountAccuracy, Cx, During, Fixture, Need, Outcome, Scenario, ensure_eq, expect_kind, message, messages, scenario,
    scenarios::shared::{expect_same, publish_each, stored_messages, take_rest},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario("publish/single", "One published message arrives once, equal in every part.", single),
        scenario("publish/batch", "A batch has one result per message, in order, and each arrives once.", batch),
        scenario("publish/concurrent", "10,000 publishes at once are all Ok and each arrives.", concurrent)
            .timeout(Duration::from_secs(120)),
        scenario(
            "publish/partial-batch",
            "What is refused in a batch is refused at its own place; its neighbours arrive.",
            partial_batch,
        ),
        scenario(
            "publish/nobody-subscribed",
            "A publish to a topic without subscriptions, or without a matching one, is Ok.",
            nobody_subscribed,
        )
        .needs(|_, c| Need::topics(c)),
        scenario(
            "publish/stored-when-ok",
            "Once a publish is Ok the message is with the broker: closing the bus at once loses nothing.",
            stored_when_ok,
        ),
        scenario("publish/counted-when-ok", "Once a publish is Ok the message is counted as ready.", counted_when_ok)
            .needs(|t, c| Need::stats(c).and(Need::when(t.counts == CountAccuracy::Exact, "counts lag behind"))),
        scenario(
            "publish/after-close",
            "After close every way to publish is Closed, and nothing more arrives.",
            after_close,
        ),
        scenario(
            "publish/close-under-way",
            "Publishes that meet a close are either Ok and stored, or Closed and not stored.",
            close_under_way,
        ),
    ]
}

async fn single(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent = message(7).source("suite").header("tenant", "acme");
    q.publish(&sent).await?;
    let mut sub = q.subscribe(10).await?;
    let got = cx.recv(&mut sub).await?;
    ensure_eq!(got.envelope(), &sent, "what arrived");
    ensure_eq!(got.attempt(), 1, "attempt");
    got.ack().await?;
    let extra = cx.sentinel(&q.bus, &q.address, "test.sentinel", &mut sub).await?;
    ensure_eq!(extra.len(), 0, "messages besides the one published");
    Ok(())
}

async fn batch(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let none = q.bus.publish_all(&q.address, Vec::<Envelope>::new()).await;
    ensure_eq!(none.len(), 0, "results of an empty batch");
    let sent = messages(0..100);
    let results = q.bus.publish_all(&q.address, sent.clone()).await;
    ensure_eq!(results.len(), sent.len(), "results");
    for (i, result) in results.into_iter().enumerate() {
        result.during(format!("result {i}"))?;
    }
    let mut sub = q.subscribe(100).await?;
    expect_same(&sent, &cx.drain(&mut sub, sent.len()).await?, "the batch")?;
    cx.expect_none(&mut sub).await
}

async fn concurrent(cx: Cx) -> Outcome {
    // All publishes are under way together, and a slow broker takes more than 30 s for the last ones.
    let setup = cx.setup(Topology::new().queue("q", QueueSpec::new()));
    let setup = setup.options(|o| o.publish_timeout = o.publish_timeout.max(Duration::from_secs(600)));
    let q = Fixture::queue(setup.open().await?);
    let sent = messages(0..10_000);
    let results = publish_each(&q.bus, sent.iter().map(|m| (&q.address, m))).await?;
    for (i, result) in results.into_iter().enumerate() {
        result.during(format!("publish {i}"))?;
    }
    let mut sub = q.subscribe(500).await?;
    let mut got = Vec::with_capacity(sent.len());
    let mut missing: BTreeSet<&str> = sent.iter().map(|e| &*e.id).collect();
    while !missing.is_empty() {
        // Half a window at a time, so that many acks are under way together.
        let held = cx.collect(&mut sub, 250.min(missing.len())).await?;
        for delivery in &held {
            missing.remove(&*delivery.envelope().id);
            got.push(delivery.envelope().clone());
        }
        let acks: Vec<_> = held.into_iter().map(|d| tokio::spawn(d.ack())).collect();
        for ack in acks {
            ack.await?.during("ack")?;
        }
    }
    got.extend(take_rest(&cx, &mut sub, 0).await?);
    if !cx.time_is_free() {
        // A batch that a busy broker does not answer in time is sent again with the same ids, and may be stored twice.
        let mut seen = BTreeSet::new();
        got.retain(|e| seen.insert(e.id.clone()));
    }
    expect_same(&sent, &got, "10,000 messages")
}

async fn partial_batch(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut batch = messages(0..12);
    batch[1] = message(1).edit(|p| p.event_type = "no good type".into());
    batch[4] = message(4).header("cloudEvents:id", "stolen");
    batch[7] = message(7).header("much", "x".repeat(40 * 1024));
    batch[11] = message(11).id("");
    let wanted = [
        (1, ErrorKind::InvalidArgument),
        (4, ErrorKind::InvalidArgument),
        (7, ErrorKind::PayloadTooLarge),
        (11, ErrorKind::InvalidArgument),
    ];
    let results = q.bus.publish_all(&q.address, batch.clone()).await;
    ensure_eq!(results.len(), batch.len(), "results");
    let mut good = Vec::new();
    for (i, (result, sent)) in results.into_iter().zip(batch).enumerate() {
        match wanted.iter().find(|(at, _)| *at == i) {
            Some((_, kind)) => {
                let e = expect_kind!(result, *kind, "result {i}");
                ensure_eq!(e.retry(), RetrySafety::Never, "retry of result {i}");
            }
            None => {
                result.during(format!("result {i}"))?;
                good.push(sent);
            }
        }
    }
    let mut sub = q.subscribe(20).await?;
    expect_same(&good, &cx.drain(&mut sub, good.len()).await?, "the neighbours")?;
    cx.expect_none(&mut sub).await
}

async fn nobody_subscribed(cx: Cx) -> Outcome {
    let topology = Topology::new()
        .topic("bare", TopicSpec::new())
        .topic("picky", TopicSpec::new().subscription("a", SubscriptionSpec::new().types(["order.*"])));
    let bus = cx.bus(topology).await?;
    for to in [Address::topic("bare"), Address::topic("picky")] {
        bus.publish(&to, message(1)).await.during(format!("publish to {to}"))?;
        for result in bus.publish_all(&to, messages(2..40)).await {
            result.during(format!("batch to {to}"))?;
        }
    }
    let picky = Address::topic("picky");
    bus.publish(&picky, Envelope::new("order.placed", "7")).await?;
    let mut sub = bus.subscribe(Source::subscription("picky", "a")).prefetch(5).open().await?;
    let got = take_rest(&cx, &mut sub, 1).await?;
    ensure_eq!(crate::numbers(&got)?, [7], "what reached the subscription");
    Ok(())
}

async fn stored_when_ok(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sent = Vec::new();
    for round in 0..5 {
        let publisher = q.on(cx.second_bus(&q.bus).await?);
        let batch = messages(round * 20..round * 20 + 20);
        for result in publish_each(&publisher.bus, batch.iter().map(|m| (&q.address, m))).await? {
            result.during("publish")?;
        }
        publisher.bus.close().await.during("close")?;
        sent.extend(batch);
    }
    let mut sub = q.subscribe(200).await?;
    expect_same(&sent, &cx.drain(&mut sub, sent.len()).await?, "what was Ok before the close")
}

async fn counted_when_ok(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    for n in 1..=20_u64 {
        q.publish(message(0)).await?;
        let ready = q.bus.stats(&q.source).await?.ready;
        ensure_eq!(ready, Some(n), "ready right after publish {n} was Ok");
    }
    Ok(())
}

async fn after_close(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let publisher = q.bus.publisher(&q.address).await?;
    publisher.publish(message(0)).await?;
    q.bus.close().await?;
    expect_kind!(q.bus.publish(&q.address, message(1)).await, ErrorKind::Closed);
    expect_kind!(publisher.publish(message(2)).await, ErrorKind::Closed);
    expect_kind!(q.bus.publisher(&q.address).await, ErrorKind::Closed);
    let (by_bus, by_publisher) =
        (q.bus.publish_all(&q.address, messages(3..6)).await, publisher.publish_all(messages(6..9)).await);
    ensure_eq!((by_bus.len(), by_publisher.len()), (3, 3), "results after close");
    for result in by_bus.into_iter().chain(by_publisher) {
        expect_kind!(result, ErrorKind::Closed);
    }
    let q = q.on(cx.second_bus(&q.bus).await?);
    let mut sub = q.subscribe(10).await?;
    ensure_eq!(crate::numbers(&take_rest(&cx, &mut sub, 1).await?)?, [0], "what was stored");
    Ok(())
}

async fn close_under_way(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let closing = q.on(cx.second_bus(&q.bus).await?);
    let sent = messages(0..500);
    let tasks: Vec<_> = sent.iter().map(|m| tokio::spawn(closing.bus.publish(&q.address, m))).collect();
    tokio::task::yield_now().await;
    closing.bus.close().await.during("close")?;
    let mut results = Vec::new();
    for task in tasks {
        results.push(timeout(cx.patience(), task).await.map_err(|_| crate::Failure::new("a publish hangs"))??);
    }
    let stored = stored_messages(&sent, &results, ErrorKind::Closed)?;
    let mut sub = q.subscribe(200).await?;
    expect_same(&stored, &take_rest(&cx, &mut sub, stored.len()).await?, "what was Ok at the close")
}
