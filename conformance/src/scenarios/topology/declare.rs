//! Declaring, verifying and deleting entities, also ones whose settings have changed.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{
    Address, Bus, Envelope, ErrorKind, QueueSpec, Source, SubscriptionSpec, TopicSpec, Topology,
    topology::DeclareReport,
};

use super::{created, declared, q, shop};
use crate::{
    Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, messages, number, numbers, scenario,
    scenarios::shared::take_rest,
};

pub(super) fn all() -> Vec<Scenario> {
    let declare = |s: Scenario| s.needs(|_, c| Need::declare(c));
    let topics = |s: Scenario| s.needs(|_, c| Need::declare(c).and(Need::topics(c)));
    vec![
        declare(scenario("topology/declare", "Declare makes what is missing and names each in its report.", first)),
        declare(scenario(
            "topology/declare-twice",
            "A second declare makes nothing, finds nothing, and leaves the messages.",
            twice,
        )),
        topics(scenario(
            "topology/declare-adds",
            "Declare adds queues, subscriptions and types to what is there.",
            adds,
        )),
        scenario(
            "topology/changed-max-deliveries",
            "A changed max_deliveries is no conflict: the new one holds, messages and all.",
            changed_max_deliveries,
        )
        .needs(|_, c| Need::declare(c).and(Need::dead_letters(c))),
        declare(scenario(
            "topology/changed-lock-and-retry",
            "A changed lock and retry ladder are no conflict.",
            changed_lock_and_retry,
        )),
        scenario(
            "topology/changed-ordered",
            "A queue wanted ordered that is not is reported, and left as it is with its messages.",
            changed_ordered,
        )
        .needs(|_, c| Need::declare(c).and(Need::ordered(c))),
        declare(scenario("topology/verify-clean", "Verify right after declare finds nothing.", verify_clean)),
        declare(scenario(
            "topology/verify-missing",
            "Verify names what is missing, and makes nothing.",
            verify_missing,
        )),
        topics(scenario(
            "topology/verify-drift",
            "Verify finds what was added to the topology since, and adds nothing.",
            verify_drift,
        )),
        declare(scenario("topology/off", "With declare off nothing is made and nothing reported.", off)),
        topics(scenario(
            "topology/removed-type",
            "A type that was removed from a subscription is dead-lettered, or handed out without dead letters; the rest is handled.",
            removed_type,
        )),
        topics(scenario(
            "topology/eight-processes",
            "Eight connections declare the same at once: all succeed, and it works.",
            eight_processes,
        )),
        declare(scenario("topology/delete", "Delete removes all with its messages; a second delete is fine.", delete)),
    ]
}

fn shop_names(cx: &Cx) -> BTreeSet<&'static str> {
    let all = ["queue:q", "topic:t", "subscription:t/a", "subscription:t/b"];
    all.into_iter().take(if cx.capabilities().topics { 4 } else { 1 }).collect()
}

async fn first(cx: Cx) -> Outcome {
    let (bus, report) = declared(&cx, shop(&cx)).await?;
    ensure_eq!(created(&report), shop_names(&cx), "what was created");
    ensure_eq!(report.created.len(), shop_names(&cx).len(), "each is named once: {:?}", report.created);
    ensure!(report.differences.is_empty(), "differences of what was just made: {:?}", report.differences);
    bus.publish(q(), message(1)).await.during("publish to the new queue")?;
    if cx.capabilities().topics {
        bus.publish(Address::topic("t"), message(1)).await.during("publish to the new topic")?;
        let mut sub = bus.subscribe(Source::subscription("t", "b")).open().await?;
        ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![1], "what came to the new subscription");
    }
    Ok(())
}

async fn twice(cx: Cx) -> Outcome {
    let (bus, _) = declared(&cx, shop(&cx)).await?;
    bus.publish(q(), message(7)).await?;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(1).open().await?;
    let held = cx.recv(&mut sub).await?;
    for who in [&bus, &declared(&cx, shop(&cx)).await?.0] {
        let again = who.declare().await.during("declare again")?;
        ensure_eq!(created(&again), BTreeSet::new(), "made by a later declare");
        ensure!(again.differences.is_empty(), "differences: {:?}", again.differences);
    }
    bus.publish(q(), message(8)).await?;
    held.ack().await.during("ack of what was held meanwhile")?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![8], "after the declares");
    cx.expect_none(&mut sub).await
}

async fn adds(cx: Cx) -> Outcome {
    let spec = |types: &[&'static str]| SubscriptionSpec::new().types(types.iter().copied());
    let (_, before) = declared(
        &cx,
        Topology::new().queue("q", QueueSpec::new()).topic("t", TopicSpec::new().subscription("a", spec(&["a"]))),
    )
    .await?;
    ensure_eq!(created(&before).len(), 3, "made at first");
    let more = TopicSpec::new().subscription("a", spec(&["a", "b.*"])).subscription("c", spec(&[]));
    let wider = Topology::new().queue("q", QueueSpec::new()).queue("q2", QueueSpec::new()).topic("t", more);
    let (bus, report) = declared(&cx, wider).await?;
    ensure_eq!(created(&report), BTreeSet::from(["queue:q2", "subscription:t/c"]), "made by the second declare");
    ensure!(report.differences.is_empty(), "a type is added, not a difference: {:?}", report.differences);
    for event_type in ["a", "b.x", "b.y.z", "c"] {
        bus.publish(Address::topic("t"), Envelope::new(event_type, "1")).await?;
    }
    let types = |all: Vec<Envelope>| all.iter().map(|e| e.event_type.to_string()).collect::<BTreeSet<_>>();
    let wanted = |all: &[&str]| all.iter().map(|t| (*t).to_owned()).collect::<BTreeSet<_>>();
    let mut a = bus.subscribe(Source::subscription("t", "a")).open().await?;
    let mut c = bus.subscribe(Source::subscription("t", "c")).open().await?;
    ensure_eq!(types(cx.drain(&mut a, 3).await?), wanted(&["a", "b.x", "b.y.z"]), "with a type added");
    ensure_eq!(types(cx.drain(&mut c, 4).await?), wanted(&["a", "b.x", "b.y.z", "c"]), "the new subscription");
    cx.expect_none(&mut a).await
}

async fn changed_max_deliveries(cx: Cx) -> Outcome {
    for (old, new) in [(4, 2), (2, 4)] {
        let (before, _) = declared(&cx, Topology::new().queue("q", QueueSpec::new().max_deliveries(old))).await?;
        before.publish(q(), message(new)).await?;
        let (bus, report) =
            declared(&cx, Topology::new().queue("q", QueueSpec::new().max_deliveries(new as u32))).await?;
        ensure_eq!(created(&report), BTreeSet::new(), "made for a changed limit");
        let mut sub = bus.subscribe(Source::queue("q")).prefetch(1).open().await?;
        for attempt in 1..=new {
            let d = cx.recv(&mut sub).await.during(format!("attempt {attempt} of {new}"))?;
            ensure_eq!((number(d.envelope())?, d.attempt() as usize), (new, attempt), "message and attempt");
            d.release().await?;
        }
        let mut dead = bus.subscribe(Source::queue("q").dead_letters()).prefetch(1).open().await?;
        let letter = cx.recv(&mut dead).await.during("the dead letter of the new limit")?;
        ensure_eq!(letter.dead_letter_info().and_then(|i| i.attempt), Some(new as u32), "its attempt");
        letter.ack().await?;
        cx.expect_none(&mut sub).await?;
        sub.close().await?;
        dead.close().await?;
    }
    Ok(())
}

async fn changed_lock_and_retry(cx: Cx) -> Outcome {
    let secs = Duration::from_secs;
    let (least, most) = cx.capabilities().lock_range.unwrap_or((secs(1), secs(300)));
    let (one, two) = (secs(20).clamp(least, most), secs(40).clamp(least, most));
    let spec = |lock, retry: &[u64]| QueueSpec::new().lock(lock).retry(retry.iter().map(|s| secs(*s)));
    let (before, _) = declared(&cx, Topology::new().queue("q", spec(one, &[1, 2]))).await?;
    before.publish(q(), message(1)).await?;
    let (bus, report) = declared(&cx, Topology::new().queue("q", spec(two, &[3]))).await?;
    ensure_eq!(created(&report), BTreeSet::new(), "made for a changed lock");
    bus.publish(q(), message(2)).await?;
    let mut sub = bus.subscribe(Source::queue("q")).prefetch(2).open().await?;
    let held = cx.collect(&mut sub, 2).await?;
    if cx.capabilities().locks {
        for d in &held {
            let left = d.locked_until().map(|until| until - tokio::time::Instant::now());
            // Where the lock is a setting of the queue it stays as it was made, which is reported as a difference.
            if report.differences.iter().any(|d| d.setting == "lock") {
                ensure!(left.is_some_and(|left| left <= one), "held for {left:?}, though the queue has {one:?}");
            } else {
                ensure!(left.is_some_and(|left| left > one), "held for {left:?}, wanted {two:?} less a margin");
            }
        }
    }
    for d in held {
        d.ack().await?;
    }
    Ok(())
}

async fn changed_ordered(cx: Cx) -> Outcome {
    let (before, _) = declared(&cx, Topology::new().queue("q", QueueSpec::new())).await?;
    before.publish(q(), message(1)).await?;
    let wanted = Topology::new().queue("q", QueueSpec::new().ordered(true));
    let (bus, report) = declared(&cx, wanted).await?;
    let about: Vec<_> = report.differences.iter().filter(|d| d.entity == "queue:q").collect();
    ensure!(!about.is_empty(), "no difference is reported: {report:?}");
    ensure!(about.iter().all(|d| d.wanted != d.found && !d.setting.is_empty()), "differences say little: {about:?}");
    let verified = bus.verify().await.during("verify")?;
    ensure!(verified.differences.iter().any(|d| d.entity == "queue:q"), "verify reports nothing: {verified:?}");
    before.publish(q(), message(2)).await.during("publish as before")?;
    let mut sub = before.subscribe(Source::queue("q")).open().await?;
    let got: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 2).await?)?.into_iter().collect();
    ensure_eq!(got, BTreeSet::from([1, 2]), "what is in the queue that was left as it is");
    Ok(())
}

async fn verify_clean(cx: Cx) -> Outcome {
    let (bus, _) = declared(&cx, shop(&cx)).await?;
    let report = bus.verify().await.during("verify")?;
    ensure!(report.created.is_empty() && report.differences.is_empty(), "verify found {report:?}");
    Ok(())
}

/// The sources that a report calls missing. Some drivers report dead letters apart from their source.
fn missing(report: &DeclareReport) -> BTreeSet<&str> {
    let missing = report.differences.iter().filter(|d| d.setting == "exists").map(|d| d.entity.as_str());
    missing.filter(|entity| !entity.ends_with("#dead-letters")).collect()
}

async fn verify_missing(cx: Cx) -> Outcome {
    let bus = cx.setup(shop(&cx)).make().await??;
    for round in ["first", "second"] {
        let report = bus.verify().await.during("verify")?;
        ensure_eq!(missing(&report), shop_names(&cx), "missing at the {round} verify");
        ensure_eq!(created(&report), BTreeSet::new(), "made by verify");
    }
    expect_kind!(bus.publish(q(), message(1)).await, ErrorKind::NotFound, "publish after verify alone");
    Ok(())
}

async fn verify_drift(cx: Cx) -> Outcome {
    let sub = SubscriptionSpec::new;
    let (old, _) = declared(
        &cx,
        Topology::new().queue("q", QueueSpec::new()).topic("t", TopicSpec::new().subscription("a", sub().types(["a"]))),
    )
    .await?;
    let wanted = Topology::new()
        .queue("q", QueueSpec::new())
        .queue("q2", QueueSpec::new())
        .topic("t", TopicSpec::new().subscription("a", sub().types(["a", "b"])).subscription("c", sub()));
    let bus = cx.setup(wanted).make().await??;
    for round in ["first", "second"] {
        let report = bus.verify().await.during("verify")?;
        ensure_eq!(missing(&report), BTreeSet::from(["queue:q2", "subscription:t/c"]), "missing, {round} verify");
        let types = report.differences.iter().any(|d| d.entity == "subscription:t/a" && d.wanted.contains('b'));
        let unchecked = report.unchecked.iter().any(|what| what.contains("t/a"));
        ensure!(types || unchecked, "the missing type is neither found nor called unchecked: {report:?}");
    }
    bus.publish(Address::topic("t"), Envelope::new("b", "1")).await?;
    bus.publish(Address::topic("t"), Envelope::new("a", "2")).await?;
    let mut a = old.subscribe(Source::subscription("t", "a")).open().await?;
    ensure_eq!(numbers(&cx.drain(&mut a, 1).await?)?, vec![2], "what the subscription gets, as it was made");
    cx.expect_none(&mut a).await
}

async fn off(cx: Cx) -> Outcome {
    let bus = cx.setup(shop(&cx)).undeclared().make().await??;
    ensure_eq!(bus.declare().await.during("declare")?, DeclareReport::default(), "report of a declare that is off");
    expect_kind!(bus.publish(q(), message(1)).await, ErrorKind::NotFound, "publish to what was not made");
    Ok(())
}

async fn removed_type(cx: Cx) -> Outcome {
    let topology = |types: &[&'static str]| {
        let spec = SubscriptionSpec::new().types(types.iter().copied());
        Topology::new().topic("t", TopicSpec::new().subscription("a", spec))
    };
    let (old, _) = declared(&cx, topology(&["keep.*", "gone.*"])).await?;
    let publish = async |bus: &Bus, from: usize| -> Outcome {
        for (i, event_type) in ["keep.x", "gone.x", "keep.y", "gone.y.z"].into_iter().enumerate() {
            let message = Envelope::new(event_type, (from + i).to_string());
            bus.publish(Address::topic("t"), message).await.during("publish")?;
        }
        Ok(())
    };
    publish(&old, 0).await?;
    let (bus, report) = declared(&cx, topology(&["keep.*"])).await?;
    ensure_eq!(created(&report), BTreeSet::new(), "made for a removed type");
    publish(&bus, 10).await?;
    let source = Source::subscription("t", "a");
    let mut sub = bus.subscribe(source.clone()).prefetch(10).open().await?;
    if !bus.capabilities().dead_letters {
        // Without dead letters the message is handed out: the program's list may be the one that is out of date.
        let got: BTreeSet<usize> = numbers(&take_rest(&cx, &mut sub, 6).await?)?.into_iter().collect();
        ensure!(got.is_superset(&BTreeSet::from([0, 1, 2, 3, 10, 12])), "what is handed out: {got:?}");
        return Ok(());
    }
    let got: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 4).await?)?.into_iter().collect();
    ensure_eq!(got, BTreeSet::from([0, 2, 10, 12]), "what is handed out");
    cx.expect_none(&mut sub).await?;
    sub.close().await?;
    // The messages of the removed type were neither acked nor given back.
    let mut sub = old.subscribe(source.clone()).prefetch(10).open().await?;
    cx.expect_none(&mut sub).await?;
    let mut dead = bus.subscribe(source.dead_letters()).prefetch(10).open().await?;
    let (unwanted, mut letters) = (BTreeSet::from([1, 3]), BTreeSet::new());
    loop {
        // Later ones are dead letters as well, where the filter at the broker is as it was.
        let wait = if letters.is_superset(&unwanted) { cx.quiet() } else { cx.patience() };
        let Ok(letter) = tokio::time::timeout(wait, dead.next()).await else { break };
        let Some(letter) = letter else { crate::fail!("the dead letters end") };
        let letter = letter?;
        let reason = letter.dead_letter_info().and_then(|info| info.reason.as_deref());
        ensure_eq!(reason, Some("unwanted-type"), "reason");
        letters.extend(numbers([letter.envelope()])?);
        letter.ack().await?;
    }
    ensure!(letters.is_superset(&unwanted), "unwanted types among the dead letters: {letters:?}");
    Ok(())
}

async fn eight_processes(cx: Cx) -> Outcome {
    let mut topology = shop(&cx);
    if cx.capabilities().ordered.is_some() {
        topology = topology.queue("sorted", QueueSpec::new().ordered(true));
    }
    let mut buses = Vec::new();
    for _ in 0..8 {
        buses.push(cx.setup(topology.clone()).make().await??);
    }
    let tasks: Vec<_> = buses.iter().cloned().map(|bus| tokio::spawn(async move { bus.declare().await })).collect();
    let mut made = BTreeSet::new();
    for (i, task) in tasks.into_iter().enumerate() {
        let report = task.await?.during(format!("declare {i} of eight at once"))?;
        ensure!(report.differences.is_empty(), "differences at declare {i}: {:?}", report.differences);
        made.extend(report.created);
    }
    ensure!(shop_names(&cx).iter().all(|name| made.contains(*name)), "made by all together: {made:?}");
    for (i, bus) in buses.iter().enumerate() {
        bus.publish(Address::topic("t"), message(i)).await.during(format!("publish on {i}"))?;
    }
    let mut sub = buses[0].subscribe(Source::subscription("t", "b")).open().await?;
    let got: BTreeSet<usize> = numbers(&cx.drain(&mut sub, 8).await?)?.into_iter().collect();
    ensure_eq!(got, (0..8).collect(), "what came to the subscription");
    cx.expect_none(&mut sub).await.during("each once, whoever declared")?;
    let report = buses[7].verify().await?;
    ensure!(report.differences.is_empty(), "drift after eight declares: {:?}", report.differences);
    Ok(())
}

async fn delete(cx: Cx) -> Outcome {
    let (bus, _) = declared(&cx, shop(&cx)).await?;
    for result in bus.publish_all(q(), messages(0..5)).await {
        result?;
    }
    bus.delete().await.during("delete")?;
    bus.delete().await.during("delete of what is gone")?;
    let report = bus.verify().await?;
    ensure_eq!(missing(&report), shop_names(&cx), "missing after the delete");
    let (again, report) = declared(&cx, shop(&cx)).await?;
    ensure_eq!(created(&report), shop_names(&cx), "made anew");
    let mut sub = again.subscribe(Source::queue("q")).open().await?;
    cx.expect_none(&mut sub).await.during("messages from before the delete")?;
    again.publish(q(), message(9)).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![9], "in the new queue");
    Ok(())
}
