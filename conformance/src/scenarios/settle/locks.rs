//! Settling what is held under a lock.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{Envelope, ErrorKind, QueueSpec};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    CallCounter, Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, message, messages,
    number, numbers, scenario,
    scenarios::shared::{not_renewing, short_lock, short_locked},
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
            "settle/lock-told",
            "locked_until leaves a margin and not more than that, and an ack shortly before it is final.",
            lock_told,
        )
        .needs(|_, c| Need::locks(c)),
    ]
}

async fn lock_told(cx: Cx) -> Outcome {
    let lock = short_lock(&cx);
    let q = cx.queue(QueueSpec::new().lock(lock)).await?;
    let (deadline, mut tries) = (cx.deadline(), 1);
    // On a machine that is never in time the ack is not judged. The deadlines are.
    while !is_in_time(&cx, &q, lock, tries).await.during(format!("try {tries}"))? && Instant::now() < deadline {
        tries += 1;
    }
    Ok(())
}

/// Acks a message shortly before its deadline, a little earlier at each try. False if this machine was too late.
async fn is_in_time(cx: &Cx, q: &Fixture, lock: Duration, tries: u32) -> Outcome<bool> {
    q.publish(message(1)).await?;
    let asked = Instant::now();
    let mut sub = not_renewing(q, 1).await?;
    let delivery = cx.recv(&mut sub).await?;
    let got = Instant::now();
    let Some(until) = delivery.locked_until() else { fail!("no deadline told, though there are locks") };
    let margin = (lock / 4).min(Duration::from_secs(1));
    ensure!(until <= got + lock - margin, "no margin: {:?} of a lock of {lock:?} are promised", until - got);
    ensure!(until >= asked + lock * 3 / 4, "only {:?} of a lock of {lock:?} are promised", until - asked);
    sleep_until(until - (margin / 4 * tries).min(lock / 2)).await;
    let held = delivery.is_held();
    ensure!(held || Instant::now() >= until, "lost before its deadline");
    let acked = delivery.ack().await;
    if Instant::now() < until {
        acked.during("ack before the deadline")?;
        return cx.expect_none_for(&mut sub, lock + margin).await.map(|()| true);
    }
    sub.close().await?;
    match acked {
        Ok(()) => {}
        // The message is acked later, so that the next try gets another one.
        Err(e) if e.error().kind() == ErrorKind::LockLost => drop(cx.drain(&mut q.subscribe(1).await?, 1).await?),
        acked => acked.during("ack around the deadline")?,
    }
    Ok(false)
}

async fn renewal(cx: Cx) -> Outcome {
    let (q, lock) = short_locked(&cx, &CallCounter::new()).await?;
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
    // The prefetch has room for these, so they may be delivered at once.
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
    let (q, lock) = short_locked(&cx, &CallCounter::new()).await?;
    q.publish(message(1)).await?;
    // The connection is open before the lock begins, and each extension has two thirds of the lock to spare.
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
    let calls = CallCounter::new();
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
    let (q, lock) = short_locked(&cx, &CallCounter::new()).await?;
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
