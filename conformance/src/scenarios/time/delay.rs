//! Messages that are published with a delay.

use std::time::Duration;

use polybus_core::{Envelope, ErrorKind, QueueSpec, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology};
use tokio::time::Instant;

use super::{after, secs};
use crate::{
    CallCounter, ClockKind, Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, masked,
    message, numbers, scenario,
    scenarios::shared::{ExpectedDelay, expect_all, expect_equal},
};

pub(super) fn all() -> Vec<Scenario> {
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
                .and(Need::when(t.clock == ClockKind::Paused, "it would take most of an hour"))
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
    ]
}

/// The difference between two delays: a second, and more where the target's timers are coarse.
fn step(cx: &Cx) -> Duration {
    secs(1) + secs(cx.target().coarse.as_millis().div_ceil(1000) as u64)
}

/// A delay so long that on a real clock the message comes after the end of the scenario.
fn far(cx: &Cx) -> Duration {
    let most = cx.capabilities().max_queue_delay.unwrap_or_default();
    most.min(secs(if cx.time_is_free() { 60 } else { 600 }))
}

/// Publishes a message with this delay.
async fn delayed(f: &Fixture, message: Envelope, by: Duration) -> Outcome<ExpectedDelay> {
    ExpectedDelay::of(by, f.publish(after(message, by))).await
}

async fn delay(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(10).await?;
    let far = far(&cx);
    // A publish that waited for its own delay would take this long. A publish that is merely slow does not.
    if far >= secs(60) {
        let start = Instant::now();
        q.publish(after(message(60), far)).await?;
        ensure!(start.elapsed() < far / 2, "a publish after {far:?} took {:?}", start.elapsed());
    }
    let two = delayed(&q, message(2), 2 * step(&cx)).await?;
    let one = delayed(&q, message(1), Duration::from_millis(700)).await?;
    let zero = delayed(&q, message(0), Duration::ZERO).await?;
    expect_all(&cx, &mut sub, vec![(0, zero), (1, one), (2, two)]).await?;
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
    expect_all(&cx, &mut sub, due).await?;
    cx.expect_none(&mut sub).await
}

async fn long(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(10).await?;
    let two = delayed(&q, message(2), secs(3000)).await?;
    let one = delayed(&q, message(1), secs(600)).await?;
    expect_all(&cx, &mut sub, vec![(1, one), (2, two)]).await?;
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
    // Both are received at once: waiting for one after the other would make the messages of the second late.
    let (in_all, in_orders) = tokio::join!(expect_all(&cx, &mut all, due.clone()), expect_all(&cx, &mut orders, due));
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
    let asked = ExpectedDelay::of(Duration::ZERO, async {
        for result in q.bus.publish_all(&q.address, batch).await {
            result.during("a result of the batch")?;
        }
        Ok(())
    })
    .await?;
    let due = (0..3).map(|n| (n, asked.with(step * n as u32))).collect();
    expect_all(&cx, &mut sub, due).await?;
    cx.expect_none(&mut sub).await
}

async fn in_full(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent = message(1).source("suite").key("k").sequence(3).subject("s").header("tenant", "acme");
    q.publish(after(sent.clone(), secs(1))).await?;
    let (_sub, got) = q.one(&cx).await?;
    expect_equal(&sent, got.envelope())?;
    ensure_eq!(got.attempt(), 1, "attempt");
    got.ack().await?;
    Ok(())
}

async fn too_long(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
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
    // On a slow machine both may be due by now, and no order is promised.
    got.sort_unstable();
    ensure_eq!(got, [0, 2], "what came");
    cx.expect_none(&mut sub).await
}
