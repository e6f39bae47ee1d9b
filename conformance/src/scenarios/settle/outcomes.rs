//! Ack, release, `retry_after` and dropping.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{Delivery, ErrorKind, QueueSpec, SettleError, Topology};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    CallCounter, Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, message, messages,
    number, numbers, scenario,
    scenarios::shared::{ExpectedDelay, expect_all, long_lock},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario("settle/ack-is-final", "An acked message is gone, for this consumer and for the next.", ack_is_final),
        scenario("settle/release", "A released message comes again at once.", release),
        scenario("settle/gaps", "Acks around unsettled deliveries settle their own messages and no others.", gaps),
        scenario("settle/drop", "A dropped delivery comes back at once.", dropped),
        scenario(
            "settle/cancelled",
            "A settlement goes on though its future is dropped after the first poll; one never polled is a release.",
            cancelled,
        ),
        scenario(
            "settle/interleaved",
            "Of 1,000 deliveries settled at once in all ways, each goes where it was sent, once.",
            interleaved,
        )
        .timeout(Duration::from_secs(120)),
        scenario(
            "settle/after-stop",
            "Deliveries in hand can be settled after the subscription was stopped or dropped; the rest goes back.",
            after_stop,
        ),
        scenario(
            "settle/after-close",
            "Closing gives unsettled deliveries back; each way to settle them later is LockLost.",
            after_close,
        ),
        scenario(
            "settle/close-finishes",
            "Acks under way at close are finished: what was answered Ok is gone, the rest comes again.",
            close_finishes,
        ),
        scenario(
            "settle/retry-after",
            "A message retried after d comes not before d, and at most 10 % late.",
            retry_after,
        )
        .needs(|_, c| Need::retry(c, Duration::from_secs(2))),
        scenario(
            "settle/retry-not-held-up",
            "A retry after 1 s is not held up behind ones after 60 s.",
            retry_not_held_up,
        )
        .needs(|_, c| Need::retry(c, Duration::from_secs(60))),
        scenario(
            "settle/retry-too-long",
            "A retry later than the broker can is Unsupported, without I/O, and gives the delivery back.",
            retry_too_long,
        )
        .needs(|_, c| Need::only_if(c.max_retry_delay != Some(Duration::MAX))),
    ]
}

async fn ack_is_final(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..3)).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.collect(&mut sub, 3).await?;
    for delivery in held {
        if number(delivery.envelope())? == 1 {
            delivery.release().await?;
        } else {
            delivery.ack().await?;
        }
    }
    let again = cx.recv(&mut sub).await?;
    ensure_eq!(number(again.envelope())?, 1, "what came back");
    again.ack().await?;
    cx.expect_none(&mut sub).await?;
    sub.close().await?;

    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut sub = other.subscribe(10).await?;
    cx.expect_none(&mut sub).await
}

async fn release(cx: Cx) -> Outcome {
    let lock = long_lock(&cx);
    let q = cx.queue(QueueSpec::new().lock(lock)).await?;
    let sent = message(7).source("suite").header("tenant", "acme");
    q.publish(&sent).await?;
    let mut sub = q.subscribe(5).await?;
    let first = cx.recv(&mut sub).await?;
    let at_once = ExpectedDelay::of(Duration::ZERO, async { Ok(first.release().await?) }).await?;
    let second = cx.recv(&mut sub).await?;
    at_once.check_at_once(&cx, lock)?;
    ensure_eq!(second.envelope(), &sent, "what came back");

    if cx.capabilities().max_retry_delay.is_some() {
        let at_once = ExpectedDelay::retry(second, Duration::ZERO).await?;
        let third = cx.recv(&mut sub).await?;
        at_once.check_at_once(&cx, lock)?;
        ensure_eq!(third.envelope(), &sent, "what came back after a retry without delay");
        third.ack().await?;
    } else {
        second.ack().await?;
    }
    cx.expect_none(&mut sub).await
}

async fn gaps(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..20)).await?;
    let mut sub = q.subscribe(20).await?;
    let (mut even, mut odd) = (Vec::new(), Vec::new());
    for delivery in cx.collect(&mut sub, 20).await? {
        let to = if number(delivery.envelope())? % 2 == 0 { &mut even } else { &mut odd };
        to.push(delivery);
    }
    // All acks at once and the last one first, so that a driver that merges acks would merge these.
    let mut acks = JoinSet::new();
    even.into_iter().rev().for_each(|d| drop(acks.spawn(d.ack())));
    while let Some(acked) = acks.join_next().await {
        acked?.during("ack")?;
    }
    for delivery in odd.into_iter().rev() {
        ensure!(delivery.is_held(), "no longer held after other messages were acked: {delivery:?}");
        delivery.release().await.during("release")?;
    }
    let mut back = numbers(&cx.drain(&mut sub, 10).await?)?;
    back.sort_unstable();
    ensure_eq!(back, (0..20).filter(|n| n % 2 == 1).collect::<Vec<_>>(), "what came back");
    cx.expect_none(&mut sub).await
}

async fn dropped(cx: Cx) -> Outcome {
    let lock = long_lock(&cx);
    let q = cx.queue(QueueSpec::new().lock(lock)).await?;
    q.publish_all(messages(0..5)).await?;
    let mut sub = q.subscribe(5).await?;
    let held = cx.collect(&mut sub, 5).await?;
    // These fill the prefetch window: if one had stayed unsettled, not all could come.
    let at_once = ExpectedDelay::of(Duration::ZERO, async {
        drop(held);
        Ok(())
    })
    .await?;
    let back: BTreeSet<usize> =
        numbers(cx.collect(&mut sub, 5).await?.iter().map(Delivery::envelope))?.into_iter().collect();
    at_once.check_at_once(&cx, lock)?;
    ensure_eq!(back, (0..5).collect::<BTreeSet<_>>(), "what came back");
    let all: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 5).await?)?.into_iter().collect();
    ensure_eq!(all, (0..5).collect::<BTreeSet<_>>(), "what came back the second time");
    cx.expect_none(&mut sub).await
}

/// Polls the settlement once, and drops it.
async fn begin(settlement: impl Future<Output = Result<(), SettleError>>) -> Outcome {
    match timeout(Duration::ZERO, settlement).await {
        Ok(Err(e)) => Err(e.into()),
        _ => Ok(()),
    }
}

async fn cancelled(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(5).await?;
    let first = cx.recv(&mut sub).await?;
    drop(first.ack());
    let second = cx.recv(&mut sub).await.during("after an ack that was never polled")?;
    begin(second.release()).await?;
    let third = cx.recv(&mut sub).await.during("after a release that was dropped half way")?;
    begin(third.ack()).await?;
    cx.expect_none(&mut sub).await?;

    if cx.capabilities().dead_letters {
        q.publish(message(2)).await?;
        begin(cx.recv(&mut sub).await?.dead_letter("unwanted", "")).await?;
        let mut dead = q.subscribe_dead(5).await?;
        let dead_numbers = numbers(&cx.drain(&mut dead, 1).await?)?;
        ensure_eq!(dead_numbers, [2], "dead letters");
        cx.expect_none(&mut sub).await?;
    }
    Ok(())
}

async fn interleaved(cx: Cx) -> Outcome {
    const N: usize = 1000;
    let (retries, buries) = (cx.capabilities().max_retry_delay.is_some(), cx.capabilities().dead_letters);
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..N)).await?;
    let mut sub = q.subscribe(100).await?;
    let mut settling = JoinSet::new();
    let (mut seen, mut again) = (BTreeSet::new(), BTreeSet::new());
    let comes_twice = |n: usize| matches!(n % 5, 1 | 2 | 4);
    let wanted = N + (0..N).filter(|n| comes_twice(*n)).count();
    for i in 0..wanted {
        let delivery = cx.recv(&mut sub).await.during(format!("delivery {i} of {wanted}"))?;
        let n = number(delivery.envelope())?;
        let first = seen.insert(n);
        ensure!(first || (comes_twice(n) && again.insert(n)), "message {n} came too often");
        settling.spawn(async move {
            match n % 5 {
                1 if first => delivery.release().await,
                2 if first && retries => delivery.retry_after(Duration::from_millis(300)).await,
                2 if first => delivery.release().await,
                3 if buries => delivery.dead_letter("unwanted", n.to_string()).await,
                4 if first => {
                    drop(delivery);
                    Ok(())
                }
                _ => delivery.ack().await,
            }
        });
    }
    while let Some(settled) = settling.join_next().await {
        settled?.during("settle")?;
    }
    cx.expect_none(&mut sub).await?;
    if buries {
        let mut dead = q.subscribe_dead(100).await?;
        let mut buried = numbers(&cx.drain(&mut dead, N / 5).await?)?;
        buried.sort_unstable();
        ensure_eq!(buried, (0..N).filter(|n| n % 5 == 3).collect::<Vec<_>>(), "dead letters");
        cx.expect_none(&mut dead).await?;
    }
    Ok(())
}

async fn after_stop(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    q.publish_all(messages(0..4)).await?;
    let mut stopped = q.subscribe(4).await?;
    let in_hand = cx.recv(&mut stopped).await?;
    let mut left: BTreeSet<usize> = (0..4).collect();
    left.remove(&number(in_hand.envelope())?);
    stopped.stop().await.during("stop")?;
    in_hand.ack().await.during("ack after stop")?;

    let mut dropped = other.subscribe(4).await?;
    let in_hand = cx.collect(&mut dropped, 3).await.during("what the stopped one had not handed out")?;
    let got: BTreeSet<usize> = numbers(in_hand.iter().map(Delivery::envelope))?.into_iter().collect();
    ensure_eq!(got, left, "what was left");
    drop(dropped);
    let mut in_hand = in_hand.into_iter();
    for (i, delivery) in in_hand.by_ref().take(2).enumerate() {
        left.remove(&number(delivery.envelope())?);
        delivery.ack().await.during(format!("ack {i} after the subscription was dropped"))?;
    }
    drop(in_hand);
    let mut sub = q.subscribe(4).await?;
    let got: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 1).await?)?.into_iter().collect();
    ensure_eq!(got, left, "what was left at the end");
    cx.expect_none(&mut sub).await
}

async fn after_close(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..5)).await?;
    let mut sub = q.subscribe(5).await?;
    let held = cx.collect(&mut sub, 5).await?;
    sub.close().await.during("close")?;
    sub.close().await.during("second close")?;
    for (i, delivery) in held.into_iter().enumerate() {
        ensure!(!delivery.is_held(), "still held after close: {delivery:?}");
        let can = cx.capabilities();
        let result = match i {
            0 => delivery.ack().await,
            1 => delivery.release().await,
            2 if can.max_retry_delay.is_some() => delivery.retry_after(Duration::from_secs(1)).await,
            3 if can.dead_letters => delivery.dead_letter("late", "").await,
            _ => {
                drop(delivery);
                continue;
            }
        };
        expect_kind!(result, ErrorKind::LockLost, "settlement {i} after close");
    }
    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut sub = other.subscribe(5).await?;
    let back: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 5).await?)?.into_iter().collect();
    ensure_eq!(back, (0..5).collect::<BTreeSet<_>>(), "what was given back");
    cx.expect_none(&mut sub).await
}

async fn close_finishes(cx: Cx) -> Outcome {
    const N: usize = 200;
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..N)).await?;
    let mut sub = q.subscribe(N).await?;
    let mut acks = JoinSet::new();
    for delivery in cx.collect(&mut sub, N).await? {
        let n = number(delivery.envelope())?;
        acks.spawn(async move { (n, delivery.ack().await) });
    }
    tokio::task::yield_now().await;
    sub.close().await.during("close")?;
    let mut gone = BTreeSet::new();
    while let Some(acked) = acks.join_next().await {
        match acked? {
            (n, Ok(())) => drop(gone.insert(n)),
            (_, Err(e)) if e.error().kind() == ErrorKind::LockLost => {}
            (n, Err(e)) => fail!("ack of {n}: expected Ok or LockLost, got {e:?}"),
        }
    }
    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut sub = other.subscribe(N).await?;
    let back: BTreeSet<usize> = numbers(&cx.drain(&mut sub, N - gone.len()).await?)?.into_iter().collect();
    let not_gone: BTreeSet<usize> = (0..N).filter(|n| !gone.contains(n)).collect();
    ensure_eq!(back, not_gone, "what came again");
    cx.expect_none(&mut sub).await
}

async fn retry_after(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent = message(1).source("suite").key("k").header("tenant", "acme");
    q.publish(&sent).await?;
    let mut sub = q.subscribe(5).await?;
    for (i, millis) in [2000, 700].into_iter().enumerate() {
        let retried = ExpectedDelay::retry(cx.recv(&mut sub).await?, Duration::from_millis(millis)).await?;
        let delivery = cx.recv(&mut sub).await.during(format!("retry {i}"))?;
        retried.check(&cx)?;
        ensure_eq!(delivery.envelope(), &sent, "what came back");
        ensure_eq!(delivery.attempt(), 2 + 2 * i as u32, "attempt");
        delivery.release().await?;
    }
    cx.drain(&mut sub, 1).await?;
    cx.expect_none(&mut sub).await
}

async fn retry_not_held_up(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..4)).await?;
    let mut sub = q.subscribe(4).await?;
    let started = Instant::now();
    for (i, delivery) in cx.collect(&mut sub, 4).await?.into_iter().enumerate() {
        match i {
            0 => delivery.retry_after(Duration::from_secs(60)).await?,
            _ => delivery.release().await?,
        }
    }
    let mut short = Vec::new();
    for delivery in cx.collect(&mut sub, 3).await? {
        let n = number(delivery.envelope())?;
        let by = Duration::from_millis(1000 + 400 * short.len() as u64);
        short.push((n, ExpectedDelay::retry(delivery, by).await?));
    }
    expect_all(&cx, &mut sub, short).await?;
    if cx.time_is_free() {
        let long = cx.recv_within(&mut sub, Duration::from_secs(70)).await?;
        ensure!(started.elapsed() >= Duration::from_secs(60), "the long one came after {:?}", started.elapsed());
        long.ack().await?;
    }
    cx.expect_none(&mut sub).await
}

async fn retry_too_long(cx: Cx) -> Outcome {
    let by = cx.capabilities().max_retry_delay.map_or(Duration::from_secs(1), |max| max + Duration::from_secs(1));
    let calls = CallCounter::new();
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls).open().await?;
    let q = Fixture::queue(bus);
    q.publish(message(1)).await?;
    let (mut sub, delivery) = q.one(&cx).await?;
    let before = calls.settles();
    let e = match delivery.retry_after(by).await {
        Err(e) => e,
        Ok(()) => fail!("a retry after {by:?} was taken"),
    };
    ensure_eq!(e.error().kind(), ErrorKind::Unsupported, "kind");
    ensure_eq!(calls.settles(), before, "calls that reached the driver");
    let Some(delivery) = e.into_parts().1 else { fail!("the delivery was not given back") };
    delivery.ack().await.during("ack of the delivery that was given back")?;
    cx.expect_none(&mut sub).await
}
