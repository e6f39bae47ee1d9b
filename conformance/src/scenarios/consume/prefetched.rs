//! What waits in the prefetch buffer: locks that run out there, and messages that go back when a consumer ends.

use std::collections::{BTreeMap, BTreeSet};

use polybus_core::{Delivery, ErrorKind, QueueSpec, Topology};
use tokio::time::{sleep, timeout};

use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, messages, number, scenario,
    scenarios::shared::{expect_same, short_lock, take_rest},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "consume/dropped-deliveries",
            "More dropped deliveries than the prefetch: the consumer goes on and each comes back.",
            dropped_deliveries,
        ),
        scenario(
            "consume/lock-expires-in-the-buffer",
            "A delivery whose lock ran out in the buffer is not handed out; its message is another consumer's.",
            lock_expires_in_the_buffer,
        )
        .needs(|_, c| Need::locks(c)),
        scenario(
            "consume/renewed-in-the-buffer",
            "Locks are renewed from receipt on, in the buffer too: nothing comes twice in two locks' time.",
            renewed_in_the_buffer,
        )
        .needs(|_, c| Need::locks(c)),
        scenario(
            "consume/cancelled-by-the-server",
            "When its queue is deleted the consumer ends, and its open deliveries are LockLost, even against a new queue.",
            cancelled_by_the_server,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "consume/ten-rounds",
            "Ten rounds of opening with prefetch and closing never run a handler past max_deliveries, and lose nothing.",
            ten_rounds,
        )
        .needs(|_, c| Need::dead_letters(c).and(Need::attempts_across_crash(c))),
        scenario(
            "consume/ten-rounds-unhandled",
            "Ten rounds of prefetching and closing without handling anything lose nothing.",
            ten_rounds_unhandled,
        ),
    ]
}

async fn dropped_deliveries(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(10)).await?;
    q.publish_all(messages(0..20)).await?;
    let mut sub = q.subscribe(4).await?;
    let mut drops: BTreeMap<usize, u32> = BTreeMap::new();
    let mut acked = BTreeSet::new();
    while acked.len() < 20 {
        let held = cx.collect(&mut sub, 4.min(20 - acked.len())).await.during(format!("{} acked", acked.len()))?;
        for delivery in held {
            let n = number(delivery.envelope())?;
            let dropped = drops.entry(n).or_default();
            ensure!(
                delivery.attempt() > *dropped,
                "message {n}: attempt {} after it was dropped {dropped} times",
                delivery.attempt()
            );
            if *dropped < 2 {
                *dropped += 1;
                drop(delivery);
            } else {
                delivery.ack().await.during("ack")?;
                ensure!(acked.insert(n), "message {n} came again after its ack");
            }
        }
    }
    cx.expect_none(&mut sub).await
}

async fn lock_expires_in_the_buffer(cx: Cx) -> Outcome {
    let lock = short_lock(&cx);
    let q = cx.queue(QueueSpec::new().lock(lock).max_deliveries(10)).await?;
    let sent = messages(0..6);
    q.publish_all(sent.clone()).await?;
    let lazy = q.bus.subscribe(q.source.clone()).prefetch(6).renew_locks(false);
    let mut lazy = lazy.open().await?;
    let stale = cx.recv(&mut lazy).await?;
    sleep(lock + lock / 2).await;
    ensure!(!stale.is_held(), "a lock of {lock:?} is still held after half as much again");

    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut keen = other.subscribe(6).await?;
    let held = cx.collect(&mut keen, 6).await.during("what is no longer locked")?;
    // The other consumer renews its locks, so nothing of what it holds comes here.
    cx.expect_none(&mut lazy).await.during("the buffer of expired deliveries")?;
    expect_kind!(stale.ack().await, ErrorKind::LockLost);
    let mut got = Vec::new();
    for delivery in held {
        ensure!(delivery.is_held(), "a late ack took another's delivery: {delivery:?}");
        ensure!(delivery.attempt() >= 2, "attempt {} after a lock ran out", delivery.attempt());
        got.push(delivery.envelope().clone());
        delivery.ack().await.during("ack by the one who holds it")?;
    }
    expect_same(&sent, &got, "what the other consumer got")?;
    cx.expect_none(&mut keen).await?;
    // The prefetch window is free again: expired deliveries do not occupy it.
    keen.close().await?;
    q.publish_all(messages(10..16)).await?;
    let mut again = Vec::new();
    for delivery in cx.collect(&mut lazy, 6).await.during("a full window after its deliveries expired")? {
        again.push(number(delivery.envelope())?);
        delivery.ack().await?;
    }
    again.sort_unstable();
    ensure_eq!(again, (10..16).collect::<Vec<_>>(), "what came after that");
    Ok(())
}

async fn renewed_in_the_buffer(cx: Cx) -> Outcome {
    let lock = short_lock(&cx);
    let q = cx.queue(QueueSpec::new().lock(lock)).await?;
    q.publish_all(messages(0..6)).await?;
    let mut sub = q.subscribe(6).await?;
    let first = cx.recv(&mut sub).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut thief = other.subscribe(6).await?;
    cx.expect_none_for(&mut thief, lock * 2).await.during("another consumer, while locks are renewed")?;
    first.ack().await.during("ack after two locks' time")?;
    for delivery in cx.collect(&mut sub, 5).await? {
        ensure_eq!(delivery.attempt(), 1, "attempt of {:?}", delivery.envelope());
        delivery.ack().await.during("ack of one that was in the buffer for two locks' time")?;
    }
    cx.expect_none(&mut sub).await?;
    cx.expect_none(&mut thief).await
}

async fn cancelled_by_the_server(cx: Cx) -> Outcome {
    let topology = || Topology::new().queue("q", QueueSpec::new());
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..6)).await?;
    let mut sub = q.subscribe(4).await?;
    let mut old = cx.collect(&mut sub, 3).await?;
    cx.second_bus(&q.bus).await?.delete().await.during("delete")?;
    cx.expect_end(&mut sub, ErrorKind::NotFound).await?;
    expect_kind!(old.remove(0).ack().await, ErrorKind::LockLost);

    // The new queue has the same name, and a broker may number its deliveries as in the old one.
    cx.bus(topology()).await.during("declare again")?;
    let sent = messages(10..14);
    q.publish_all(sent.clone()).await?;
    let mut sub = q.subscribe(4).await.during("subscribe to the new queue")?;
    let held = cx.collect(&mut sub, 4).await?;
    expect_kind!(old.remove(0).ack().await, ErrorKind::LockLost, "a late ack");
    drop(old);
    cx.expect_none(&mut sub).await?;
    sub.close().await?;
    for delivery in held {
        expect_kind!(delivery.ack().await, ErrorKind::LockLost, "ack after close");
    }
    let mut sub = q.subscribe(10).await?;
    expect_same(&sent, &take_rest(&cx, &mut sub, sent.len()).await?, "the new queue's messages")
}

/// The numbers of the `n` messages that are left, live and dead. Takes more until nothing comes, so that extra ones
/// show.
async fn take_live_and_dead(cx: &Cx, q: &Fixture, n: usize) -> Outcome<(BTreeSet<usize>, BTreeSet<usize>)> {
    let (mut live, mut dead) = (q.subscribe(1).await?, q.subscribe_dead(10).await?);
    let (mut acked, mut buried) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let all_came = acked.len() + buried.len() >= n;
        // On the paused clock nothing comes late.
        let wait = if all_came || cx.time_is_free() { cx.quiet() } else { cx.patience() };
        let next = async {
            tokio::select! { d = live.next() => (true, d), d = dead.next() => (false, d) }
        };
        let Ok((is_live, next)) = timeout(wait, next).await else { break };
        let Some(delivery) = next else { fail!("a subscription ended") };
        let delivery = delivery?;
        let (of, it) = (if is_live { &mut acked } else { &mut buried }, number(delivery.envelope())?);
        ensure!(of.insert(it), "message {it} is there twice");
        delivery.ack().await.during("ack of what is left")?;
    }
    Ok((acked, buried))
}

async fn ten_rounds(cx: Cx) -> Outcome {
    let limit = 3;
    let q = cx.queue(QueueSpec::new().max_deliveries(limit)).await?;
    q.publish_all(messages(0..20)).await?;
    let mut handled: BTreeMap<usize, u32> = BTreeMap::new();
    for round in 0..10 {
        let mut sub = q.subscribe(10).await?;
        let mut held: Vec<Delivery> = Vec::new();
        while held.len() < 3 {
            // Everything may be a dead letter by now.
            let Ok(Some(delivery)) = timeout(cx.quiet(), sub.next()).await else { break };
            let delivery = delivery?;
            *handled.entry(number(delivery.envelope())?).or_default() += 1;
            ensure!(delivery.attempt() <= limit, "round {round}: a handler sees attempt {}", delivery.attempt());
            held.push(delivery);
        }
        // One is released, one is dropped, and the others are left to the close.
        if !held.is_empty() {
            held.remove(0).release().await.during("release")?;
        }
        if !held.is_empty() {
            drop(held.remove(0));
        }
        sub.close().await?;
    }
    let most = handled.values().max().copied().unwrap_or(0);
    // The close gives messages back, which may or may not count as an attempt.
    ensure!(
        most <= limit || !cx.capabilities().dead_letters,
        "a message was handled {most} times, {limit} are allowed"
    );
    let (live, dead) = take_live_and_dead(&cx, &q, 20).await?;
    ensure!(live.is_disjoint(&dead), "both live and dead: {live:?} {dead:?}");
    ensure_eq!(&live | &dead, (0..20).collect::<BTreeSet<_>>(), "messages that are still there");
    for n in live {
        let runs = handled.get(&n).copied().unwrap_or(0) + 1;
        ensure!(runs <= limit, "message {n} was handled {runs} times");
    }
    Ok(())
}

async fn ten_rounds_unhandled(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(50)).await?;
    let sent = messages(0..30);
    q.publish_all(sent.clone()).await?;
    for round in 0..10 {
        let mut sub = q.subscribe(1 + round * 3).await?;
        // Once one has come, the others are on their way.
        let delivery = cx.recv(&mut sub).await.during(format!("round {round}"))?;
        if round % 2 == 0 {
            sub.close().await?;
        } else {
            drop(sub);
        }
        drop(delivery);
    }
    let mut sub = q.subscribe(40).await?;
    expect_same(&sent, &take_rest(&cx, &mut sub, sent.len()).await?, "after ten rounds")
}
