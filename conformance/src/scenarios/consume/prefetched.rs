//! Consuming, the hard ones: locks that run out unseen, consumers that end badly, windows that must not leak.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use polybus_core::{Delivery, ErrorKind, QueueSpec, Subscription, Topology};
use tokio::time::{Instant, sleep, timeout};

use super::tools::{rest, rest_with, same, short_lock};
use crate::{
    Cx, During, Failure, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, message, messages,
    number, numbers, scenario,
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "consume_hard/dropped-deliveries",
            "More dropped deliveries than the prefetch: the consumer goes on and each comes back.",
            dropped_deliveries,
        ),
        scenario(
            "consume_hard/lock-expires-in-the-buffer",
            "A delivery whose lock ran out in the buffer is not handed out; its message is another consumer's.",
            lock_expires_in_the_buffer,
        )
        .needs(|_, c| Need::locks(c)),
        scenario(
            "consume_hard/renewed-in-the-buffer",
            "Locks are renewed from receipt on, in the buffer too: nothing comes twice in two locks' time.",
            renewed_in_the_buffer,
        )
        .needs(|_, c| Need::locks(c)),
        scenario(
            "consume_hard/cancelled-by-the-server",
            "When its queue is deleted the consumer ends, and its open deliveries are LockLost, even against a new queue.",
            cancelled_by_the_server,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "consume_hard/ten-rounds",
            "Ten rounds of opening with prefetch and closing never run a handler past max_deliveries, and lose nothing.",
            ten_rounds,
        )
        .needs(|_, c| Need::dead_letters(c).and(Need::attempts_across_crash(c))),
        scenario(
            "consume_hard/ten-rounds-unhandled",
            "Ten rounds of prefetching and closing without handling anything lose nothing.",
            ten_rounds_unhandled,
        ),
        scenario(
            "consume_hard/cut-while-holding",
            "After a cut the stream goes on; what was in hand is LockLost, comes again, and is acked.",
            cut_while_holding,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "consume_hard/cuts-leak-nothing",
            "After five cuts a consumer has its full prefetch and no more: no window and no consumer leaked.",
            cuts_leak_nothing,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "consume_hard/idle-through-an-outage",
            "A consumer that waits through an outage gets what is published after it.",
            idle_through_an_outage,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "consume_hard/closed-in-an-outage",
            "A subscription and a bus can be closed during an outage, in time; what they held goes to others.",
            closed_in_an_outage,
        )
        .needs(|t, _| Need::proxy(t)),
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
    // The other consumer renews, so that these stay its own.
    cx.expect_none(&mut lazy).await.during("the buffer of expired deliveries")?;
    expect_kind!(stale.ack().await, ErrorKind::LockLost);
    let mut got = Vec::new();
    for delivery in held {
        ensure!(delivery.is_held(), "a late ack took another's delivery: {delivery:?}");
        ensure!(delivery.attempt() >= 2, "attempt {} after a lock ran out", delivery.attempt());
        got.push(delivery.envelope().clone());
        delivery.ack().await.during("ack by the one who holds it")?;
    }
    same(&sent, &got, "what the other consumer got")?;
    cx.expect_none(&mut keen).await?;
    // The window is free again: the expired ones took no place for ever.
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

    // A new queue of that name, whose deliveries may look like the old ones.
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
    same(&sent, &rest(&cx, &mut sub, sent.len()).await?, "the new queue's messages")
}

/// Takes the `n` that are there, live and dead, and then until nothing comes any more; message numbers.
async fn what_is_left(cx: &Cx, q: &Fixture, n: usize) -> Outcome<(BTreeSet<usize>, BTreeSet<usize>)> {
    let (mut live, mut dead) = (q.subscribe(1).await?, q.subscribe_dead(10).await?);
    let (mut acked, mut buried) = (BTreeSet::new(), BTreeSet::new());
    loop {
        let all_came = acked.len() + buried.len() >= n;
        // Where the clock is ours nothing comes late.
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
            // By now everything may be a dead letter.
            let Ok(Some(delivery)) = timeout(cx.quiet(), sub.next()).await else { break };
            let delivery = delivery?;
            *handled.entry(number(delivery.envelope())?).or_default() += 1;
            ensure!(delivery.attempt() <= limit, "round {round}: a handler sees attempt {}", delivery.attempt());
            held.push(delivery);
        }
        // Settled by hand, dropped, and left to the close.
        if !held.is_empty() {
            held.remove(0).release().await.during("release")?;
        }
        if !held.is_empty() {
            drop(held.remove(0));
        }
        sub.close().await?;
    }
    let most = handled.values().max().copied().unwrap_or(0);
    // The close's own give-back may not count, nor be counted upon.
    ensure!(
        most <= limit || !cx.capabilities().dead_letters,
        "a message was handled {most} times, {limit} are allowed"
    );
    let (live, dead) = what_is_left(&cx, &q, 20).await?;
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
        // One must have come, so that the others are on their way.
        let delivery = cx.recv(&mut sub).await.during(format!("round {round}"))?;
        if round % 2 == 0 {
            sub.close().await?;
        } else {
            drop(sub);
        }
        drop(delivery);
    }
    let mut sub = q.subscribe(40).await?;
    same(&sent, &rest(&cx, &mut sub, sent.len()).await?, "after ten rounds")
}

/// A queue seen directly, and by a bus behind a proxy.
async fn behind(cx: &Cx) -> Outcome<(Fixture, Fixture, crate::Proxy)> {
    let direct = cx.queue(QueueSpec::new().max_deliveries(50)).await?;
    let proxy = cx.proxy().await?;
    let bus = cx.setup(direct.bus.topology().clone()).undeclared().through(&proxy).open().await?;
    let far = direct.on(bus);
    Ok((direct, far, proxy))
}

/// Takes and acks until each of these has been acked. What comes again must be one of them.
async fn ack_all(cx: &Cx, sub: &mut Subscription, wanted: &BTreeSet<usize>) -> Outcome {
    ack_all_or_again(cx, sub, wanted, 0..0).await
}

/// The same, and some may come again that were acked before.
async fn ack_all_or_again(cx: &Cx, sub: &mut Subscription, wanted: &BTreeSet<usize>, again: Range<usize>) -> Outcome {
    let mut acked = BTreeSet::new();
    let deadline = Instant::now() + cx.patience() * 3;
    while acked != *wanted {
        ensure!(Instant::now() < deadline, "only {} of {} were acked", acked.len(), wanted.len());
        let delivery = cx.recv(sub).await.during(format!("{} of {} acked", acked.len(), wanted.len()))?;
        let n = number(delivery.envelope())?;
        ensure!(wanted.contains(&n) || again.contains(&n), "message {n} is not among those that may come");
        match delivery.ack().await {
            Ok(()) if again.contains(&n) => {}
            Ok(()) => drop(acked.insert(n)),
            Err(e) if e.error().kind() == ErrorKind::LockLost => {}
            Err(e) => return Err(Failure::from(e).during("ack")),
        }
    }
    Ok(())
}

/// Where the broker confirms no settlement, an ack may still go out until the client has noticed the cut.
async fn noticed(cx: &Cx, held: &Delivery) -> Outcome {
    let deadline = cx.deadline();
    while !cx.capabilities().confirmed_settlement && held.is_held() {
        ensure!(Instant::now() < deadline, "the client does not notice that its connection was cut");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn cut_while_holding(cx: Cx) -> Outcome {
    let (direct, q, proxy) = behind(&cx).await?;
    let mut sent = messages(0..20);
    direct.publish_all(sent.clone()).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.collect(&mut sub, 5).await?;
    proxy.cut();
    if cx.target().lock_outlives.is_some() {
        for delivery in held {
            delivery.ack().await.during("ack of what outlives the cut")?;
        }
        let mut got = numbers(&rest(&cx, &mut sub, 15).await?)?;
        got.sort_unstable();
        ensure_eq!(got.len(), 15, "messages that came after the acks: {got:?}");
        let mut sub = direct.subscribe(5).await?;
        return cx.expect_none(&mut sub).await;
    }
    noticed(&cx, &held[0]).await?;
    // Whoever asks first learns of the cut; the rest of the buffer is not handed out any more.
    let again = cx.recv(&mut sub).await.during("the stream after the cut")?;
    ensure!(again.is_held(), "a delivery of the lost connection was handed out");
    for delivery in held {
        expect_kind!(delivery.ack().await, ErrorKind::LockLost, "ack of what the cut took away");
    }
    sent.retain(|e| e.id != again.envelope().id);
    again.ack().await.during("ack on the new connection")?;
    let got = rest_with(&cx, &mut sub, &sent).await?;
    let numbers: BTreeSet<usize> = numbers(&got)?.into_iter().collect();
    ensure_eq!(numbers.len(), 19, "messages that came after the first ack");
    let mut sub = direct.subscribe(5).await?;
    cx.expect_none(&mut sub).await
}

async fn cuts_leak_nothing(cx: Cx) -> Outcome {
    let (direct, q, proxy) = behind(&cx).await?;
    let mut sub = q.subscribe(5).await?;
    for round in 0..5 {
        direct.publish_all(messages(round * 10..round * 10 + 3)).await?;
        let held = cx.collect(&mut sub, 2).await.during(format!("round {round}"))?;
        proxy.cut();
        let mut left: BTreeSet<usize> = (round * 10..round * 10 + 3).collect();
        if cx.target().lock_outlives.is_some() {
            for delivery in held {
                left.remove(&number(delivery.envelope())?);
                delivery.ack().await.during(format!("round {round}: ack after the cut"))?;
            }
        } else {
            noticed(&cx, &held[0]).await?;
            for delivery in held {
                expect_kind!(delivery.ack().await, ErrorKind::LockLost, "round {round}: ack after the cut");
            }
        }
        // Where acks are not answered, the cut may have overtaken those of the round before.
        if !cx.capabilities().confirmed_settlement {
            let unanswered = round.saturating_sub(1) * 10..round * 10;
            ack_all_or_again(&cx, &mut sub, &left, unanswered).await.during(format!("round {round}"))?;
        } else {
            ack_all(&cx, &mut sub, &left).await.during(format!("round {round}"))?;
        }
    }
    direct.publish_all(messages(100..130)).await?;
    let held = cx.collect(&mut sub, 5).await.during("a full window after five cuts")?;
    cx.expect_none(&mut sub).await.during("more than the prefetch after five cuts")?;
    let mut other = direct.subscribe(50).await?;
    let mut got = numbers(&cx.drain(&mut other, 25).await.during("what no leaked consumer may keep")?)?;
    for delivery in held {
        got.push(number(delivery.envelope())?);
        delivery.ack().await?;
    }
    got.sort_unstable();
    ensure_eq!(got, (100..130).collect::<Vec<_>>(), "what came");
    Ok(())
}

async fn idle_through_an_outage(cx: Cx) -> Outcome {
    let (direct, q, proxy) = behind(&cx).await?;
    let mut sub = q.subscribe(5).await?;
    let waits = tokio::spawn({
        let cx = cx.clone();
        async move {
            let delivery = cx.recv_within(&mut sub, cx.patience() * 3).await?;
            let n = number(delivery.envelope())?;
            delivery.ack().await.during("ack after the outage")?;
            Ok::<_, Failure>((sub, n))
        }
    });
    sleep(Duration::from_millis(200)).await;
    proxy.refuse(true).await;
    proxy.cut();
    sleep(Duration::from_secs(1)).await;
    ensure!(!waits.is_finished(), "the stream ended in the outage");
    direct.publish(message(7)).await?;
    proxy.refuse(false).await;
    let (mut sub, n) = waits.await??;
    ensure_eq!(n, 7, "what came after the outage");
    cx.expect_none(&mut sub).await
}

async fn closed_in_an_outage(cx: Cx) -> Outcome {
    let (direct, q, proxy) = behind(&cx).await?;
    let sent = messages(0..10);
    direct.publish_all(sent.clone()).await?;
    let (mut one, mut two) = (q.subscribe(3).await?, q.subscribe(3).await?);
    let held = (cx.recv(&mut one).await?, cx.recv(&mut two).await?);
    proxy.refuse(true).await;
    proxy.cut();
    // Whether that is an error is open: nothing could be told to the broker.
    if timeout(cx.patience(), one.close()).await.is_err() {
        fail!("closing a subscription hangs in an outage");
    }
    if timeout(cx.patience(), q.bus.close()).await.is_err() {
        fail!("closing the bus hangs in an outage");
    }
    for delivery in [held.0, held.1] {
        expect_kind!(delivery.ack().await, ErrorKind::LockLost);
    }
    cx.expect_end(&mut two, ErrorKind::Closed).await?;
    let mut sub = direct.subscribe(20).await?;
    same(&sent, &cx.drain(&mut sub, 10).await?, "what others get")?;
    Ok(())
}
