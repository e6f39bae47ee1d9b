//! Addresses that are missing, or are deleted while they are published to.

use polybus_core::{
    Address, Envelope, ErrorKind, QueueSpec, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology,
};
use tokio::time::timeout;

use super::is_ok;
use crate::{
    CountAccuracy, Cx, During, Fixture, Need, Outcome, Scenario, ensure_eq, expect_kind, fail, message, messages,
    number, scenario,
    scenarios::shared::{expect_same, publish_each, publish_until, stored_messages, take_rest, take_rest_with},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "publish/missing-queue",
            "A publish to a missing queue is NotFound, never retried and never silently lost; the bus goes on.",
            missing_queue,
        ),
        scenario("publish/missing-topic", "A publish to a missing topic is NotFound; the bus goes on.", missing_topic)
            .needs(|_, c| Need::topics(c)),
        scenario(
            "publish/missing-then-made",
            "An address that was missing can be published to once it is declared, by the same bus.",
            missing_then_made,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "publish/deleted-then-missing",
            "After its queue was deleted, a publish on a warm publisher is NotFound, not Ok.",
            deleted_queue,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "publish/deleted-topic",
            "After its topic was deleted, a publish on a warm publisher is NotFound, not Ok.",
            deleted_topic,
        )
        .needs(|_, c| Need::declare(c).and(Need::topics(c))),
        scenario(
            "publish/missing-topic-among-neighbours",
            "Publishes to a missing topic fail as NotFound; a hundred neighbours under way on other addresses do not.",
            missing_topic_among_neighbours,
        )
        .needs(|_, c| Need::topics(c)),
        scenario(
            "publish/missing-queue-interleaved",
            "Publishes to a missing queue among those to existing ones: every result is what was stored.",
            missing_queue_interleaved,
        ),
        scenario(
            "publish/deleted-under-way",
            "A queue deleted under many publishes makes each of them Ok or NotFound; others' go on.",
            deleted_under_way,
        )
        .needs(|_, c| Need::declare(c)),
    ]
}

async fn missing(cx: Cx, f: Fixture, nowhere: Address) -> Outcome {
    f.publish(message(0)).await?;
    for round in 0..3 {
        let e = expect_kind!(f.bus.publish(&nowhere, message(100)).await, ErrorKind::NotFound, "round {round}");
        ensure_eq!(e.retry(), RetrySafety::Never, "retry");
        ensure_eq!(e.context("address"), Some(&*nowhere.to_string()), "the error's address");
        let all = f.bus.publish_all(&nowhere, messages(100..110)).await;
        ensure_eq!(all.len(), 10, "results of a batch to nowhere");
        for result in all {
            expect_kind!(result, ErrorKind::NotFound);
        }
        f.publish(message(1 + round)).await.during("publish beside a missing address")?;
    }
    let mut sub = f.subscribe(10).await?;
    let mut got: Vec<usize> = crate::numbers(&cx.drain(&mut sub, 4).await?)?;
    got.sort_unstable();
    ensure_eq!(got, [0, 1, 2, 3], "what was published beside it");
    cx.expect_none(&mut sub).await
}

async fn missing_queue(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    missing(cx, q, Address::queue("nowhere")).await
}

async fn missing_topic(cx: Cx) -> Outcome {
    let t = cx.topic(TopicSpec::new().subscription("a", SubscriptionSpec::new())).await?;
    missing(cx, t, Address::topic("nowhere")).await
}

async fn missing_then_made(cx: Cx) -> Outcome {
    let (topology, topics) = queue_and_maybe_topic(&cx);
    let bus = cx.setup(topology.clone()).undeclared().open().await?;
    for to in [Address::queue("q"), Address::topic("t")].into_iter().take(1 + usize::from(topics)) {
        expect_kind!(bus.publish(&to, message(0)).await, ErrorKind::NotFound, "before it is declared");
    }
    cx.bus(topology).await?;
    let mut sources = vec![(Address::queue("q"), Source::queue("q"))];
    if topics {
        sources.push((Address::topic("t"), Source::subscription("t", "a")));
    }
    for (to, source) in sources {
        bus.publish(&to, message(1)).await.during("after it was declared")?;
        let mut sub = bus.subscribe(source).prefetch(5).open().await?;
        let got = cx.recv(&mut sub).await?;
        ensure_eq!(number(got.envelope())?, 1, "what arrived");
        got.ack().await?;
    }
    Ok(())
}

fn queue_and_maybe_topic(cx: &Cx) -> (Topology, bool) {
    let topology = Topology::new().queue("q", QueueSpec::new());
    if cx.capabilities().topics {
        (topology.topic("t", TopicSpec::new().subscription("a", SubscriptionSpec::new())), true)
    } else {
        (topology, false)
    }
}

async fn deleted(cx: Cx, f: Fixture, topology: Topology) -> Outcome {
    f.publish_all(messages(0..10)).await?;
    let other = cx.second_bus(&f.bus).await?;
    other.delete().await.during("delete by another bus")?;
    if cx.target().counts == CountAccuracy::Exact {
        expect_kind!(f.bus.publish(&f.address, message(10)).await, ErrorKind::NotFound, "a publish after the deletion");
    } else {
        // A broker of several nodes may know a deleted entity a moment longer.
        publish_until(&cx, &f, &message(10), Some(ErrorKind::NotFound)).await?;
    }
    for (i, result) in f.bus.publish_all(&f.address, messages(11..16)).await.into_iter().enumerate() {
        expect_kind!(result, ErrorKind::NotFound, "result {i} of a batch after the deletion");
    }
    cx.bus(topology).await.during("declare again")?;
    f.publish(message(20)).await.during("publish after it was declared again")?;
    let mut sub = f.subscribe(10).await?;
    let got = take_rest(&cx, &mut sub, 1).await?;
    ensure_eq!(crate::numbers(&got)?, [20], "what is there after it was declared again");
    Ok(())
}

async fn deleted_queue(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    deleted(cx, q, Topology::new().queue("q", QueueSpec::new())).await
}

async fn deleted_topic(cx: Cx) -> Outcome {
    let spec = TopicSpec::new().subscription("a", SubscriptionSpec::new());
    let t = cx.topic(spec.clone()).await?;
    deleted(cx, t, Topology::new().topic("t", spec)).await
}

async fn missing_topic_among_neighbours(cx: Cx) -> Outcome {
    let topology = Topology::new()
        .queue("q", QueueSpec::new())
        .topic("t", TopicSpec::new().subscription("a", SubscriptionSpec::new()));
    let bus = cx.bus(topology).await?;
    let (queue, topic, nowhere) = (Address::queue("q"), Address::topic("t"), Address::topic("nowhere"));
    let (mut on_queue, mut on_topic) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let sent = messages(0..120);
        let to = |i: usize| match i % 12 {
            5 | 9 => &nowhere,
            n if n % 2 == 0 => &queue,
            _ => &topic,
        };
        let results = publish_each(&bus, sent.iter().enumerate().map(|(i, m)| (to(i), m))).await?;
        for (i, result) in results.into_iter().enumerate() {
            let address = to(i);
            if address == &nowhere {
                expect_kind!(result, ErrorKind::NotFound, "round {round}, publish {i} to {address}");
            } else {
                is_ok(&result).during(format!("round {round}, publish {i} to {address}"))?;
                if address == &queue { &mut on_queue } else { &mut on_topic }.push(sent[i].clone());
            }
        }
    }
    for (source, sent) in [(Source::queue("q"), on_queue), (Source::subscription("t", "a"), on_topic)] {
        let what = format!("what was published to {source}");
        let mut sub = bus.subscribe(source).prefetch(200).open().await?;
        expect_same(&sent, &take_rest(&cx, &mut sub, sent.len()).await?, &what)?;
    }
    Ok(())
}

async fn missing_queue_interleaved(cx: Cx) -> Outcome {
    let topology = Topology::new().queue("a", QueueSpec::new()).queue("b", QueueSpec::new());
    let bus = cx.bus(topology).await?;
    let queues = ["a", "nowhere", "b"].map(Address::queue);
    let sent = messages(0..300);
    let to = |i: usize| &queues[i % 3];
    let mut results = Vec::new();
    // Three waves: the later ones use publishers that have seen a failure.
    for wave in 0..3 {
        let range = wave * 100..wave * 100 + 100;
        results.extend(publish_each(&bus, range.map(|i| (to(i), &sent[i]))).await?);
    }
    for (i, result) in results.iter().enumerate() {
        match result {
            Ok(_) if i % 3 != 1 => {}
            Err(e) if i % 3 == 1 && e.kind() == ErrorKind::NotFound => {}
            other => fail!("publish {i} to {}: {other:?}", to(i)),
        }
    }
    for (at, name) in [(0, "a"), (2, "b")] {
        let wanted: Vec<Envelope> = sent.iter().skip(at).step_by(3).cloned().collect();
        let mut sub = bus.subscribe(Source::queue(name)).prefetch(200).open().await?;
        expect_same(&wanted, &take_rest(&cx, &mut sub, wanted.len()).await?, &format!("what was Ok on queue {name}"))?;
    }
    Ok(())
}

async fn deleted_under_way(cx: Cx) -> Outcome {
    let doomed = cx.setup(Topology::new().queue("doomed", QueueSpec::new())).open().await?;
    let bus = cx.bus(Topology::new().queue("q", QueueSpec::new())).await?;
    let (good, bad) = (Address::queue("q"), Address::queue("doomed"));
    let (kept, lost) = (messages(0..300), messages(0..300));
    let both = kept.iter().map(|m| (&good, m)).zip(lost.iter().map(|m| (&bad, m))).flat_map(|(a, b)| [a, b]);
    let tasks: Vec<_> = both.map(|(to, m)| tokio::spawn(bus.publish(to, m))).collect();
    tokio::task::yield_now().await;
    doomed.delete().await.during("delete")?;
    let mut results = Vec::new();
    for task in tasks {
        results.push(timeout(cx.patience() * 2, task).await.map_err(|_| crate::Failure::new("a publish hangs"))??);
    }
    for (i, result) in results.iter().enumerate().filter(|(i, _)| i % 2 == 0) {
        is_ok(result).during(format!("publish {} to the queue that stays", i / 2))?;
    }
    let doomed: Vec<_> = results.into_iter().skip(1).step_by(2).collect();
    stored_messages(&lost, &doomed, ErrorKind::NotFound).during("on the deleted queue")?;
    let gone = Fixture { bus: bus.clone(), address: bad, source: Source::queue("doomed") };
    publish_until(&cx, &gone, &message(0), Some(ErrorKind::NotFound)).await?;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(200).open().await?;
    // RabbitMQ 4.0 may close the connection for it (541). What was not confirmed is then sent again, and may come
    // twice.
    let mut left = take_rest_with(&cx, &mut sub, &kept).await?;
    let mut ids = std::collections::HashSet::new();
    left.retain(|envelope| ids.insert(envelope.id.clone()));
    expect_same(&kept, &left, "on the queue that stays")
}
