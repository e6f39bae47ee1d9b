//! Closing and dropping buses and consumers, also while the broker cannot be reached.

use std::{collections::BTreeSet, future::poll_fn, pin::Pin, task::Poll, time::Duration};

use polybus_core::{Bus, Delivery, Envelope, Error, ErrorKind, QueueSpec, SettleError};
use tokio::time::timeout;

use crate::{
    CallKind, Cx, During, Failure, Fixture, FlakyBroker, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail,
    message, messages, number, numbers, scenario,
    scenarios::shared::{publish_until, take_rest, take_rest_while, wait_until},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
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
        scenario(
            "lifecycle/close-in-an-outage",
            "Close ends in good time while the broker cannot be reached, with messages held and publishes waiting.",
            close_in_an_outage,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "lifecycle/close-while-settling",
            "Close ends in good time while settlements that have begun cannot reach the broker.",
            close_while_settling,
        ),
    ]
}

type AckFuture = Pin<Box<dyn Future<Output = Result<(), SettleError>> + Send>>;

/// Acks that have begun. Each is polled once here: a task of its own might first poll it after the close.
struct PendingAcks(Vec<(AckFuture, Poll<Result<(), SettleError>>)>);

impl PendingAcks {
    async fn begin(deliveries: Vec<Delivery>) -> Self {
        let mut acks: Vec<AckFuture> = deliveries.into_iter().map(|d| Box::pin(d.ack()) as AckFuture).collect();
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
    // Both closes begin while settlements are under way, which end first.
    let other = q.on(other);
    other.publish_all(messages(100..120)).await?;
    let mut sub = other.subscribe(30).await?;
    let mut held = Vec::new();
    let mut came = BTreeSet::new();
    while came.len() < 20 {
        let delivery = cx.recv(&mut sub).await?;
        let n = number(delivery.envelope())?;
        // The message that the first bus held may come here.
        if n >= 100 {
            came.insert(n);
        }
        held.push(delivery);
    }
    let acks = PendingAcks::begin(held).await;
    let (a, b, c) = tokio::join!(other.bus.close(), other.bus.close(), other.bus.close());
    a.and(b).and(c).during("three closes at once")?;
    acks.end().await.during("an ack that was under way when the bus was closed")?;
    let mut sub = q.on(cx.second_bus(&q.bus).await?).subscribe(30).await?;
    let back = numbers(&take_rest(&cx, &mut sub, 0).await?)?;
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
    let acks = PendingAcks::begin(held).await;
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
    acked.extend(numbers(&take_rest_while(&cx, &mut sub, lacks).await?)?);
    let distinct: BTreeSet<usize> = acked.iter().copied().collect();
    ensure_eq!(distinct, wanted, "what was acked in all");
    if cx.capabilities().confirmed_settlement {
        ensure_eq!(acked.len(), wanted.len(), "acks; nothing comes twice");
    }
    Ok(())
}

/// Opens a connection, acks one message, holds another, publishes one, and closes: four times. Returns what was acked.
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
                        // The ack is LockLost where the bus was closed meanwhile.
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

async fn close_in_an_outage(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q: Fixture = cx.queue(QueueSpec::new()).await?;
    let setup = cx.setup(q.bus.topology().clone()).through(&proxy).undeclared();
    let through = q.on(setup.options(|o| o.publish_timeout = Duration::from_secs(3)).open().await?);
    q.publish_all(messages(0..5)).await?;
    // The sender is open before the outage begins.
    publish_until(&cx, &through, &message(5), None).await?;
    let mut sub = through.subscribe(5).await?;
    let held = cx.collect(&mut sub, 2).await?;
    proxy.refuse(true).await;
    proxy.cut();
    let waiting = tokio::spawn(through.bus.publish(&q.address, message(9)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let closed = timeout(cx.patience(), through.bus.close()).await;
    // It may end with an error: only its end is checked.
    let _ = closed.map_err(|_| Failure::new("close hangs in an outage"))?;
    let published =
        timeout(cx.patience(), waiting).await.map_err(|_| Failure::new("a publish hangs after close"))??;
    ensure!(published.is_err(), "a publish in an outage is Ok");
    drop(held);
    let mut sub = q.subscribe(5).await?;
    let mut back = BTreeSet::new();
    // A publish that timed out may be stored twice.
    while back.len() < 6 {
        let delivery = cx.recv(&mut sub).await.during(format!("{} of 6 came", back.len()))?;
        back.insert(number(delivery.envelope())?);
        delivery.ack().await?;
    }
    ensure_eq!(back, (0..6).collect(), "what the closed bus had");
    Ok(())
}

async fn close_while_settling(cx: Cx) -> Outcome {
    let flaky = FlakyBroker::new();
    let q = cx.queue(QueueSpec::new()).await?;
    let f = q.on(cx.setup(q.bus.topology().clone()).undeclared().wrap(flaky.around()).open().await?);
    q.publish_all(messages(0..6)).await?;
    let mut sub = f.subscribe(6).await?;
    let mut held = cx.collect(&mut sub, 6).await?;
    flaky.answer(&[CallKind::Settle], Error::new(ErrorKind::Unavailable, "an outage").safe());
    let before = flaky.refused();
    let settling: Vec<_> = held.drain(..3).map(|delivery| tokio::spawn(delivery.ack())).collect();
    wait_until(&cx, "settlements that were refused", || flaky.refused() > before).await?;
    let most = cx.lateness(Duration::from_secs(30));
    let closed = timeout(most, f.bus.close()).await;
    // It may end with an error: only its end is checked.
    let _ = closed.map_err(|_| Failure::new(format!("close does not end within {most:?}")))?;
    drop((held, sub));
    for task in settling {
        let settled = timeout(cx.patience(), task).await.map_err(|_| Failure::new("an ack hangs after close"))??;
        ensure!(settled.is_err(), "an ack that never reached the broker is Ok");
    }
    flaky.well();
    // None of the acks was carried out, so all six messages are there.
    let mut sub = q.subscribe(6).await?;
    for delivery in cx.collect(&mut sub, 6).await.during("after the close")? {
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await
}
