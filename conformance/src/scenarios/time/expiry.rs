//! Messages that expire.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{ErrorKind, Outgoing, QueueSpec, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology};
use tokio::time::{Instant, sleep, timeout};

use super::{after, secs};
use crate::{
    CallCounter, Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, number,
    numbers, scenario,
    scenarios::shared::{ExpectedDelay, expect_all, expect_equal, lifetime, take_rest, wait_past},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario("time/expired", "A message past its time is not handed out, and is gone.", expired),
        scenario("time/expires-later", "A message before its time is handed out, expires_at as it was sent.", later),
        scenario(
            "time/expired-in-the-buffer",
            "A prefetched message whose time passes before it is handed out is not handed out.",
            in_the_buffer,
        ),
        scenario("time/expired-on-a-topic", "Each subscription drops its own expired copy.", expired_on_a_topic)
            .needs(|_, c| Need::topics(c)),
        scenario(
            "time/dead-letter-expired",
            "With dead_letter_expired it becomes a dead letter as `expired`, readable though past its time.",
            dead_letter_expired,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario("time/never-seen", "An expires_at not after now and the delay is refused before any I/O.", never_seen),
        scenario("time/delay-and-expiry", "A delayed message that expires later comes in between.", delay_and_expiry)
            .needs(|_, c| Need::queue_delay(c, secs(1))),
        scenario(
            "time/expired-while-retrying",
            "A message whose time passes while it waits for a retry is not handed out again.",
            expired_while_retrying,
        )
        .needs(|_, c| Need::retry(c, secs(2))),
    ]
}

async fn expired(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.bus.publisher(&q.address).await.during("open the sender")?;
    let lives = lifetime(&cx, secs(1));
    q.publish(Outgoing::from(message(1)).expires_in(lives)).await?;
    q.publish(message(2).expires_at(q.bus.now() + lives)).await?;
    let last = q.bus.now() + lives;
    q.publish(message(3)).await?;
    q.publish(message(4).expires_at(q.bus.now() + secs(3600))).await?;
    wait_past(&q.bus, last).await;
    let mut sub = q.subscribe(1).await?;
    let mut got = numbers(&take_rest(&cx, &mut sub, 2).await?)?;
    got.sort_unstable();
    ensure_eq!(got, [3, 4], "what came after 1 and 2 expired");
    sub.close().await?;
    if cx.capabilities().dead_letters {
        let mut dead = q.subscribe_dead(5).await?;
        cx.expect_none(&mut dead).await.during("the dead letters, without dead_letter_expired")?;
    }
    // The expired messages are deleted, not merely withheld.
    if cx.capabilities().stats {
        let deadline = cx.deadline();
        loop {
            let stats = q.bus.stats(&q.source).await?;
            if [stats.ready, stats.in_flight].iter().all(|n| n.unwrap_or(0) == 0) {
                break;
            }
            ensure!(Instant::now() < deadline, "expired messages are still counted: {stats:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}

async fn later(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let lives = secs(300);
    let sent = message(1).source("suite").expires_at(q.bus.now() + lives);
    q.publish(&sent).await?;
    let before = q.bus.now();
    q.publish(Outgoing::from(message(2)).expires_in(lives)).await?;
    let between = before + lives..=q.bus.now() + lives;
    let mut sub = q.subscribe(1).await?;
    for _ in 0..2 {
        let got = cx.recv(&mut sub).await?;
        let expires_at = got.envelope().expires_at;
        match number(got.envelope())? {
            1 => ensure_eq!(expires_at, sent.expires_at, "expires_at"),
            _ => {
                let fits = expires_at.is_some_and(|at| between.contains(&at));
                ensure!(fits, "expires_in {lives:?} became {expires_at:?}");
            }
        }
        got.ack().await?;
    }
    Ok(())
}

async fn in_the_buffer(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish(message(0)).await?;
    for n in 1..6 {
        q.publish(Outgoing::from(message(n)).expires_in(secs(2))).await?;
    }
    q.publish(message(6)).await?;
    let mut sub = q.subscribe(10).await?;
    // Once the first is handed out, the others are in the buffer.
    let first = cx.recv(&mut sub).await?;
    ensure_eq!(number(first.envelope())?, 0, "what came first");
    sleep(Duration::from_millis(2500)).await;
    first.ack().await?;
    ensure_eq!(numbers(&take_rest(&cx, &mut sub, 1).await?)?, [6], "what came after the others expired");
    Ok(())
}

async fn expired_on_a_topic(cx: Cx) -> Outcome {
    let spec = TopicSpec::new().subscription("a", SubscriptionSpec::new()).subscription("b", SubscriptionSpec::new());
    let t = cx.topic(spec).await?;
    // One consumer asks in time, the other too late.
    let mut a = t.bus.subscribe(t.subscription("a")).open().await?;
    t.bus.publisher(&t.address).await.during("open the sender")?;
    let lives = lifetime(&cx, secs(2));
    t.publish(Outgoing::from(message(1)).expires_in(lives)).await?;
    let expires = t.bus.now() + lives;
    t.publish(message(2)).await?;
    let mut got = numbers(&cx.drain(&mut a, 2).await?)?;
    got.sort_unstable();
    ensure_eq!(got, [1, 2], "what came to a");
    wait_past(&t.bus, expires).await;
    let mut b = t.bus.subscribe(t.subscription("b")).open().await?;
    ensure_eq!(numbers(&take_rest(&cx, &mut b, 1).await?)?, [2], "what came to b");
    Ok(())
}

async fn dead_letter_expired(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().dead_letter_expired(true)).await?;
    q.bus.publisher(&q.address).await.during("open the sender")?;
    let expires = q.bus.now() + lifetime(&cx, secs(1));
    let sent = message(1).source("suite").header("tenant", "acme").expires_at(expires);
    q.publish(&sent).await?;
    q.publish(message(2)).await?;
    wait_past(&q.bus, expires).await;
    let mut sub = q.subscribe(5).await?;
    ensure_eq!(numbers(&take_rest(&cx, &mut sub, 1).await?)?, [2], "what came after 1 expired");
    let mut dead = q.subscribe_dead(5).await?;
    let got = cx.recv(&mut dead).await.during("the dead letter")?;
    expect_equal(&sent, got.envelope())?;
    ensure_eq!(got.dead_letter_info().and_then(|d| d.reason.as_deref()), Some("expired"), "reason");
    got.release().await.during("release of an expired dead letter")?;
    cx.recv(&mut dead).await.during("the dead letter again")?.ack().await?;
    cx.expect_none(&mut dead).await
}

async fn never_seen(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls).open().await?;
    let q = Fixture { bus, address: polybus_core::Address::queue("q"), source: Source::queue("q") };
    q.publish(message(1)).await?;
    let before = calls.total();
    let now = q.bus.now();
    let mut bad: Vec<(&str, Outgoing)> = vec![
        ("in the past", message(0).expires_at(now - secs(60)).into()),
        ("now", message(0).expires_at(now).into()),
        ("expires_in 0", Outgoing::from(message(0)).expires_in(Duration::ZERO)),
    ];
    if cx.capabilities().max_queue_delay.is_some_and(|most| most >= secs(10)) {
        bad.push(("before the delay ends", after(message(0).expires_at(now + secs(5)), secs(10))));
        bad.push(("as the delay ends", Outgoing::from(message(0)).expires_in(secs(10)).delay(secs(10))));
    }
    for (what, message) in bad {
        let e = expect_kind!(q.bus.publish(&q.address, message).await, ErrorKind::InvalidArgument, "{what}");
        ensure_eq!(e.retry(), RetrySafety::Never, "retry");
    }
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    let mut sub = q.subscribe(5).await?;
    ensure_eq!(numbers(&take_rest(&cx, &mut sub, 1).await?)?, [1], "what was stored");
    Ok(())
}

async fn delay_and_expiry(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(5).await?;
    let delay = ExpectedDelay::of(secs(1), q.publish(after(message(1), secs(1)).expires_in(secs(300)))).await?;
    expect_all(&cx, &mut sub, vec![(1, delay)]).await?;
    cx.expect_none(&mut sub).await
}

async fn expired_while_retrying(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(5).await?;
    let lives = secs(3);
    q.publish(Outgoing::from(message(1)).expires_in(lives)).await?;
    q.publish(message(2)).await?;
    // On a slow machine the first may have expired unseen, and the second may have come again meanwhile.
    let (mut seen, mut again) = (BTreeSet::new(), None);
    while seen.len() < 2 && again.is_none() {
        let next =
            if seen.contains(&2) { timeout(lives, cx.recv(&mut sub)).await } else { Ok(cx.recv(&mut sub).await) };
        let Ok(delivery) = next else { break };
        let delivery = delivery?;
        if seen.insert(number(delivery.envelope())?) {
            delivery.retry_after(secs(4)).await?;
        } else {
            again = Some(delivery);
        }
    }
    let again = match again {
        Some(again) => again,
        None => cx.recv(&mut sub).await?,
    };
    ensure_eq!((number(again.envelope())?, again.attempt()), (2, 2), "what came again, and its attempt");
    again.ack().await?;
    cx.expect_none_for(&mut sub, secs(1)).await
}
