//! What a driver does not declare is refused with `Unsupported` before any I/O.

use std::time::Duration;

use polybus_core::{
    Address, ErrorKind, Outgoing, QueueSpec, Result, SettleError, Source, SubscriptionSpec, TopicSpec, Topology,
};

use crate::{
    CallCounter, Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, masked, message,
    scenario,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario("negative/topics", "A topology with a topic is Unsupported; the driver is not touched.", topics)
            .needs(|_, c| Need::only_if(!c.topics)),
        scenario(
            "negative/topics-by-name",
            "To publish to a topic or consume a subscription that no topology names is Unsupported; the driver is not touched.",
            topics_by_name,
        )
        .needs(|_, c| Need::only_if(!c.topics)),
        scenario("negative/ordered-queue", "An ordered queue is Unsupported; the driver is not touched.", ordered_queue)
            .needs(|_, c| Need::only_if(c.ordered.is_none())),
        scenario("negative/ordered-topic", "An ordered topic is Unsupported; the driver is not touched.", ordered_topic)
            .needs(|_, c| Need::topics(c).and(Need::only_if(c.ordered.is_none()))),
        scenario(
            "negative/dead-letter",
            "A dead_letter is Unsupported without I/O and gives the delivery back.",
            dead_letter,
        )
        .needs(|_, c| Need::only_if(!c.dead_letters)),
        scenario(
            "negative/dead-letters-source",
            "To consume dead letters is Unsupported; the driver is not touched.",
            dead_letters_source,
        )
        .needs(|_, c| Need::only_if(!c.dead_letters)),
        scenario(
            "negative/release-without-dead-letters",
            "Without dead letters a message is released past max_deliveries, and lost to nobody.",
            release_without_dead_letters,
        )
        .needs(|_, c| Need::only_if(!c.dead_letters)),
        scenario("negative/redrive", "A redrive is Unsupported; the driver is not touched.", redrive)
            .needs(|_, c| Need::only_if(!c.redrive)),
        scenario(
            "negative/retry-after",
            "A retry_after is Unsupported without I/O, gives the delivery back, and a release goes through.",
            retry_after,
        )
        .needs(|_, c| Need::only_if(c.max_retry_delay.is_none())),
        scenario("negative/queue-delay", "A delayed publish to a queue is Unsupported without I/O.", queue_delay)
            .needs(|_, c| Need::only_if(c.max_queue_delay.is_none())),
        scenario("negative/topic-delay", "A delayed publish to a topic is Unsupported without I/O.", topic_delay)
            .needs(|_, c| Need::only_if(c.topics && c.max_topic_delay.is_none())),
        scenario("negative/extend", "An extend is Unsupported without I/O; the delivery can be settled after.", extend)
            .needs(|_, c| Need::only_if(!c.locks)),
        scenario("negative/stats", "Stats are Unsupported; the driver is not touched.", stats)
            .needs(|_, c| Need::only_if(!c.stats)),
        scenario("negative/purge", "A purge is Unsupported; the driver is not touched.", purge)
            .needs(|_, c| Need::only_if(!c.purge)),
        scenario(
            "negative/declare",
            "Over a driver that cannot declare, verify and delete are Unsupported; the driver is not touched.",
            declare,
        ),
    ]
}

fn one_queue() -> Topology {
    Topology::new().queue("q", QueueSpec::new())
}

/// A queue whose driver's calls are counted.
async fn counted(cx: &Cx, calls: &CallCounter) -> Outcome<Fixture> {
    Ok(Fixture::queue(cx.setup(one_queue()).counting(calls).open().await?))
}

/// Fails unless `Bus::new` refuses this topology.
async fn refused(cx: &Cx, topology: Topology) -> Outcome {
    let calls = CallCounter::new();
    let made = cx.setup(topology).counting(&calls).make().await?;
    expect_kind!(made, ErrorKind::Unsupported, "making the bus");
    ensure_eq!(calls.total(), 0, "calls that reached the driver");
    Ok(())
}

fn given_back(result: Result<(), SettleError>) -> Outcome<polybus_core::Delivery> {
    match result {
        Ok(()) => fail!("expected Unsupported, got Ok"),
        Err(e) if e.error().kind() != ErrorKind::Unsupported => fail!("expected Unsupported, got {e:?}"),
        Err(e) => match e.into_parts() {
            (_, Some(delivery)) => Ok(delivery),
            (e, None) => fail!("the delivery was not given back: {e:?}"),
        },
    }
}

async fn topics(cx: Cx) -> Outcome {
    refused(&cx, Topology::new().topic("t", TopicSpec::new())).await?;
    let subscribed = TopicSpec::new().subscription("s", SubscriptionSpec::new());
    refused(&cx, one_queue().topic("t", subscribed)).await
}

async fn topics_by_name(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let q = counted(&cx, &calls).await?;
    let before = calls.total();
    expect_kind!(q.bus.publish(Address::topic("t"), message(1)).await, ErrorKind::Unsupported);
    for result in q.bus.publish_all(Address::topic("t"), [message(1), message(2)]).await {
        expect_kind!(result, ErrorKind::Unsupported, "publish_all to a topic");
    }
    expect_kind!(q.bus.publisher(Address::topic("t")).await, ErrorKind::Unsupported);
    expect_kind!(q.bus.subscribe(Source::subscription("t", "s")).open().await, ErrorKind::Unsupported);
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    q.publish(message(3)).await.during("a publish that can be kept")
}

async fn ordered_queue(cx: Cx) -> Outcome {
    refused(&cx, Topology::new().queue("q", QueueSpec::new().ordered(true))).await
}

async fn ordered_topic(cx: Cx) -> Outcome {
    refused(&cx, Topology::new().topic("t", TopicSpec::new().ordered(true))).await
}

async fn dead_letter(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let q = counted(&cx, &calls).await?;
    q.publish(message(1)).await?;
    let (mut sub, delivery) = q.one(&cx).await?;
    let before = calls.total();
    let delivery = given_back(delivery.dead_letter("bad", "no use").await)?;
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    delivery.ack().await.during("ack of the delivery that was given back")?;
    cx.expect_none(&mut sub).await
}

async fn dead_letters_source(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let q = counted(&cx, &calls).await?;
    let before = calls.total();
    expect_kind!(q.bus.subscribe(q.source.dead_letters()).open().await, ErrorKind::Unsupported);
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    Ok(())
}

async fn release_without_dead_letters(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(2)).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(1).await?;
    for attempt in 1..=4 {
        let delivery = cx.recv(&mut sub).await.during(format!("delivery {attempt}"))?;
        delivery.release().await?;
    }
    cx.recv(&mut sub).await?.ack().await?;
    cx.expect_none(&mut sub).await
}

async fn redrive(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let q = counted(&cx, &calls).await?;
    let before = calls.total();
    expect_kind!(q.bus.redrive(&q.source, |_| true, 10).await, ErrorKind::Unsupported);
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    Ok(())
}

async fn retry_after(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let q = counted(&cx, &calls).await?;
    q.publish(message(1)).await?;
    let (mut sub, delivery) = q.one(&cx).await?;
    let before = calls.total();
    let delivery = given_back(delivery.retry_after(Duration::from_secs(1)).await)?;
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    delivery.release().await.during("release of the delivery that was given back")?;
    cx.recv(&mut sub).await?.ack().await?;
    Ok(())
}

async fn queue_delay(cx: Cx) -> Outcome {
    delay(&cx, one_queue(), &Address::queue("q")).await
}

async fn topic_delay(cx: Cx) -> Outcome {
    delay(&cx, Topology::new().topic("t", TopicSpec::new()), &Address::topic("t")).await
}

async fn delay(cx: &Cx, topology: Topology, to: &Address) -> Outcome {
    let calls = CallCounter::new();
    let bus = cx.setup(topology).counting(&calls).open().await?;
    let delayed = |n| Outgoing::from(message(n)).delay(Duration::from_millis(100));
    expect_kind!(bus.publish(to, delayed(1)).await, ErrorKind::Unsupported);
    let results = bus.publish_all(to, [delayed(2), message(3).into()]).await;
    ensure_eq!(results.len(), 2, "answers");
    ensure!(results[1].is_ok(), "the neighbour without a delay: {:?}", results[1]);
    let first = results.into_iter().next().unwrap_or_else(|| Ok(Default::default()));
    expect_kind!(first, ErrorKind::Unsupported, "the delayed one of two");
    ensure_eq!(calls.sent(), 1, "messages that reached the driver");
    Ok(())
}

async fn extend(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let q = counted(&cx, &calls).await?;
    q.publish(message(1)).await?;
    let (mut sub, mut delivery) = q.one(&cx).await?;
    expect_kind!(delivery.extend(Duration::from_secs(30)).await, ErrorKind::Unsupported);
    ensure_eq!(calls.extends(), 0, "calls that reached the driver");
    delivery.ack().await?;
    cx.expect_none(&mut sub).await
}

async fn stats(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let q = counted(&cx, &calls).await?;
    let before = calls.total();
    expect_kind!(q.bus.stats(&q.source).await, ErrorKind::Unsupported);
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    Ok(())
}

async fn purge(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let q = counted(&cx, &calls).await?;
    let before = calls.total();
    expect_kind!(q.bus.purge(&q.source).await, ErrorKind::Unsupported);
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    Ok(())
}

async fn declare(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let setup = cx.setup(one_queue()).counting(&calls).wrap(|driver| masked(driver, |c| c.declare = false));
    let bus = setup.make().await?.during("making the bus")?;
    expect_kind!(bus.verify().await, ErrorKind::Unsupported);
    expect_kind!(bus.delete().await, ErrorKind::Unsupported);
    ensure_eq!(calls.total(), 0, "calls that reached the driver");
    Ok(())
}
