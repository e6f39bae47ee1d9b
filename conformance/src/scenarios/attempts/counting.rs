//! What counts as an attempt.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use polybus_core::{ErrorKind, Outgoing, QueueSpec, SubscriptionSpec, TopicSpec};
use tokio::time::sleep;

use crate::{
    CallCounter, Cx, During, Need, Outcome, RawMessage, RawValue, Scenario, ensure, ensure_eq, expect_kind, message,
    messages, number, scenario,
    scenarios::shared::{ExpectedDelay, SETTLED_QUEUE_AGE, not_renewing, short_lock, short_locked},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "attempts/paths",
            "The attempt is 1 at first, and one more after each release, retry, drop and unpolled settlement.",
            paths,
        ),
        scenario("attempts/neighbours", "Each message counts its own attempts; its neighbours' stay.", neighbours),
        scenario("attempts/siblings", "Attempts on one subscription do not count on its sibling.", siblings)
            .needs(|_, c| Need::topics(c)),
        scenario("attempts/close", "A delivery that was in the hand when its consumer closed counts.", close)
            .needs(|_, c| Need::attempts_across_crash(c)),
        scenario("attempts/killed", "A delivery that was in the hand of a killed process counts.", killed)
            .needs(|t, c| Need::processes(t).and(Need::attempts_across_crash(c))),
        scenario("attempts/lock", "A delivery whose lock ran out counts, and its late settlement does not.", lock)
            .needs(|_, c| Need::locks(c)),
        scenario(
            "attempts/server-kill",
            "Attempts, retries and delays that the broker has answered survive its being killed in that moment.",
            server_kill,
        )
        .needs(|t, c| {
            Need::durable_restart(t).and(Need::attempts_across_crash(c)).and(Need::retry(c, Duration::from_secs(3)))
        })
        .alone()
        .timeout(Duration::from_secs(180)),
        scenario(
            "attempts/foreign-counters",
            "A foreign message's own counters do not count: it starts at attempt 1 and gets all its attempts.",
            foreign_counters,
        )
        .needs(|t, c| Need::dead_letters(c).and(Need::raw(t))),
    ]
}

async fn paths(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(50)).await?;
    let sent = message(1).source("suite").header("tenant", "acme");
    q.publish(&sent).await?;
    let mut sub = q.subscribe(1).await?;
    for attempt in 1..=12 {
        let delivery = cx.recv(&mut sub).await.during(format!("attempt {attempt}"))?;
        ensure_eq!(delivery.attempt(), attempt, "attempt");
        ensure_eq!(delivery.envelope(), &sent, "message at attempt {attempt}");
        match attempt % 4 {
            0 if cx.capabilities().max_retry_delay.is_some() => {
                ExpectedDelay::retry(delivery, std::time::Duration::from_millis(200)).await?;
            }
            1 => drop(delivery),
            2 => drop(delivery.ack()),
            _ => delivery.release().await?,
        }
    }
    let last = cx.recv(&mut sub).await?;
    ensure_eq!(last.attempt(), 13, "attempt");
    last.ack().await?;
    cx.expect_none(&mut sub).await
}

async fn neighbours(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(50)).await?;
    q.publish_all(messages(0..10)).await?;
    let mut sub = q.subscribe(10).await?;
    let mut kept = Vec::new();
    // Message 3 is released again and again while the others are held or wait in the buffer.
    for attempt in 1..=6 {
        loop {
            let delivery = cx.recv(&mut sub).await?;
            if number(delivery.envelope())? == 3 {
                ensure_eq!(delivery.attempt(), attempt, "attempt of the one that goes round");
                if attempt < 6 {
                    delivery.release().await?;
                } else {
                    delivery.ack().await?;
                }
                break;
            }
            kept.push(delivery);
        }
    }
    while kept.len() < 9 {
        kept.push(cx.recv(&mut sub).await?);
    }
    let mut seen = BTreeSet::new();
    for delivery in kept {
        ensure!(seen.insert(number(delivery.envelope())?), "came twice: {delivery:?}");
        ensure_eq!(delivery.attempt(), 1, "attempt of a neighbour: {:?}", delivery.envelope());
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await
}

async fn siblings(cx: Cx) -> Outcome {
    let spec = || SubscriptionSpec::new().max_deliveries(50);
    let t = cx.topic(TopicSpec::new().subscription("a", spec()).subscription("b", spec())).await?;
    let mut a = t.subscribe(1).await?;
    let mut b = t.bus.subscribe(t.subscription("b")).prefetch(1).open().await?;
    t.publish(message(1)).await?;
    for attempt in 1..=4 {
        let delivery = cx.recv(&mut a).await?;
        ensure_eq!(delivery.attempt(), attempt, "attempt on a");
        delivery.release().await?;
    }
    let delivery = cx.recv(&mut b).await?;
    ensure_eq!(delivery.attempt(), 1, "attempt on b");
    delivery.release().await?;
    ensure_eq!(cx.recv(&mut b).await?.attempt(), 2, "second attempt on b");
    ensure_eq!(cx.recv(&mut a).await?.attempt(), 5, "attempt on a in the end");
    Ok(())
}

async fn close(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(50)).await?;
    q.publish(message(1)).await?;
    for attempt in 1..=3 {
        let (mut sub, delivery) = q.one(&cx).await?;
        ensure_eq!(delivery.attempt(), attempt, "attempt");
        sub.close().await?;
        drop(delivery);
    }
    let other = q.on(cx.second_bus(&q.bus).await?);
    let (mut sub, delivery) = other.one(&cx).await?;
    ensure_eq!(delivery.attempt(), 4, "attempt on another connection");
    drop(sub.close().await);
    other.bus.close().await.during("close the bus")?;
    expect_kind!(delivery.ack().await, ErrorKind::LockLost, "ack after the bus was closed");
    let (_sub, delivery) = q.one(&cx).await?;
    ensure_eq!(delivery.attempt(), 5, "attempt after the bus was closed");
    Ok(delivery.ack().await?)
}

async fn killed(cx: Cx) -> Outcome {
    let lock = short_lock(&cx);
    let mut spec = QueueSpec::new().max_deliveries(50);
    if cx.capabilities().locks {
        spec = spec.lock(lock);
    }
    let q = cx.queue(spec).await?;
    q.publish(message(1)).await?;
    for _ in 0..2 {
        cx.child(&q.bus, &q.source, 1, 1).await?.kill().await?;
    }
    let mut sub = q.subscribe(1).await?;
    let delivery = cx.recv_within(&mut sub, lock + cx.patience()).await?;
    ensure_eq!(delivery.attempt(), 3, "attempt after two processes were killed");
    Ok(delivery.ack().await?)
}

async fn lock(cx: Cx) -> Outcome {
    let (q, lock) = short_locked(&cx, &CallCounter::new()).await?;
    q.publish(message(1)).await?;
    let mut sub = not_renewing(&q, 2).await?;
    let first = cx.recv(&mut sub).await?;
    let second = cx.recv_within(&mut sub, lock + cx.patience()).await.during("after the lock ran out")?;
    ensure_eq!(second.attempt(), 2, "attempt");
    expect_kind!(first.release().await, ErrorKind::LockLost, "release of the first");
    second.release().await?;
    let third = cx.recv(&mut sub).await?;
    ensure_eq!(third.attempt(), 3, "attempt");
    third.ack().await?;
    cx.expect_none(&mut sub).await
}

async fn foreign_counters(cx: Cx) -> Outcome {
    const N: u32 = 3;
    let q = cx.queue(QueueSpec::new().max_deliveries(N)).await?;
    let raw = RawMessage::body("5")
        .message_id("foreign-1")
        .header("x-delivery-count", RawValue::Int(7))
        .header("x-death", RawValue::Nested)
        .header("x-first-death-queue", RawValue::Text("elsewhere".into()))
        .header("x-first-death-reason", RawValue::Text("rejected".into()));
    cx.inject(&q.bus, &q.address, raw).await?;
    let mut sub = q.subscribe(1).await?;
    for round in 0..2 {
        for attempt in 1..=N {
            let delivery = cx.recv(&mut sub).await.during(format!("round {round}, attempt {attempt}"))?;
            ensure_eq!(delivery.attempt(), attempt, "attempt in round {round}");
            ensure_eq!(number(delivery.envelope())?, 5, "body");
            match attempt {
                1 if cx.capabilities().max_retry_delay.is_some() => {
                    delivery.retry_after(Duration::from_millis(200)).await?;
                }
                _ => delivery.release().await?,
            }
        }
        cx.expect_none(&mut sub).await?;
        if !cx.capabilities().redrive {
            return Ok(());
        }
        let moved = q.bus.redrive(&q.source, |_| true, 10).await.during("redrive")?;
        ensure_eq!(moved.moved, 1, "how many were moved");
    }
    Ok(())
}

async fn server_kill(cx: Cx) -> Outcome {
    let by = Duration::from_secs(3);
    // The topology names the delay, so that the delay's entities are as old as the queue when the broker is killed.
    let q = cx.queue(QueueSpec::new().max_deliveries(100).retry([by])).await?;
    sleep(SETTLED_QUEUE_AGE).await;
    q.publish_all(messages(0..2)).await?;
    let mut sub = q.subscribe(2).await?;
    let mut held = None;
    for attempt in 1..=2 {
        for delivery in cx.collect(&mut sub, 2).await? {
            ensure_eq!(delivery.attempt(), attempt, "attempt");
            match (attempt, number(delivery.envelope())?) {
                (1, _) => delivery.release().await?,
                (_, 0) => delivery.retry_after(by).await?,
                // This one is held when the broker is killed.
                _ => held = Some(delivery),
            }
        }
    }
    if cx.capabilities().max_queue_delay.is_some_and(|most| most >= by) {
        q.publish(Outgoing::from(message(2)).delay(by)).await?;
    } else {
        q.publish(message(2)).await?;
    }
    cx.restart().await?;
    drop(held);
    let mut seen = BTreeMap::new();
    while seen.len() < 3 {
        let delivery = cx.recv(&mut sub).await.during(format!("after the restart came {seen:?}"))?;
        let n = number(delivery.envelope())?;
        let attempt = delivery.attempt();
        seen.insert(n, attempt);
        ensure!(n == 2 || attempt >= 3, "message {n} comes at attempt {attempt}, it was handed out twice before");
        // An ack may be lost with its connection: the message then comes again.
        let _ = delivery.ack().await;
    }
    Ok(())
}
