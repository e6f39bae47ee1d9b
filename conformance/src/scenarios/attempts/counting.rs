//! Counting attempts. The limit on them is in `attempts_limit`.

use std::collections::BTreeSet;

use polybus_core::{ErrorKind, QueueSpec, SubscriptionSpec, TopicSpec};

use super::{
    delays::Delay,
    settle_held::{not_renewing, short_locked},
    tools::short_lock,
};
use crate::{
    Calls, Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, messages, number, scenario,
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = vec![
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
    ];
    all.extend(super::attempts_limit::all());
    all
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
                Delay::retry(delivery, std::time::Duration::from_millis(200)).await?;
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
    // Message 3 goes round while the others are held or wait in the buffer.
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
    let (q, lock) = short_locked(&cx, &Calls::new()).await?;
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
