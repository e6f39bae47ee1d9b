//! Settling what is held under a lock, or by a connection that is lost.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{Delivery, Envelope, ErrorKind, QueueSpec, RetrySafety, Subscription, Topology};
use tokio::time::{Instant, sleep, timeout};

use super::tools::short_lock;
use crate::{
    Calls, Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, messages, number,
    numbers, scenario,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "settle/renewal",
            "Locks are renewed from receipt on, in the hand and in the buffer, as long as they are held.",
            renewal,
        )
        .needs(|_, c| Need::locks(c)),
        scenario(
            "settle/renewal-of-later-arrivals",
            "What comes while the application is busy is renewed before it is asked for, and is still at its first attempt.",
            |cx| later_arrivals(cx, QueueSpec::new(), message),
        )
        .needs(|_, c| Need::locks(c)),
        scenario(
            "settle/renewal-of-later-keys",
            "The same of an ordered source: messages of other keys that come while the application is busy.",
            |cx| later_arrivals(cx, QueueSpec::new().ordered(true), |n| message(n).key(format!("k{n}"))),
        )
        .needs(|_, c| Need::locks(c).and(Need::ordered(c))),
        scenario(
            "settle/extend",
            "Extending keeps a delivery past its lock; the message comes to nobody else.",
            extend,
        )
        .needs(|_, c| Need::locks(c)),
        scenario(
            "settle/late",
            "Settling or extending after the lock ran out is LockLost, without I/O, and harms no other holder.",
            late,
        )
        .needs(|_, c| Need::locks(c)),
        scenario(
            "settle/late-drop",
            "Dropping a delivery whose lock ran out does not release the message from its next holder.",
            late_drop,
        )
        .needs(|_, c| Need::locks(c)),
        scenario(
            "settle/after-reconnect",
            "Deliveries from before a lost connection settle nothing else; what was not settled comes again.",
            after_reconnect,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "settle/cut-under-way",
            "A connection lost while acks are under way: each message is gone or comes again, and LockLost ones come.",
            cut_under_way,
        )
        .needs(|t, _| Need::proxy(t)),
    ]
}

/// A queue with a short lock.
pub(super) async fn short_locked(cx: &Cx, calls: &Calls) -> Outcome<(Fixture, Duration)> {
    let lock = short_lock(cx);
    let topology = Topology::new().queue("q", QueueSpec::new().lock(lock));
    Ok((Fixture::queue(cx.setup(topology).counting(calls).open().await?), lock))
}

/// A consumer that lets its locks run out.
pub(super) async fn not_renewing(q: &Fixture, prefetch: usize) -> Outcome<Subscription> {
    let sub = q.bus.subscribe(q.source.clone()).prefetch(prefetch).renew_locks(false).open().await;
    sub.during("subscribe without renewal")
}

async fn renewal(cx: Cx) -> Outcome {
    let (q, lock) = short_locked(&cx, &Calls::new()).await?;
    q.publish_all(messages(0..4)).await?;
    let mut sub = q.subscribe(4).await?;
    let mut mine = vec![cx.recv(&mut sub).await?];
    sleep(lock * 5 / 2).await;
    let mut other = q.on(cx.second_bus(&q.bus).await?).subscribe(4).await?;
    let mut theirs = Vec::new();
    while mine.len() + theirs.len() < 4 {
        tokio::select! { d = cx.recv(&mut sub) => mine.push(d?), d = cx.recv(&mut other) => theirs.push(d?) }
    }
    let mut seen = BTreeSet::new();
    for delivery in mine.into_iter().chain(theirs) {
        ensure_eq!(delivery.attempt(), 1, "attempt");
        ensure!(delivery.is_held(), "the lock was not renewed: {delivery:?}");
        ensure!(
            delivery.locked_until().is_some_and(|t| t > Instant::now()),
            "locked until {:?}",
            delivery.locked_until()
        );
        ensure!(seen.insert(number(delivery.envelope())?), "held twice: {delivery:?}");
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await?;
    cx.expect_none(&mut other).await
}

async fn later_arrivals(cx: Cx, spec: QueueSpec, of: fn(usize) -> Envelope) -> Outcome {
    let lock = short_lock(&cx);
    let q = cx.queue(spec.lock(lock)).await?;
    let mut sub = q.subscribe(4).await?;
    q.publish(of(0)).await?;
    let first = cx.recv(&mut sub).await?;
    // The prefetch has room for these, so they may come at once.
    q.publish_all((1..4).map(of)).await?;
    sleep(lock * 5 / 2).await;
    let mut seen = BTreeSet::new();
    for delivery in cx.collect(&mut sub, 3).await? {
        ensure_eq!(delivery.attempt(), 1, "attempt of {:?}", delivery.envelope());
        ensure!(delivery.is_held(), "handed out though its lock has run out: {delivery:?}");
        ensure!(seen.insert(number(delivery.envelope())?), "held twice: {delivery:?}");
        delivery.ack().await.during("ack of one that came while the first was handled")?;
    }
    ensure_eq!(seen, (1..4).collect::<BTreeSet<_>>(), "what came while the first was handled");
    first.ack().await.during("ack of the first")?;
    let mut other = q.on(cx.second_bus(&q.bus).await?).subscribe(4).await?;
    cx.expect_none(&mut other).await?;
    cx.expect_none(&mut sub).await
}

async fn extend(cx: Cx) -> Outcome {
    let (q, lock) = short_locked(&cx, &Calls::new()).await?;
    q.publish(message(1)).await?;
    // The connection is there before the lock begins, and each extension has two thirds of it to spare.
    let second = q.on(cx.second_bus(&q.bus).await?);
    let mut sub = not_renewing(&q, 5).await?;
    let mut delivery = cx.recv(&mut sub).await?;
    let mut other = second.subscribe(5).await?;
    for i in 0..6 {
        let before = delivery.locked_until();
        delivery.extend(lock).await.during(format!("extend {i}"))?;
        ensure!(delivery.locked_until() > before || i == 0, "extend {i} did not move {before:?}");
        cx.expect_none_for(&mut other, lock / 3).await?;
    }
    ensure!(delivery.is_held(), "no longer held though extended");
    delivery.ack().await?;
    cx.expect_none(&mut other).await?;
    cx.expect_none(&mut sub).await
}

async fn late(cx: Cx) -> Outcome {
    let calls = Calls::new();
    let (q, lock) = short_locked(&cx, &calls).await?;
    let (retries, buries) = (cx.capabilities().max_retry_delay.is_some(), cx.capabilities().dead_letters);
    q.publish_all(messages(0..5)).await?;
    let mut sub = not_renewing(&q, 5).await?;
    let held = cx.collect(&mut sub, 5).await?;
    sub.stop().await?;

    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut sub = other.subscribe(5).await?;
    let mut theirs = Vec::new();
    while theirs.len() < 5 {
        theirs.push(cx.recv_within(&mut sub, lock + cx.patience()).await.during("after the lock ran out")?);
    }
    let before = (calls.settles(), calls.extends());
    for (i, mut delivery) in held.into_iter().enumerate() {
        ensure!(!delivery.is_held(), "still held after its lock: {delivery:?}");
        let result = match i {
            0 => delivery.ack().await,
            1 => delivery.release().await,
            2 if retries => delivery.retry_after(Duration::from_secs(1)).await,
            3 if buries => delivery.dead_letter("late", "").await,
            _ => {
                expect_kind!(delivery.extend(lock).await, ErrorKind::LockLost, "late extend");
                delivery.ack().await
            }
        };
        expect_kind!(result, ErrorKind::LockLost, "late settlement {i}");
    }
    ensure_eq!((calls.settles(), calls.extends()), before, "calls that reached the driver");

    for delivery in theirs {
        delivery.release().await.during("release by the next holder")?;
    }
    let back: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 5).await?)?.into_iter().collect();
    ensure_eq!(back, (0..5).collect::<BTreeSet<_>>(), "what the next holder released");
    cx.expect_none(&mut sub).await?;
    if buries {
        let mut dead = other.subscribe_dead(5).await?;
        cx.expect_none(&mut dead).await?;
    }
    Ok(())
}

async fn late_drop(cx: Cx) -> Outcome {
    let (q, lock) = short_locked(&cx, &Calls::new()).await?;
    q.publish(message(1)).await?;
    let mut sub = not_renewing(&q, 1).await?;
    let late = cx.recv(&mut sub).await?;
    let mut other = q.on(cx.second_bus(&q.bus).await?).subscribe(2).await?;
    let next = cx.recv_within(&mut other, lock + cx.patience()).await?;
    drop(late);
    cx.expect_none(&mut other).await?;
    cx.expect_none(&mut sub).await?;
    ensure!(next.is_held(), "the next holder lost it");
    next.ack().await?;
    cx.expect_none(&mut sub).await
}

async fn after_reconnect(cx: Cx) -> Outcome {
    const N: usize = 6;
    let proxy = cx.proxy().await?;
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).through(&proxy).open().await?;
    let q = Fixture::queue(bus);
    let (retries, buries) = (cx.capabilities().max_retry_delay.is_some(), cx.capabilities().dead_letters);
    q.publish_all(messages(0..N)).await?;
    let mut sub = q.subscribe(2 * N).await?;
    let old = cx.collect(&mut sub, N).await?;
    proxy.cut();
    // Where the connection holds them, they come again; where a lock does, they stay held.
    let mut new: Vec<Delivery> = Vec::new();
    let wait = if cx.target().lock_outlives.is_some() { cx.quiet() } else { cx.patience() };
    while new.len() < N {
        match timeout(wait, sub.next()).await {
            Ok(Some(Ok(delivery))) => new.push(delivery),
            Ok(end) => crate::fail!("the subscription ended: {end:?}"),
            Err(_) => break,
        }
    }
    let came: BTreeSet<usize> = numbers(new.iter().map(Delivery::envelope))?.into_iter().collect();
    ensure_eq!(came.len(), new.len(), "different messages among those that came again");
    let mut settled = BTreeSet::new();
    for (i, delivery) in old.into_iter().enumerate() {
        let n = number(delivery.envelope())?;
        let held = delivery.is_held();
        let result = match i {
            1 if !held => delivery.release().await,
            2 if !held && retries => delivery.retry_after(Duration::from_secs(1)).await,
            3 if !held && buries => delivery.dead_letter("late", "").await,
            4 if !held => {
                drop(delivery);
                continue;
            }
            _ => delivery.ack().await,
        };
        match result {
            Ok(()) => {
                ensure!(!came.contains(&n), "message {n} came again, yet its old delivery could be settled");
                settled.insert(n);
            }
            Err(e) => {
                ensure_eq!(e.error().kind(), ErrorKind::LockLost, "settling an old delivery: {e:?}");
                ensure!(came.contains(&n), "message {n} is LockLost, yet it has not come again");
            }
        }
    }
    for delivery in new {
        ensure!(delivery.is_held(), "no longer held after an older delivery was settled: {delivery:?}");
        delivery.release().await.during("release of a new delivery")?;
    }
    let back: BTreeSet<usize> = numbers(&cx.drain(&mut sub, N - settled.len()).await?)?.into_iter().collect();
    ensure_eq!(back, (0..N).filter(|n| !settled.contains(n)).collect::<BTreeSet<_>>(), "what came in the end");
    cx.expect_none(&mut sub).await?;
    if buries {
        let mut dead = q.subscribe_dead(N).await?;
        cx.expect_none(&mut dead).await?;
    }
    Ok(())
}

async fn cut_under_way(cx: Cx) -> Outcome {
    const N: usize = 100;
    let proxy = cx.proxy().await?;
    let topology = Topology::new().queue("q", QueueSpec::new().max_deliveries(20));
    let q = Fixture::queue(cx.setup(topology).through(&proxy).open().await?);
    q.publish_all(messages(0..N)).await?;
    let mut sub = q.subscribe(N).await?;
    let held = cx.collect(&mut sub, N).await?;
    proxy.cut_after(200);
    let mut owed = BTreeSet::new();
    let mut unsure = BTreeSet::new();
    for delivery in held {
        let n = number(delivery.envelope())?;
        match delivery.ack().await {
            Ok(()) if cx.capabilities().confirmed_settlement => {}
            // It may have been on its way when the connection went.
            Ok(()) => drop(unsure.insert(n)),
            Err(e) if e.error().kind() == ErrorKind::LockLost => drop(owed.insert(n)),
            Err(e) => {
                ensure_eq!(e.error().retry(), RetrySafety::MayDuplicate, "retry of {e:?}");
                unsure.insert(n);
            }
        }
    }
    proxy.cut();
    while let Some(left) = owed.first().copied() {
        let delivery = cx.recv(&mut sub).await.during(format!("waiting for {left} and others that were LockLost"))?;
        let n = number(delivery.envelope())?;
        ensure!(owed.remove(&n) || unsure.remove(&n), "message {n} was acked, and came again");
        delivery.ack().await.during("ack after the reconnect")?;
    }
    Ok(())
}
