//! Publish delay and expiry.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{
    Envelope, ErrorKind, Outgoing, QueueSpec, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    delays::{Delay, all_come},
    tools::{lifetime, past, rest},
};
use crate::{
    Calls, Clocks, Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, masked, message,
    number, numbers, scenario,
};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "time/delay",
            "A delayed message comes after its delay and not before; others are not held up.",
            delay,
        )
        .needs(|_, c| Need::queue_delay(c, secs(2))),
        scenario("time/delay-each-its-own", "A short delay is not held up behind a long one.", each_its_own)
            .needs(|_, c| Need::queue_delay(c, secs(60))),
        scenario("time/delay-long", "A delay of most of an hour is kept.", long).needs(|t, c| {
            Need::queue_delay(c, secs(3000))
                .and(Need::when(t.clock == Clocks::Movable, "it would take most of an hour"))
        }),
        scenario("time/delay-on-a-topic", "A delayed message comes late to every subscription it matches.", on_a_topic)
            .needs(|_, c| Need::topic_delay(c, secs(1))),
        scenario("time/delay-batch", "In a batch each message has its own delay.", in_a_batch)
            .needs(|_, c| Need::queue_delay(c, secs(2))),
        scenario("time/delay-in-full", "A delayed message arrives as it was sent, at attempt 1.", in_full)
            .needs(|_, c| Need::queue_delay(c, secs(1))),
        scenario(
            "time/delay-too-long",
            "A delay of more than the driver declares is Unsupported before any I/O; the longest is taken.",
            too_long,
        )
        .needs(|_, c| Need::queue_delay(c, secs(1))),
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

fn after(message: Envelope, delay: Duration) -> Outgoing {
    Outgoing::from(message).delay(delay)
}

/// A second, and more where the target's timers are so late that two delays could end together.
fn step(cx: &Cx) -> Duration {
    secs(1) + secs(cx.target().coarse.as_millis().div_ceil(1000) as u64)
}

/// So late that on a real clock it comes after the scenario's end.
fn far(cx: &Cx) -> Duration {
    let most = cx.capabilities().max_queue_delay.unwrap_or_default();
    most.min(secs(if cx.time_is_free() { 60 } else { 600 }))
}

/// Publishes it after this delay.
async fn delayed(f: &Fixture, message: Envelope, by: Duration) -> Outcome<Delay> {
    Delay::of(by, f.publish(after(message, by))).await
}

async fn delay(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(10).await?;
    let far = far(&cx);
    // A slow publish is told from one that waits for its own delay by a long one.
    if far >= secs(60) {
        let start = Instant::now();
        q.publish(after(message(60), far)).await?;
        ensure!(start.elapsed() < far / 2, "a publish after {far:?} took {:?}", start.elapsed());
    }
    let two = delayed(&q, message(2), 2 * step(&cx)).await?;
    let one = delayed(&q, message(1), Duration::from_millis(700)).await?;
    let zero = delayed(&q, message(0), Duration::ZERO).await?;
    all_come(&cx, &mut sub, vec![(0, zero), (1, one), (2, two)]).await?;
    cx.expect_none(&mut sub).await
}

async fn each_its_own(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(10).await?;
    let mut late = Vec::new();
    for n in 60..65 {
        late.push((n, delayed(&q, message(n), far(&cx)).await?));
    }
    let step = step(&cx);
    let two = delayed(&q, message(2), 2 * step).await?;
    let one = delayed(&q, message(1), step).await?;
    let mut due = vec![(1, one), (2, two)];
    if cx.time_is_free() {
        due.extend(late);
    }
    all_come(&cx, &mut sub, due).await?;
    cx.expect_none(&mut sub).await
}

async fn long(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(10).await?;
    let two = delayed(&q, message(2), secs(3000)).await?;
    let one = delayed(&q, message(1), secs(600)).await?;
    all_come(&cx, &mut sub, vec![(1, one), (2, two)]).await?;
    cx.expect_none(&mut sub).await
}

async fn on_a_topic(cx: Cx) -> Outcome {
    let spec = TopicSpec::new()
        .subscription("all", SubscriptionSpec::new())
        .subscription("orders", SubscriptionSpec::new().types(["order.*"]))
        .subscription("users", SubscriptionSpec::new().types(["user.*"]));
    let t = cx.topic(spec).await?;
    let subscribe = |name: &str| t.bus.subscribe(t.subscription(name)).open();
    let (mut all, mut orders, mut users) =
        (subscribe("all").await?, subscribe("orders").await?, subscribe("users").await?);
    let order = |n: &'static str| Envelope::new("order.placed", n);
    let one = delayed(&t, order("1"), secs(1)).await?;
    let two = delayed(&t, order("2"), secs(1)).await?;
    let zero = delayed(&t, order("0"), Duration::ZERO).await?;
    let due = vec![(0, zero), (1, one), (2, two)];
    // Both at once: the one's messages are not late for having been waited for after the other's.
    let (in_all, in_orders) = tokio::join!(all_come(&cx, &mut all, due.clone()), all_come(&cx, &mut orders, due));
    in_all.during("all")?;
    in_orders.during("orders")?;
    for (name, sub) in [("all", &mut all), ("orders", &mut orders), ("users", &mut users)] {
        cx.expect_none(sub).await.during(name)?;
    }
    Ok(())
}

async fn in_a_batch(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(10).await?;
    let step = step(&cx);
    let delays = [(2, 2 * step), (0, Duration::ZERO), (1, step)];
    let batch = delays.map(|(n, by)| after(message(n), by));
    let asked = Delay::of(Duration::ZERO, async {
        for result in q.bus.publish_all(&q.address, batch).await {
            result.during("a result of the batch")?;
        }
        Ok(())
    })
    .await?;
    let due = (0..3).map(|n| (n, asked.with(step * n as u32))).collect();
    all_come(&cx, &mut sub, due).await?;
    cx.expect_none(&mut sub).await
}

async fn in_full(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent = message(1).source("suite").key("k").sequence(3).subject("s").header("tenant", "acme");
    q.publish(after(sent.clone(), secs(1))).await?;
    let (_sub, got) = q.one(&cx).await?;
    super::tools::difference(&sent, got.envelope())?;
    ensure_eq!(got.attempt(), 1, "attempt");
    got.ack().await?;
    Ok(())
}

async fn too_long(cx: Cx) -> Outcome {
    let calls = Calls::new();
    let setup = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls);
    let bus = setup.wrap(|driver| masked(driver, |c| c.max_queue_delay = Some(secs(1)))).open().await?;
    let q = Fixture { bus, address: polybus_core::Address::queue("q"), source: Source::queue("q") };
    q.publish(message(0)).await?;
    let before = calls.total();
    for delay in [Duration::from_millis(1001), secs(60), Duration::MAX] {
        let result = q.bus.publish(&q.address, after(message(9), delay)).await;
        let e = expect_kind!(result, ErrorKind::Unsupported, "a delay of {delay:?}");
        ensure_eq!(e.retry(), RetrySafety::Never, "retry");
    }
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    q.publish(after(message(2), secs(1))).await.during("the longest delay")?;
    let mut sub = q.subscribe(5).await?;
    let mut got = numbers(&cx.drain(&mut sub, 2).await?)?;
    // On a slow machine both are there by now, and no order is promised.
    got.sort_unstable();
    ensure_eq!(got, [0, 2], "what came");
    cx.expect_none(&mut sub).await
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
    past(&q.bus, last).await;
    let mut sub = q.subscribe(1).await?;
    let mut got = numbers(&rest(&cx, &mut sub, 2).await?)?;
    got.sort_unstable();
    ensure_eq!(got, [3, 4], "what came after 1 and 2 expired");
    sub.close().await?;
    if cx.capabilities().dead_letters {
        let mut dead = q.subscribe_dead(5).await?;
        cx.expect_none(&mut dead).await.during("the dead letters, without dead_letter_expired")?;
    }
    // They are gone, not hidden.
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
    // The first hand-over lets the others into the buffer.
    let first = cx.recv(&mut sub).await?;
    ensure_eq!(number(first.envelope())?, 0, "what came first");
    sleep(Duration::from_millis(2500)).await;
    first.ack().await?;
    ensure_eq!(numbers(&rest(&cx, &mut sub, 1).await?)?, [6], "what came after the others expired");
    Ok(())
}

async fn expired_on_a_topic(cx: Cx) -> Outcome {
    let spec = TopicSpec::new().subscription("a", SubscriptionSpec::new()).subscription("b", SubscriptionSpec::new());
    let t = cx.topic(spec).await?;
    // One consumer is in time, the other is not.
    let mut a = t.bus.subscribe(t.subscription("a")).open().await?;
    t.bus.publisher(&t.address).await.during("open the sender")?;
    let lives = lifetime(&cx, secs(2));
    t.publish(Outgoing::from(message(1)).expires_in(lives)).await?;
    let expires = t.bus.now() + lives;
    t.publish(message(2)).await?;
    let mut got = numbers(&cx.drain(&mut a, 2).await?)?;
    got.sort_unstable();
    ensure_eq!(got, [1, 2], "what came to a");
    past(&t.bus, expires).await;
    let mut b = t.bus.subscribe(t.subscription("b")).open().await?;
    ensure_eq!(numbers(&rest(&cx, &mut b, 1).await?)?, [2], "what came to b");
    Ok(())
}

async fn dead_letter_expired(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().dead_letter_expired(true)).await?;
    q.bus.publisher(&q.address).await.during("open the sender")?;
    let expires = q.bus.now() + lifetime(&cx, secs(1));
    let sent = message(1).source("suite").header("tenant", "acme").expires_at(expires);
    q.publish(&sent).await?;
    q.publish(message(2)).await?;
    past(&q.bus, expires).await;
    let mut sub = q.subscribe(5).await?;
    ensure_eq!(numbers(&rest(&cx, &mut sub, 1).await?)?, [2], "what came after 1 expired");
    let mut dead = q.subscribe_dead(5).await?;
    let got = cx.recv(&mut dead).await.during("the dead letter")?;
    super::tools::difference(&sent, got.envelope())?;
    ensure_eq!(got.dead_letter_info().and_then(|d| d.reason.as_deref()), Some("expired"), "reason");
    got.release().await.during("release of an expired dead letter")?;
    cx.recv(&mut dead).await.during("the dead letter again")?.ack().await?;
    cx.expect_none(&mut dead).await
}

async fn never_seen(cx: Cx) -> Outcome {
    let calls = Calls::new();
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
    ensure_eq!(numbers(&rest(&cx, &mut sub, 1).await?)?, [1], "what was stored");
    Ok(())
}

async fn delay_and_expiry(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(5).await?;
    let delay = Delay::of(secs(1), q.publish(after(message(1), secs(1)).expires_in(secs(300)))).await?;
    all_come(&cx, &mut sub, vec![(1, delay)]).await?;
    cx.expect_none(&mut sub).await
}

async fn expired_while_retrying(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(5).await?;
    let lives = secs(3);
    q.publish(Outgoing::from(message(1)).expires_in(lives)).await?;
    q.publish(message(2)).await?;
    // Where the machine is slow, the first one may have expired unseen, and the second come again meanwhile.
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
