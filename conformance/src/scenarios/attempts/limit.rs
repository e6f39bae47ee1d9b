//! `max_deliveries` is kept exactly.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use polybus_core::{Delivery, QueueSpec};
use tokio::time::Instant;

use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, fail, message, messages, number, numbers,
    scenario,
    scenarios::shared::{not_renewing, short_lock, timing_slack},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario("attempts/limit-release", "Releases: exactly max_deliveries are handled, then a dead letter.", |cx| {
            exhaust(cx, GiveBackMode::Release)
        })
        .needs(|_, c| Need::dead_letters(c)),
        scenario("attempts/limit-drop", "Drops: exactly max_deliveries are handled, then a dead letter.", |cx| {
            exhaust(cx, GiveBackMode::Drop)
        })
        .needs(|_, c| Need::dead_letters(c)),
        scenario("attempts/limit-retry", "Retries: exactly max_deliveries are handled, then a dead letter.", |cx| {
            exhaust(cx, GiveBackMode::Retry)
        })
        .needs(|_, c| Need::dead_letters(c).and(Need::retry(c, Duration::from_secs(1)))),
        scenario("attempts/limit-mixed", "A retry, a release and a drop count alike towards max_deliveries.", |cx| {
            exhaust(cx, GiveBackMode::Mixed)
        })
        .needs(|_, c| Need::dead_letters(c)),
        scenario("attempts/limit-one", "With max_deliveries of 1 the first release is a dead letter.", limit_one)
            .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "attempts/limit-at-once",
            "A retry at the last attempt is a dead letter at once, not after its delay.",
            limit_at_once,
        )
        .needs(|_, c| Need::dead_letters(c).and(Need::retry(c, Duration::from_secs(60)))),
        scenario(
            "attempts/limit-close",
            "What closed consumers had in hand max_deliveries times is handed to no other; it is a dead letter.",
            limit_close,
        )
        .needs(|_, c| Need::dead_letters(c).and(Need::attempts_across_crash(c))),
        scenario(
            "attempts/limit-lock",
            "What ran out of its lock max_deliveries times is handed to nobody again; it is a dead letter.",
            limit_lock,
        )
        .needs(|_, c| Need::dead_letters(c).and(Need::locks(c))),
        scenario(
            "attempts/limit-prefetch",
            "With many in the buffer, none is handled more often than max_deliveries, and all become dead letters.",
            limit_prefetch,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "attempts/poison",
            "A poison message dies; its neighbours in the same batch are handled once, at attempt 1.",
            poison,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "attempts/limit-ordered",
            "On an ordered queue a poison message is handled max_deliveries times in place, then its key goes on.",
            limit_ordered,
        )
        .needs(|_, c| Need::dead_letters(c).and(Need::ordered(c))),
    ]
}

const EXCEEDED: &str = "max-deliveries-exceeded";

#[derive(Clone, Copy)]
enum GiveBackMode {
    Release,
    Drop,
    Retry,
    Mixed,
}

async fn give_back(cx: &Cx, delivery: Delivery, how: GiveBackMode) -> Outcome {
    let retries = cx.capabilities().max_retry_delay.is_some();
    match (how, delivery.attempt() % 3) {
        (GiveBackMode::Drop, _) | (GiveBackMode::Mixed, 0) => drop(delivery),
        (GiveBackMode::Retry, _) => delivery.retry_after(Duration::from_millis(200)).await?,
        (GiveBackMode::Mixed, 1) if retries => delivery.retry_after(Duration::from_millis(200)).await?,
        _ => delivery.release().await?,
    }
    Ok(())
}

/// Fails unless message `n` is the only dead letter, for too many deliveries, at one of these attempts.
async fn expect_exceeded(cx: &Cx, q: &Fixture, n: usize, attempts: std::ops::RangeInclusive<u32>) -> Outcome {
    let mut dead = q.subscribe_dead(5).await?;
    let letter = cx.recv(&mut dead).await.during("waiting for the dead letter")?;
    ensure_eq!(number(letter.envelope())?, n, "dead letter");
    let Some(info) = letter.dead_letter_info() else { fail!("nothing is told about the dead letter") };
    ensure_eq!(info.reason.as_deref(), Some(EXCEEDED), "reason");
    ensure_eq!(info.origin.as_deref(), Some(&*q.source.to_string()), "origin");
    ensure!(info.attempt.is_some_and(|a| attempts.contains(&a)), "attempt {:?}, not of {attempts:?}", info.attempt);
    letter.ack().await?;
    cx.expect_none(&mut dead).await?;
    Ok(dead.close().await?)
}

async fn exhaust(cx: Cx, how: GiveBackMode) -> Outcome {
    const N: u32 = 4;
    let q = cx.queue(QueueSpec::new().max_deliveries(N)).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(1).await?;
    for attempt in 1..=N {
        let delivery = cx.recv(&mut sub).await.during(format!("attempt {attempt} of {N}"))?;
        ensure_eq!(delivery.attempt(), attempt, "attempt");
        give_back(&cx, delivery, how).await?;
    }
    cx.expect_none(&mut sub).await?;
    expect_exceeded(&cx, &q, 1, N..=N).await?;
    cx.expect_none(&mut sub).await
}

async fn limit_one(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(1)).await?;
    let mut sub = q.subscribe(1).await?;
    for n in 0..3 {
        q.publish(message(n)).await?;
        let delivery = cx.recv(&mut sub).await?;
        ensure_eq!((number(delivery.envelope())?, delivery.attempt()), (n, 1), "message and attempt");
        match n {
            0 => delivery.release().await?,
            1 => drop(delivery),
            _ => drop(delivery.ack()),
        }
        expect_exceeded(&cx, &q, n, 1..=1).await?;
    }
    cx.expect_none(&mut sub).await
}

async fn limit_at_once(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(2)).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(1).await?;
    cx.recv(&mut sub).await?.release().await?;
    let mut dead = q.subscribe_dead(5).await?;
    let started = Instant::now();
    cx.recv(&mut sub).await?.retry_after(Duration::from_secs(60)).await?;
    let letter = cx.recv(&mut dead).await?;
    // On a real clock "at once" only means well before the delay.
    let most = if cx.time_is_free() { timing_slack(&cx) } else { Duration::from_secs(30) };
    ensure!(started.elapsed() <= most, "the dead letter came after {:?}", started.elapsed());
    letter.ack().await?;
    cx.expect_none(&mut sub).await
}

async fn limit_close(cx: Cx) -> Outcome {
    const N: u32 = 3;
    let q = cx.queue(QueueSpec::new().max_deliveries(N)).await?;
    q.publish(message(1)).await?;
    for attempt in 1..=N {
        let (mut sub, delivery) = q.one(&cx).await.during(format!("attempt {attempt} of {N}"))?;
        ensure_eq!(delivery.attempt(), attempt, "attempt");
        sub.close().await?;
        drop(delivery);
    }
    let mut sub = q.subscribe(1).await?;
    cx.expect_none(&mut sub).await?;
    expect_exceeded(&cx, &q, 1, N..=N + 1).await?;
    cx.expect_none(&mut sub).await
}

async fn limit_lock(cx: Cx) -> Outcome {
    const N: u32 = 2;
    let lock = short_lock(&cx);
    let q = cx.queue(QueueSpec::new().max_deliveries(N).lock(lock)).await?;
    q.publish(message(1)).await?;
    let mut sub = not_renewing(&q, 1).await?;
    for attempt in 1..=N {
        let delivery = cx.recv_within(&mut sub, lock + cx.patience()).await?;
        ensure_eq!(delivery.attempt(), attempt, "attempt");
        // A handler that hangs: with a prefetch of 1 the next delivery can only come once this one is given up.
        tokio::time::sleep(lock + Duration::from_millis(200)).await;
        ensure!(!delivery.is_held(), "still held after its lock: {delivery:?}");
    }
    cx.expect_none_for(&mut sub, lock).await?;
    expect_exceeded(&cx, &q, 1, N..=N + 1).await?;
    cx.expect_none(&mut sub).await
}

async fn limit_prefetch(cx: Cx) -> Outcome {
    const N: u32 = 3;
    const COUNT: usize = 40;
    let q = cx.queue(QueueSpec::new().max_deliveries(N)).await?;
    q.publish_all(messages(0..COUNT)).await?;
    let handled: Arc<Mutex<BTreeMap<usize, u32>>> = Arc::default();
    let (mut sub, counts) = (q.subscribe(15).await?, handled.clone());
    let consumer = tokio::spawn(async move {
        while let Some(Ok(delivery)) = sub.next().await {
            let n = number(delivery.envelope())?;
            *counts.lock().entry(n).or_default() += 1;
            if n % 2 == 0 {
                delivery.release().await?;
            }
        }
        Outcome::Ok(())
    });
    let mut dead = q.subscribe_dead(COUNT).await?;
    let mut died = numbers(&cx.drain(&mut dead, COUNT).await?)?;
    died.sort_unstable();
    ensure_eq!(died, (0..COUNT).collect::<Vec<_>>(), "dead letters");
    cx.expect_none(&mut dead).await?;
    consumer.abort();
    match consumer.await {
        Err(e) if e.is_cancelled() => {}
        ended => ended?.during("the consumer")?,
    }
    let handled = handled.lock().clone();
    ensure_eq!(handled.len(), COUNT, "messages handled at all");
    let most = handled.values().max().copied();
    ensure!(most <= Some(N), "one was handled {most:?} times, allowed {N}: {handled:?}");
    Ok(())
}

async fn poison(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(3)).await?;
    q.publish_all(messages(0..10)).await?;
    let mut sub = q.subscribe(10).await?;
    let mut others = Vec::new();
    let mut poisoned = 0;
    while others.len() < 9 || poisoned < 3 {
        let delivery = cx.recv(&mut sub).await.during(format!("{} others, poison {poisoned} times", others.len()))?;
        if number(delivery.envelope())? == 4 {
            poisoned += 1;
            drop(delivery);
        } else {
            ensure_eq!(delivery.attempt(), 1, "attempt of a neighbour: {:?}", delivery.envelope());
            others.push(delivery);
        }
    }
    expect_exceeded(&cx, &q, 4, 3..=3).await?;
    for delivery in others {
        delivery.ack().await.during("ack of a neighbour")?;
    }
    cx.expect_none(&mut sub).await?;
    let mut dead = q.subscribe_dead(5).await?;
    cx.expect_none(&mut dead).await
}

async fn limit_ordered(cx: Cx) -> Outcome {
    const N: u32 = 3;
    let q = cx.queue(QueueSpec::new().ordered(true).max_deliveries(N)).await?;
    q.publish_all(messages(0..3).into_iter().map(|m| m.key("k"))).await?;
    let mut sub = q.subscribe(5).await?;
    for attempt in 1..=N {
        let delivery = cx.recv(&mut sub).await.during(format!("attempt {attempt} of {N}"))?;
        ensure_eq!((number(delivery.envelope())?, delivery.attempt()), (0, attempt), "message and attempt");
        match attempt {
            1 => delivery.retry_after(Duration::from_millis(200)).await?,
            2 => drop(delivery),
            _ => delivery.release().await?,
        }
    }
    let rest = numbers(&cx.drain(&mut sub, 2).await?)?;
    ensure_eq!(rest, [1, 2], "what the key goes on with");
    expect_exceeded(&cx, &q, 0, N..=N).await?;
    cx.expect_none(&mut sub).await
}
