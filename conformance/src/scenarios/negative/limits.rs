//! More than a declared limit is refused with `Unsupported` before any I/O.

use std::time::Duration;

use polybus_core::{
    Address, Bus, ErrorKind, Outgoing, QueueSpec, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology,
};

use crate::{
    CallCounter, Cx, During, Fixture, Need, Outcome, Scenario, ensure_eq, expect_kind, fail, message, numbers, scenario,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "negative/queue-delay-too-long",
            "A publish to a queue delayed more than the broker can do is Unsupported, and harms no neighbour.",
            queue_delay,
        )
        .needs(|_, c| Need::only_if(c.max_queue_delay.is_some_and(|most| most < Duration::MAX))),
        scenario(
            "negative/topic-delay-too-long",
            "A publish to a topic delayed more than the broker can do is Unsupported, and harms no neighbour.",
            topic_delay,
        )
        .needs(|_, c| Need::only_if(c.topics && c.max_topic_delay.is_some_and(|most| most < Duration::MAX))),
        scenario(
            "negative/lock-range",
            "A lock shorter or longer than the broker takes is Unsupported when the bus is made.",
            lock_range,
        )
        .needs(|_, c| Need::only_if(c.lock_range.is_some())),
        scenario(
            "negative/ordered-hold",
            "An ordered retry longer than max_hold is Unsupported, and gives the delivery back in its place.",
            ordered_hold,
        )
        .needs(|_, c| Need::ordered(c)),
    ]
}

fn more_than(most: Option<Duration>) -> Duration {
    most.unwrap_or_default() + Duration::from_millis(1)
}

/// Fails unless a delay of a millisecond more than possible is refused before any I/O, and its neighbour is published.
async fn refused_delay(bus: &Bus, calls: &CallCounter, to: &Address, most: Option<Duration>) -> Outcome {
    bus.publish(to, message(0)).await.during("publish without a delay")?;
    let before = calls.total();
    let late = || Outgoing::from(message(1)).delay(more_than(most));
    let e = expect_kind!(bus.publish(to, late()).await, ErrorKind::Unsupported);
    ensure_eq!(e.retry(), RetrySafety::Never, "whether to retry");
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    let results = bus.publish_all(to, [Outgoing::from(message(2)), late(), message(3).into()]).await;
    let kinds: Vec<_> = results.iter().map(|r| r.as_ref().err().map(polybus_core::Error::kind)).collect();
    ensure_eq!(kinds, vec![None, Some(ErrorKind::Unsupported), None], "the refused one among its neighbours");
    Ok(())
}

async fn queue_delay(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls).open().await?;
    refused_delay(&bus, &calls, &Address::queue("q"), cx.capabilities().max_queue_delay).await
}

async fn topic_delay(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let topology = Topology::new().topic("t", TopicSpec::new().subscription("s", SubscriptionSpec::new()));
    let bus = cx.setup(topology).counting(&calls).open().await?;
    refused_delay(&bus, &calls, &Address::topic("t"), cx.capabilities().max_topic_delay).await
}

async fn lock_range(cx: Cx) -> Outcome {
    let Some((least, most)) = cx.capabilities().lock_range else { return Ok(()) };
    // Core takes no lock under a second.
    let second = Duration::from_secs(1);
    let short = least.saturating_sub(Duration::from_millis(1));
    for lock in [short, more_than(Some(most))].into_iter().filter(|lock| *lock >= second) {
        let calls = CallCounter::new();
        let topology = Topology::new().queue("q", QueueSpec::new().lock(lock));
        expect_kind!(cx.setup(topology).counting(&calls).make().await?, ErrorKind::Unsupported, "a lock of {lock:?}");
        ensure_eq!(calls.total(), 0, "calls that reached the driver");
    }
    for lock in [least.max(second), most] {
        cx.setup(Topology::new().queue("q", QueueSpec::new().lock(lock))).make().await?.during("a lock in range")?;
    }
    Ok(())
}

async fn ordered_hold(cx: Cx) -> Outcome {
    let spec = QueueSpec::new().ordered(true).max_hold(Duration::from_secs(5));
    let calls = CallCounter::new();
    let bus = cx.setup(Topology::new().queue("q", spec)).counting(&calls).open().await?;
    let f = Fixture { bus, address: Address::queue("q"), source: Source::queue("q") };
    f.publish_all([1, 2].map(|n| message(n).key("a"))).await?;
    let mut sub = f.subscribe(5).await?;
    let d = cx.recv(&mut sub).await?;
    let before = calls.settles();
    let Err(failed) = d.retry_after(Duration::from_millis(5001)).await else { fail!("it is Ok") };
    let (e, back) = failed.into_parts();
    ensure_eq!(e.kind(), ErrorKind::Unsupported, "kind");
    ensure_eq!(calls.settles(), before, "settlements that reached the driver");
    let Some(back) = back else { fail!("the delivery is not given back") };
    back.release().await.during("release of what was given back")?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 2).await?)?, vec![1, 2], "the key");
    Ok(())
}
