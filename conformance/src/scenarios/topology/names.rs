//! Physical names, prefixes, long names, and queues that the topology does not name.

use std::collections::BTreeSet;

use polybus_core::{Address, Envelope, QueueSpec, Source, SubscriptionSpec, TopicSpec, Topology};

use super::{created, declared, q, shop};
use crate::{Cx, During, Need, Outcome, Scenario, ensure_eq, message, number, numbers, scenario};

pub(super) fn all() -> Vec<Scenario> {
    let declare = |s: Scenario| s.needs(|_, c| Need::declare(c));
    let topics = |s: Scenario| s.needs(|_, c| Need::declare(c).and(Need::topics(c)));
    vec![
        declare(scenario(
            "topology/physical-name",
            "A physical name is used as it is, so that two logical names meet in one queue.",
            physical_name,
        )),
        topics(scenario("topology/prefixes", "The same names under two prefixes are two worlds.", prefixes)),
        topics(scenario("topology/longest-names", "Names of 63 characters work everywhere.", longest_names)),
        declare(scenario(
            "topology/unnamed-queue",
            "A queue that this bus' topology does not name, but another made, can be used.",
            unnamed_queue,
        )),
    ]
}

async fn physical_name(cx: Cx) -> Outcome {
    let name = format!("{}-legacy", cx.prefix());
    let (one, _) = declared(&cx, Topology::new().queue("one", QueueSpec::new().physical(&name))).await?;
    let (two, report) = declared(&cx, Topology::new().queue("two", QueueSpec::new().physical(&name))).await?;
    ensure_eq!(created(&report), BTreeSet::new(), "made under the second name");
    one.publish(Address::queue("one"), message(1)).await?;
    let mut sub = two.subscribe(Source::queue("two")).open().await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![1], "through the other name");
    Ok(())
}

async fn prefixes(cx: Cx) -> Outcome {
    let (one, _) = declared(&cx, shop(&cx)).await?;
    let other = format!("{}-other", cx.prefix());
    let two = cx.setup(shop(&cx)).options(|o| o.topology = o.topology.clone().prefix(other)).open().await?;
    one.publish(q(), message(1)).await?;
    two.publish(q(), message(2)).await?;
    one.publish(Address::topic("t"), message(1)).await?;
    two.publish(Address::topic("t"), message(2)).await?;
    for source in [Source::queue("q"), Source::subscription("t", "b")] {
        for (bus, n) in [(&one, 1), (&two, 2)] {
            let mut sub = bus.subscribe(source.clone()).open().await?;
            ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![n], "in {source} of prefix {n}");
            cx.expect_none(&mut sub).await?;
        }
    }
    Ok(())
}

async fn longest_names(cx: Cx) -> Outcome {
    let (queue, topic, sub) = ("q".repeat(63), "t".repeat(63), "s".repeat(63));
    // The names are equal in their first 62 characters, so that a broker which cuts names off would mix them up.
    let queue2 = format!("{}2", "q".repeat(62));
    let topology = Topology::new()
        .queue(&queue, QueueSpec::new())
        .queue(&queue2, QueueSpec::new())
        .topic(&topic, TopicSpec::new().subscription(&sub, SubscriptionSpec::new().types(["a.*"])));
    let (bus, report) = declared(&cx, topology).await?;
    ensure_eq!(report.created.len(), 4, "made: {:?}", report.created);
    bus.publish(Address::queue(queue.as_str()), message(1)).await?;
    bus.publish(Address::queue(queue2.as_str()), message(2)).await?;
    bus.publish(Address::topic(topic.as_str()), Envelope::new("a.b", "3")).await?;
    let sources = [Source::queue(queue), Source::queue(queue2), Source::subscription(topic, sub)];
    for (n, source) in (1..).zip(sources) {
        let mut sub = bus.subscribe(source.clone()).open().await?;
        let d = cx.recv(&mut sub).await?;
        ensure_eq!(number(d.envelope())?, n, "in {source}");
        if bus.capabilities().dead_letters {
            d.dead_letter("poison", "to see the dead letters' name").await?;
            let mut dead = bus.subscribe(source.dead_letters()).open().await?;
            ensure_eq!(numbers(&cx.drain(&mut dead, 1).await?)?, vec![n], "in the dead letters of {source}");
        } else {
            d.ack().await?;
        }
    }
    Ok(())
}

async fn unnamed_queue(cx: Cx) -> Outcome {
    let (owner, _) = declared(&cx, Topology::new().queue("q", QueueSpec::new())).await?;
    let stranger = cx.setup(Topology::new()).undeclared().open().await?;
    stranger.publish(q(), message(1)).await.during("publish to a queue that no topology names here")?;
    let mut sub = stranger.subscribe(Source::queue("q")).open().await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![1], "consumed by the stranger");
    owner.publish(q(), message(2)).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![2], "from the owner");
    Ok(())
}
