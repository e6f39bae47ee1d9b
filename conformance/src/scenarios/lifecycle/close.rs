//! Opening, closing, counting, purging.

use std::{collections::BTreeSet, future::poll_fn, pin::Pin, task::Poll, time::Duration};

use polybus_core::{
    Bus, Delivery, Envelope, ErrorKind, Outgoing, QueueSpec, SettleError, Source, Topology, topology::SourceStats,
};
use tokio::time::timeout;

use super::tools::{rest, rest_while};
use crate::{
    Counts, Cx, During, Failure, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, message,
    messages, number, numbers, scenario,
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        scenario("lifecycle/close-twice", "Closing a bus again is Ok, one after the other and at once.", close_twice),
        scenario(
            "lifecycle/close-consumer-twice",
            "Closing and stopping a consumer again is Ok, in any order.",
            close_consumer_twice,
        ),
        scenario("lifecycle/after-close", "After close every operation is Closed, none hangs.", after_close),
        scenario(
            "lifecycle/close-finishes-acks",
            "Acks that are under way when the bus closes are carried out.",
            close_finishes_acks,
        )
        .needs(|_, c| Need::confirmed_settlement(c)),
        scenario(
            "lifecycle/close-gives-back",
            "A closed bus gives back what it held and what it had not handed out, at once.",
            close_gives_back,
        ),
        scenario(
            "lifecycle/close-spares-others",
            "Closing one connection does not disturb another one to the same queue.",
            close_spares_others,
        ),
        scenario(
            "lifecycle/open-and-close-at-once",
            "Eight tasks that open, consume, publish and close connections at once lose nothing.",
            open_and_close_at_once,
        ),
        scenario(
            "lifecycle/subscribe-while-closing",
            "Consumers that are opened while their bus closes work or are Closed; none hangs.",
            subscribe_while_closing,
        ),
        scenario(
            "lifecycle/drop-without-close",
            "A bus and its consumer that are dropped without a close give their messages back.",
            drop_without_close,
        ),
        scenario("lifecycle/stats", "Stats tell ready, in flight, delayed and dead-lettered messages.", stats)
            .needs(|_, c| Need::stats(c)),
        scenario("lifecycle/stats-missing", "Stats of a missing queue are NotFound.", stats_missing)
            .needs(|_, c| Need::stats(c)),
        scenario("lifecycle/purge", "Purge deletes what is ready, tells how many, and spares the rest.", purge)
            .needs(|_, c| Need::purge(c)),
        scenario("lifecycle/purge-missing", "Purge of a missing queue is NotFound.", purge_missing)
            .needs(|_, c| Need::purge(c)),
    ];
    all.extend(super::lifecycle_faults::all());
    all.extend(super::lifecycle_bounds::all());
    all
}

type Ack = Pin<Box<dyn Future<Output = Result<(), SettleError>> + Send>>;

/// Acks that are surely under way: each is handed over when it is first polled, which a task of its own may do only after the close.
struct Acks(Vec<(Ack, Poll<Result<(), SettleError>>)>);

impl Acks {
    async fn begin(deliveries: Vec<Delivery>) -> Self {
        let mut acks: Vec<Ack> = deliveries.into_iter().map(|d| Box::pin(d.ack()) as Ack).collect();
        let begun = poll_fn(|cx| Poll::Ready(acks.iter_mut().map(|a| a.as_mut().poll(cx)).collect::<Vec<_>>())).await;
        Self(acks.into_iter().zip(begun).collect())
    }

    async fn end(self) -> Outcome {
        for (ack, begun) in self.0 {
            match begun {
                Poll::Ready(result) => result?,
                Poll::Pending => ack.await?,
            }
        }
        Ok(())
    }
}

async fn close_twice(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = cx.second_bus(&q.bus).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(2).await?;
    let held = cx.recv(&mut sub).await?;
    for n in 1..=3 {
        q.bus.close().await.during(format!("close {n}"))?;
    }
    drop(held);
    // At once, with settlements under way: these come to their end first.
    let other = q.on(other);
    other.publish_all(messages(100..120)).await?;
    let mut sub = other.subscribe(30).await?;
    let mut held = Vec::new();
    let mut came = BTreeSet::new();
    while came.len() < 20 {
        let delivery = cx.recv(&mut sub).await?;
        let n = number(delivery.envelope())?;
        // The one that the first bus held may come as well.
        if n >= 100 {
            came.insert(n);
        }
        held.push(delivery);
    }
    let acks = Acks::begin(held).await;
    let (a, b, c) = tokio::join!(other.bus.close(), other.bus.close(), other.bus.close());
    a.and(b).and(c).during("three closes at once")?;
    acks.end().await.during("an ack that was under way when the bus was closed")?;
    let mut sub = q.on(cx.second_bus(&q.bus).await?).subscribe(30).await?;
    let back = numbers(&rest(&cx, &mut sub, 0).await?)?;
    let back: Vec<usize> = back.into_iter().filter(|n| *n >= 100).collect();
    ensure!(back.is_empty() || !cx.capabilities().confirmed_settlement, "acked and back: {back:?}");
    Ok(())
}

async fn close_consumer_twice(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..3)).await?;
    let mut sub = q.subscribe(3).await?;
    let held = cx.recv(&mut sub).await?;
    sub.stop().await.during("stop")?;
    sub.stop().await.during("a second stop")?;
    held.ack().await.during("ack after stop")?;
    sub.close().await.during("close")?;
    sub.close().await.during("a second close")?;
    sub.stop().await.during("stop after close")?;
    ensure!(sub.next().await.is_none(), "a closed consumer hands something out");
    let mut next = q.subscribe(3).await?;
    let left: BTreeSet<usize> = numbers(&cx.drain(&mut next, 2).await?)?.into_iter().collect();
    ensure_eq!(left.len(), 2, "what is left");
    q.bus.close().await.during("close of the bus, after its consumer")
}

async fn after_close(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let publisher = q.bus.publisher(&q.address).await?;
    publisher.publish(message(1)).await?;
    let can = q.bus.capabilities().clone();
    q.bus.close().await?;
    let all = async {
        expect_kind!(publisher.publish(message(2)).await, ErrorKind::Closed, "publish by a publisher");
        expect_kind!(q.bus.publish(&q.address, message(2)).await, ErrorKind::Closed, "publish");
        for result in q.bus.publish_all(&q.address, messages(0..3)).await {
            expect_kind!(result, ErrorKind::Closed, "publish_all");
        }
        expect_kind!(q.bus.publisher(&q.address).await.map(drop), ErrorKind::Closed, "publisher");
        expect_kind!(q.bus.subscribe(q.source.clone()).open().await.map(drop), ErrorKind::Closed, "subscribe");
        if can.declare {
            expect_kind!(q.bus.declare().await, ErrorKind::Closed, "declare");
            expect_kind!(q.bus.verify().await, ErrorKind::Closed, "verify");
            expect_kind!(q.bus.delete().await, ErrorKind::Closed, "delete");
        }
        expect_kind!(q.bus.stats(&q.source).await, ErrorKind::Closed, "stats");
        expect_kind!(q.bus.purge(&q.source).await, ErrorKind::Closed, "purge");
        Ok(())
    };
    let done: Result<Outcome, _> = timeout(cx.patience(), all).await;
    done.unwrap_or_else(|_| Err(Failure::new("an operation hangs after close")))
}

async fn close_finishes_acks(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    q.publish_all(messages(0..100)).await?;
    let mut sub = other.subscribe(100).await?;
    let held = cx.collect(&mut sub, 100).await?;
    let acks = Acks::begin(held).await;
    other.bus.close().await?;
    acks.end().await.during("an ack that was under way")?;
    let mut sub = q.subscribe(100).await?;
    cx.expect_none(&mut sub).await.during("after all were acked")
}

async fn close_gives_back(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    q.publish_all(messages(0..20)).await?;
    let mut sub = other.subscribe(20).await?;
    let held = cx.collect(&mut sub, 5).await?;
    let in_hand: BTreeSet<usize> = numbers(held.iter().map(|d| d.envelope()))?.into_iter().collect();
    other.bus.close().await?;
    let mut back = q.subscribe(20).await?;
    let mut seen = BTreeSet::new();
    for d in cx.collect(&mut back, 20).await.during("what the closed bus gives back")? {
        let n = number(d.envelope())?;
        ensure!(seen.insert(n), "{n} came twice");
        if in_hand.contains(&n) && cx.capabilities().attempts_across_crash {
            ensure!(d.attempt() >= 2, "{n} was in hand, and comes again as attempt {}", d.attempt());
        }
        d.ack().await?;
    }
    for d in held {
        expect_kind!(d.ack().await, ErrorKind::LockLost, "ack after the close");
    }
    cx.expect_none(&mut back).await
}

async fn close_spares_others(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    q.publish(message(0)).await?;
    let mut sub = q.subscribe(5).await?;
    let held = cx.recv(&mut sub).await?;
    let mut theirs = other.subscribe(5).await?;
    other.publish(message(1)).await?;
    let next = tokio::select! { d = cx.recv(&mut sub) => d?, d = cx.recv(&mut theirs) => d? };
    next.ack().await?;
    other.bus.close().await?;
    held.ack().await.during("ack of what was held on the other connection")?;
    q.publish(message(2)).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![2], "on the other connection");
    cx.expect_none(&mut sub).await
}

async fn open_and_close_at_once(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    q.publish_all(messages(0..40)).await?;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..8 {
        let (cx, q) = (cx.clone(), q.clone());
        tasks.spawn(async move { rounds(&cx, &q, task).await });
    }
    let mut acked = Vec::new();
    let all = async {
        while let Some(done) = tasks.join_next().await {
            acked.extend(done??);
        }
        Ok(())
    };
    let done: Outcome = timeout(cx.patience() * 4, all).await.unwrap_or_else(|_| Err(Failure::new("it hangs")));
    done?;
    let wanted: BTreeSet<usize> = (0..40).chain((0..8).flat_map(|t| (0..4).map(move |r| 100 + t * 10 + r))).collect();
    let mut missing: BTreeSet<usize> = wanted.iter().copied().filter(|n| !acked.contains(n)).collect();
    let lacks = move |left: &[Envelope]| {
        if let Some(n) = left.last().and_then(|last| number(last).ok()) {
            missing.remove(&n);
        }
        !missing.is_empty()
    };
    let mut sub = q.subscribe(50).await?;
    acked.extend(numbers(&rest_while(&cx, &mut sub, lacks).await?)?);
    let distinct: BTreeSet<usize> = acked.iter().copied().collect();
    ensure_eq!(distinct, wanted, "what was acked in all");
    if cx.capabilities().confirmed_settlement {
        ensure_eq!(acked.len(), wanted.len(), "acks; nothing comes twice");
    }
    Ok(())
}

/// Four times: opens a connection, consumes one message and holds another, publishes one, closes. What was acked.
async fn rounds(cx: &Cx, q: &Fixture, task: usize) -> Outcome<Vec<usize>> {
    let mut acked = Vec::new();
    for round in 0..4 {
        let mine = q.on(cx.second_bus(&q.bus).await?);
        let mut sub = mine.subscribe(3).await?;
        mine.publish(message(100 + task * 10 + round)).await?;
        let d = cx.recv(&mut sub).await.during(format!("task {task}, round {round}"))?;
        let n = number(d.envelope())?;
        d.ack().await?;
        acked.push(n);
        let held = timeout(Duration::from_millis(20), sub.next()).await;
        mine.bus.close().await?;
        drop(held);
    }
    Ok(acked)
}

async fn subscribe_while_closing(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    for round in 0..5 {
        q.publish_all(messages(0..10)).await?;
        let bus: Bus = cx.second_bus(&q.bus).await?;
        let openers: Vec<_> = (0..8)
            .map(|_| {
                let (bus, source) = (bus.clone(), q.source.clone());
                tokio::spawn(async move {
                    let mut sub = bus.subscribe(source).prefetch(1).open().await?;
                    while let Some(delivery) = sub.next().await {
                        // Closed meanwhile, it is LockLost.
                        let _ = delivery?.ack().await;
                    }
                    Ok::<(), polybus_core::Error>(())
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(round)).await;
        let closed = timeout(cx.patience(), bus.close()).await;
        closed.map_err(|_| Failure::new("close hangs while consumers are opened"))?.during("close")?;
        for opener in openers {
            let ended = timeout(cx.patience(), opener).await;
            match ended.map_err(|_| Failure::new("a consumer of a closed bus hangs"))?? {
                Ok(()) => fail!("a consumer of a closed bus ends without a word"),
                Err(e) => ensure_eq!(e.kind(), ErrorKind::Closed, "how a consumer of a closed bus ends: {e:?}"),
            }
        }
    }
    Ok(())
}

async fn drop_without_close(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..10)).await?;
    {
        let mut sub = q.subscribe(10).await?;
        let _held = cx.collect(&mut sub, 3).await?;
    }
    let mut sub = q.on(cx.second_bus(&q.bus).await?).subscribe(10).await?;
    let back: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 10).await?)?.into_iter().collect();
    ensure_eq!(back, (0..10).collect(), "what comes back");
    cx.expect_none(&mut sub).await
}

/// Waits for these counts; those the broker does not tell are not compared.
async fn counted(cx: &Cx, bus: &Bus, source: &Source, wanted: [u64; 4], when: &str) -> Outcome {
    let matches = |s: &SourceStats| {
        let found = [s.ready, s.in_flight, s.delayed, s.dead_lettered];
        found.iter().zip(wanted).all(|(found, wanted)| found.is_none_or(|n| n == wanted))
    };
    let stats = bus.stats(source).await.during(format!("stats {when}"))?;
    if matches(&stats) {
        return Ok(());
    }
    // What a consumer was just pushed or has just acked may be on its way even where counts are exact.
    let deadline =
        cx.deadline() + if cx.target().counts == Counts::Eventual { cx.patience() * 2 } else { Duration::ZERO };
    let mut stats = stats;
    while tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stats = bus.stats(source).await.during(format!("stats {when}"))?;
        if matches(&stats) {
            return Ok(());
        }
    }
    Err(Failure::new(format!("{when}: wanted ready, in flight, delayed, dead-lettered {wanted:?}, found {stats:?}")))
}

async fn stats(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let can = cx.capabilities().clone();
    counted(&cx, &q.bus, &q.source, [0, 0, 0, 0], "of an empty queue").await?;
    let known = q.bus.stats(&q.source).await?;
    ensure!(known.ready.is_some(), "stats tell nothing of what is ready: {known:?}");
    q.publish_all(messages(0..7)).await?;
    counted(&cx, &q.bus, &q.source, [7, 0, 0, 0], "after seven publishes").await?;
    let mut sub = q.subscribe(3).await?;
    let mut held = cx.collect(&mut sub, 3).await?;
    counted(&cx, &q.bus, &q.source, [4, 3, 0, 0], "with three held").await?;
    // Nothing more is taken from here on.
    sub.stop().await?;
    counted(&cx, &q.bus, &q.source, [4, 3, 0, 0], "with the consumer stopped").await?;
    let mut dead = 0;
    if let (true, Some(d)) = (can.dead_letters, held.pop()) {
        d.dead_letter("poison", "").await?;
        dead = 1;
        counted(&cx, &q.bus, &q.source, [4, 2, 0, dead], "with a dead letter").await?;
        counted(&cx, &q.bus, &q.source.dead_letters(), [4, 2, 0, dead], "asked of the dead letters").await?;
    }
    let (mut delayed, mut hidden) = (0, 0);
    // Longer than the scenario takes on a slow machine, as far as the broker can.
    let (minute, most) = (Duration::from_secs(60), Duration::from_secs(600));
    let long = |can: Option<Duration>| can.filter(|can| *can >= minute).map(|can| can.min(most));
    if let Some(by) = long(can.max_retry_delay)
        && let Some(d) = held.pop()
    {
        d.retry_after(by).await?;
        delayed = 1;
        // A broker may have no other way to delay than to hold on: its retries look like deliveries in hand.
        let holds_on = can.lock_range.is_some_and(|(_, most)| can.max_retry_delay <= Some(most));
        let held_back = u64::from(cx.target().lock_outlives.is_some() && holds_on);
        (delayed, hidden) = (delayed - held_back, held_back);
        let in_flight = held.len() as u64 + hidden;
        counted(&cx, &q.bus, &q.source, [4, in_flight, delayed, dead], "with a retry").await?;
    }
    if let Some(by) = long(can.max_queue_delay) {
        q.publish(Outgoing::from(message(9)).delay(by)).await?;
        delayed += 1;
        counted(&cx, &q.bus, &q.source, [4, held.len() as u64 + hidden, delayed, dead], "with a delayed publish")
            .await?;
    }
    for d in held {
        d.ack().await?;
    }
    counted(&cx, &q.bus, &q.source, [4, hidden, delayed, dead], "in the end").await
}

async fn stats_missing(cx: Cx) -> Outcome {
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).undeclared().open().await?;
    let e = expect_kind!(bus.stats(&Source::queue("q")).await, ErrorKind::NotFound);
    ensure_eq!(e.context("source"), Some("queue:q"), "what the error names");
    Ok(())
}

async fn purge(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let exact = cx.target().counts == Counts::Exact;
    q.publish_all(messages(0..7)).await?;
    let mut sub = q.subscribe(2).await?;
    let mut held = cx.collect(&mut sub, 2).await?;
    sub.stop().await?;
    let purged = q.bus.purge(&q.source).await?;
    if exact {
        ensure_eq!(purged, 5, "purged");
    }
    if let (true, Some(d)) = (cx.capabilities().dead_letters, held.pop()) {
        d.dead_letter("poison", "").await?;
        let again = q.bus.purge(&q.source).await?;
        ensure_eq!(again, 0, "purged again");
        let purged = q.bus.purge(&q.source.dead_letters()).await.during("purge of the dead letters")?;
        if exact {
            ensure_eq!(purged, 1, "purged dead letters");
        }
        let mut dead = q.subscribe_dead(2).await?;
        cx.expect_none(&mut dead).await?;
    }
    for d in held {
        d.release().await.during("what was held is spared")?;
    }
    let mut sub = q.subscribe(10).await?;
    let spared = if cx.capabilities().dead_letters { 1 } else { 2 };
    ensure_eq!(rest(&cx, &mut sub, spared).await?.len(), spared, "what was held and released");
    q.publish(message(9)).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![9], "after the purge");
    Ok(())
}

async fn purge_missing(cx: Cx) -> Outcome {
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).undeclared().open().await?;
    expect_kind!(bus.purge(&Source::queue("q")).await, ErrorKind::NotFound);
    Ok(())
}
