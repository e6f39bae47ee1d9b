//! Settling over a connection that stalls or is lost.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{Delivery, ErrorKind, QueueSpec, RetrySafety, Topology};
use tokio::time::timeout;

use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, fail, messages, number, numbers, scenario,
    scenarios::shared::take_rest,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "settle/ok-means-done",
            "An ack that is Ok is final though its consumer and its connection vanish in the same moment.",
            ok_means_done,
        )
        .needs(|_, c| Need::confirmed_settlement(c)),
        scenario(
            "settle/no-ok-while-stalled",
            "No ack is Ok while the connection is stalled; what says Ok in the end is gone, the rest comes again.",
            no_ok_while_stalled,
        )
        .needs(|t, c| Need::confirmed_settlement(c).and(Need::proxy(t)))
        .timeout(Duration::from_secs(120)),
        scenario(
            "settle/late-on-the-wire",
            "An ack that was written in time and arrives after its lock has ended settles nothing for the next consumer.",
            late_on_the_wire,
        )
        .needs(|t, c| Need::locks(c).and(Need::proxy(t)))
        .timeout(Duration::from_secs(120)),
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

const N: usize = 5;

async fn late_on_the_wire(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(QueueSpec::new().max_deliveries(100).lock(cx.short_lock())).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    q.publish_all(messages(0..1)).await?;
    let mut sub = through.subscribe(1).await?;
    let held = cx.recv(&mut sub).await?;
    proxy.stall(true);
    let ack = tokio::spawn(async move { held.ack().await.map_err(polybus_core::Error::from) });
    let mut other = q.subscribe(1).await?;
    let taken = cx.recv(&mut other).await.during("after the lock has ended")?;
    proxy.stall(false);
    ensure!(timeout(cx.patience(), ack).await.is_ok(), "the late ack hangs");
    // What the proxy has held back arrives meanwhile. The first consumer must not compete for what is released.
    cx.expect_none(&mut sub).await.during("the first consumer, beside the second one's lock")?;
    sub.close().await?;
    taken.release().await.during("a release by the next consumer, after the late ack of the first")?;
    cx.recv(&mut other).await.during("what the next consumer has released")?.ack().await?;
    Ok(())
}

async fn ok_means_done(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    for round in 0..5 {
        q.publish_all(messages(0..N)).await?;
        let bus = cx.second_bus(&q.bus).await?;
        let mut sub = q.on(bus.clone()).subscribe(N).await?;
        for delivery in cx.collect(&mut sub, N).await? {
            delivery.ack().await.during("ack")?;
        }
        // They are dropped without a close: an ack that was kept for later would be lost with them.
        drop((sub, bus));
        let mut sub = q.subscribe(N).await?;
        cx.expect_none(&mut sub).await.during(format!("after acks that were Ok, round {round}"))?;
        sub.close().await?;
    }
    Ok(())
}

async fn no_ok_while_stalled(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    q.publish_all(messages(0..N)).await?;
    let mut sub = through.subscribe(N).await?;
    let mut held = cx.collect(&mut sub, N).await?;
    proxy.stall(true);
    let mut acks = tokio::task::JoinSet::new();
    for delivery in held.drain(..) {
        let n = number(delivery.envelope())?;
        acks.spawn(async move { (n, delivery.ack().await.map_err(polybus_core::Error::from)) });
    }
    let mut done = Vec::new();
    let early = timeout(Duration::from_secs(3), async {
        while let Some(ended) = acks.join_next().await {
            let (n, result) = ended?;
            if result.is_ok() {
                fail!("the ack of message {n} is Ok, and nothing can have reached the broker");
            }
            done.push((n, result));
        }
        Outcome::Ok(())
    })
    .await;
    early.unwrap_or(Ok(()))?;
    proxy.stall(false);
    while let Some(ended) = timeout(cx.patience(), acks.join_next()).await.unwrap_or(None) {
        done.push(ended?);
    }
    ensure!(done.len() == N, "{} of {N} acks hang after the stall", N - done.len());
    sub.close().await?;
    let mut sub = q.subscribe(N).await?;
    let left: Vec<usize> = crate::numbers(&take_rest(&cx, &mut sub, 0).await?)?;
    for (n, result) in done {
        match result {
            Ok(()) => {
                ensure!(!left.contains(&n), "message {n} comes again after an ack that was Ok");
            }
            Err(e) => {
                let passing = matches!(e.kind(), ErrorKind::LockLost | ErrorKind::Unavailable | ErrorKind::Timeout);
                ensure!(passing, "an ack at a stalled broker: {e:?}");
            }
        }
    }
    Ok(())
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
    // Deliveries that belong to the connection come again. Those that belong to a lock stay held.
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
            // The ack may have been under way when the connection was lost.
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
