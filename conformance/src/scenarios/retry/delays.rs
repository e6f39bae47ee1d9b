//! Retries and delays: each message comes in time and once, also if it expires meanwhile.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Address, Envelope, ErrorKind, Outgoing, QueueSpec, Source, Topology};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::SECOND;
use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure_eq, expect_kind, fail, message, messages, number, numbers,
    scenario,
    scenarios::shared::{ExpectedDelay, expect_all, full_envelope},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "retry/three-in-a-row",
            "Three retries through the same delay: each waits its time, counts, and leaves the message as it was.",
            three_in_a_row,
        )
        .needs(|_, c| Need::retry(c, SECOND)),
        scenario("retry/idle-delay", "A delay that nobody used for more than twice its time still works.", idle_delay)
            .needs(|_, c| Need::retry(c, SECOND)),
        scenario("retry/ladder", "The delays that the topology names are kept exactly, one after the other.", ladder)
            .needs(|_, c| Need::retry(c, SECOND)),
        scenario(
            "retry/jittered",
            "100 messages retried after 100 different delays: each comes once, not early, at most 10 % late.",
            jittered,
        )
        .needs(|_, c| Need::retry(c, Duration::from_secs(3))),
        scenario(
            "retry/many-at-once",
            "300 messages retried after the same delay come again once each, at attempt 2.",
            many_at_once,
        )
        .needs(|_, c| Need::retry(c, SECOND)),
        scenario(
            "retry/deleted-target",
            "40 delayed messages to a deleted queue do not stall those to a live one.",
            deleted_target,
        )
        .needs(|_, c| Need::queue_delay(c, SECOND).and(Need::declare(c))),
        scenario(
            "retry/shorter-expiry",
            "A publish whose expiry is not after its delay is InvalidArgument; one that expires after it arrives.",
            shorter_expiry,
        )
        .needs(|_, c| Need::queue_delay(c, SECOND)),
        scenario(
            "retry/expires-waiting",
            "A message that expires while it waits for its retry is never handled, and stalls no other.",
            expires_waiting,
        )
        .needs(|_, c| Need::retry(c, Duration::from_secs(2))),
        scenario(
            "retry/expires-into-dead-letters",
            "With dead_letter_expired, a message that expires while it waits for its retry is a dead letter.",
            expires_into_dead_letters,
        )
        .needs(|_, c| Need::retry(c, Duration::from_secs(2)).and(Need::dead_letters(c))),
    ]
}

async fn three_in_a_row(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent = full_envelope(&cx, &q);
    q.publish(&sent).await?;
    let mut sub = q.subscribe(1).await?;
    let mut delivery = cx.recv(&mut sub).await?;
    for retry in 1..=3 {
        let retried = ExpectedDelay::retry(delivery, SECOND).await?;
        delivery = cx.recv(&mut sub).await.during(format!("retry {retry}"))?;
        retried.check(&cx).during(format!("retry {retry}"))?;
        ensure_eq!(delivery.envelope(), &sent, "message after retry {retry}");
        ensure_eq!(delivery.attempt(), 1 + retry, "attempt after retry {retry}");
    }
    delivery.ack().await?;
    cx.expect_none(&mut sub).await
}

async fn idle_delay(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(20)).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(2).await?;
    for round in 0..2 {
        let retried = ExpectedDelay::retry(cx.recv(&mut sub).await?, SECOND).await?;
        let delivery = cx.recv(&mut sub).await.during(format!("round {round}"))?;
        retried.check(&cx)?;
        delivery.release().await?;
        if round == 0 {
            sleep(SECOND * 5 / 2).await;
        }
    }
    // Nothing is consumed for more than twice the delay.
    cx.recv(&mut sub).await?.retry_after(SECOND).await?;
    sub.close().await?;
    sleep(SECOND * 5 / 2).await;
    let mut sub = q.subscribe(2).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await.during("after the idle time")?)?, [1], "what came");
    cx.expect_none(&mut sub).await
}

async fn ladder(cx: Cx) -> Outcome {
    let delays = [300, 650, 1000].map(Duration::from_millis);
    let q = cx.queue(QueueSpec::new().retry(delays).max_deliveries(20)).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(1).await?;
    for by in delays {
        let retried = ExpectedDelay::retry(cx.recv(&mut sub).await?, by).await?;
        let delivery = cx.recv(&mut sub).await.during(format!("retry after {by:?}"))?;
        retried.check(&cx)?;
        delivery.release().await?;
        if by == delays[0] {
            // A release in between does not change the next delay.
            cx.recv(&mut sub).await?.release().await?;
        }
    }
    cx.drain(&mut sub, 1).await?;
    cx.expect_none(&mut sub).await
}

async fn jittered(cx: Cx) -> Outcome {
    const N: usize = 100;
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..N)).await?;
    let mut sub = q.subscribe(N).await?;
    let mut retries = JoinSet::new();
    for delivery in cx.collect(&mut sub, N).await? {
        let n = number(delivery.envelope())?;
        // Each delay is different, from 1 s to 3 s.
        let by = SECOND + Duration::from_millis((n as u64 * 7919) % 2000);
        retries.spawn(async move { Outcome::Ok((n, ExpectedDelay::retry(delivery, by).await?)) });
    }
    let mut delays = BTreeMap::new();
    while let Some(retried) = retries.join_next().await {
        let (n, delay) = retried??;
        delays.insert(n, delay);
    }
    // Acks run side by side: a slow answer to one would make the next message late.
    let mut acks = JoinSet::new();
    while !delays.is_empty() {
        let delivery = cx.recv(&mut sub).await.during(format!("{} are left", delays.len()))?;
        let n = number(delivery.envelope())?;
        let Some(delay) = delays.remove(&n) else { fail!("message {n} came twice") };
        delay.check(&cx).during(format!("message {n}"))?;
        ensure_eq!(delivery.attempt(), 2, "attempt of message {n}");
        acks.spawn(delivery.ack());
    }
    while let Some(acked) = acks.join_next().await {
        acked??;
    }
    cx.expect_none(&mut sub).await
}

async fn many_at_once(cx: Cx) -> Outcome {
    const N: usize = 300;
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..N)).await?;
    let mut sub = q.subscribe(N).await?;
    let mut retries = JoinSet::new();
    for delivery in cx.collect(&mut sub, N).await? {
        retries.spawn(delivery.retry_after(SECOND));
    }
    while let Some(retried) = retries.join_next().await {
        retried?.during("retry")?;
    }
    let mut again = Vec::new();
    for delivery in cx.collect(&mut sub, N).await? {
        ensure_eq!(delivery.attempt(), 2, "attempt of {:?}", delivery.envelope());
        again.push(number(delivery.envelope())?);
        delivery.ack().await?;
    }
    again.sort_unstable();
    ensure_eq!(again, (0..N).collect::<Vec<_>>(), "what came again");
    cx.expect_none(&mut sub).await
}

async fn deleted_target(cx: Cx) -> Outcome {
    let gone = Topology::new().queue("gone", QueueSpec::new());
    let doomed = cx.bus(gone).await?;
    let q = cx.queue(QueueSpec::new()).await?;
    let to_gone = (0..40).map(|n| Outgoing::from(message(n)).delay(SECOND));
    for result in doomed.publish_all(Address::queue("gone"), to_gone).await {
        result.during("delayed publish to the queue that will be deleted")?;
    }
    doomed.delete().await.during("delete")?;
    let mut sub = q.subscribe(5).await?;
    let delay = ExpectedDelay::of(SECOND, async {
        for result in q.bus.publish_all(&q.address, (0..5).map(|n| Outgoing::from(message(n)).delay(SECOND))).await {
            result.during("delayed publish to the live queue")?;
        }
        Ok(())
    })
    .await?;
    let live = (0..5).map(|n| (n, delay)).collect();
    expect_all(&cx, &mut sub, live).await.during("what was delayed to the live queue")?;
    // A publish after the deletion is NotFound, and makes no new queue.
    let late = doomed.publish(Address::queue("gone"), Outgoing::from(message(1)).delay(SECOND)).await;
    expect_kind!(late, ErrorKind::NotFound, "delayed publish to a deleted queue");
    match doomed.subscribe(Source::queue("gone")).open().await {
        Ok(mut sub) => cx.expect_end(&mut sub, ErrorKind::NotFound).await,
        opened => {
            expect_kind!(opened.map(drop), ErrorKind::NotFound, "subscribe to a deleted queue");
            Ok(())
        }
    }
}

async fn shorter_expiry(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let now = q.bus.now();
    for (what, refused) in [
        ("sooner", Outgoing::from(message(1).expires_at(now + SECOND / 2)).delay(SECOND)),
        ("as a span", Outgoing::from(message(1)).expires_in(SECOND / 2).delay(SECOND)),
        ("at the same time", Outgoing::from(message(1)).expires_in(SECOND).delay(SECOND)),
        ("in the past", Outgoing::from(message(1).expires_at(now - SECOND))),
    ] {
        expect_kind!(q.bus.publish(&q.address, refused).await, ErrorKind::InvalidArgument, "expiry {what}");
    }
    let sent = message(2).source("suite").expires_at(q.bus.now() + Duration::from_secs(300));
    let mut sub = q.subscribe(5).await?;
    let delayed = ExpectedDelay::of(SECOND, q.publish(Outgoing::from(&sent).delay(SECOND))).await?;
    let delivery = cx.recv(&mut sub).await?;
    delayed.check(&cx)?;
    ensure_eq!(delivery.envelope(), &sent, "what came");
    delivery.ack().await?;
    cx.expect_none(&mut sub).await
}

/// Retries a message for longer than it lives, and another one for as long, which must come in time. Returns the
/// former.
async fn expire_waiting(cx: &Cx, q: &Fixture) -> Outcome<Envelope> {
    // Both must be in hand before the first expires, and the delay must be one that the broker can keep.
    let most = cx.capabilities().max_retry_delay.unwrap_or_default();
    let by = if cx.time_is_free() { SECOND * 2 } else { cx.lateness(SECOND * 8).min(most) };
    let mut sub = q.subscribe(5).await?;
    q.bus.publisher(&q.address).await.during("open the sender")?;
    let expiring = message(1).source("suite").expires_at(q.bus.now() + by.mul_f64(0.75));
    q.publish_all([expiring.clone(), message(2)]).await?;
    let mut other = None;
    for delivery in cx.collect(&mut sub, 2).await? {
        let n = number(delivery.envelope())?;
        let retried = ExpectedDelay::retry(delivery, by).await?;
        if n == 2 {
            other = Some(retried);
        }
    }
    let delivery = cx.recv_within(&mut sub, by + cx.patience()).await?;
    if let Some(other) = other {
        other.check(cx)?;
    }
    ensure_eq!(number(delivery.envelope())?, 2, "which came");
    delivery.ack().await?;
    cx.expect_none(&mut sub).await?;
    sub.close().await?;
    Ok(expiring)
}

async fn expires_waiting(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    expire_waiting(&cx, &q).await?;
    if cx.capabilities().dead_letters {
        let mut dead = q.subscribe_dead(1).await?;
        cx.expect_none(&mut dead).await?;
    }
    Ok(())
}

async fn expires_into_dead_letters(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().dead_letter_expired(true)).await?;
    let expiring = expire_waiting(&cx, &q).await?;
    let mut dead = q.subscribe_dead(1).await?;
    let Ok(Some(Ok(letter))) = timeout(cx.patience(), dead.next()).await else { fail!("no dead letter came") };
    ensure_eq!(letter.envelope(), &expiring, "dead letter");
    let reason = letter.dead_letter_info().and_then(|d| d.reason.as_deref());
    ensure_eq!(reason, Some("expired"), "reason");
    Ok(letter.ack().await?)
}
