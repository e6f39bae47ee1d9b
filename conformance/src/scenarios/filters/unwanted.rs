//! Messages that the broker lets through though the program does not list their type.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use polybus_core::{Delivery, Envelope, Subscription, SubscriptionSpec, TopicSpec, Topology, topology::UnwantedPolicy};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    Cx, During, Fixture, Need, Outcome, RawMessage, RawValue, Scenario, ensure, ensure_eq, fail, masked, scenario,
    scenarios::shared::{expect_equal, take_rest},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "filters/unwanted-dead-lettered",
            "A type that the broker lets through and the program does not list is dead-lettered, and can be redriven.",
            dead_lettered,
        )
        .needs(|_, c| Need::topics(c).and(Need::redrive(c))),
        scenario(
            "filters/rolling-deploy",
            "Two versions with different types consume one subscription: each message is handled once or dead-lettered.",
            rolling_deploy,
        )
        .needs(|_, c| Need::topics(c).and(Need::dead_letters(c)))
        .timeout(Duration::from_secs(180)),
        scenario("filters/unwanted-handled", "With `unwanted = \"handle\"` what is not listed is handled.", handled)
            .needs(|_, c| Need::topics(c)),
        scenario("filters/unwanted-discarded", "With `unwanted = \"discard\"` what is not listed is gone for good.", discarded)
            .needs(|_, c| Need::topics(c)),
        scenario("filters/unwanted-without-dead-letters", "Without dead letters what is not listed is handed out.", nowhere_to_put)
            .needs(|_, c| Need::topics(c)),
        scenario(
            "filters/unwanted-foreign",
            "A message that is no CloudEvent and that the broker let through is handed out, whatever the list says.",
            foreign,
        )
        .needs(|t, c| Need::topics(c).and(Need::raw(t))),
    ]
}

fn of(types: &[&'static str], unwanted: UnwantedPolicy) -> TopicSpec {
    TopicSpec::new().subscription("a", SubscriptionSpec::new().types(types.iter().copied()).unwanted(unwanted))
}

/// The topic as a new version of the program declares it, and as an old version sees it that lists `a.*` alone.
async fn versions(cx: &Cx, new: &[&'static str], unwanted: UnwantedPolicy) -> Outcome<(Fixture, Fixture)> {
    let new = cx.topic(of(new, UnwantedPolicy::DeadLetter)).await?;
    let old = cx.setup(Topology::new().topic("t", of(&["a.*"], unwanted))).undeclared().open().await?;
    let old = new.on(old);
    Ok((new, old))
}

fn event(event_type: &str, n: usize) -> Envelope {
    Envelope::new(event_type, n.to_string())
}

fn types(all: &[Envelope]) -> Vec<&str> {
    let mut types: Vec<&str> = all.iter().map(|e| &*e.event_type).collect();
    types.sort_unstable();
    types
}

async fn dead_lettered(cx: Cx) -> Outcome {
    let (new, old) = versions(&cx, &["a.*", "b.*"], UnwantedPolicy::DeadLetter).await?;
    let sent = event("b.x", 1).source("/here").header("kept", "as it was");
    new.publish_all([event("a.x", 0), sent.clone(), event("a.y", 2)]).await?;
    let mut sub = old.subscribe(10).await?;
    let mut got = cx.drain(&mut sub, 2).await?;
    got.extend(take_rest(&cx, &mut sub, 0).await?);
    ensure_eq!(types(&got), ["a.x", "a.y"], "what the old version handles");
    sub.close().await?;

    let mut dead = new.subscribe_dead(1).await?;
    let letter = cx.recv(&mut dead).await.during("the dead letter")?;
    let Some(info) = letter.dead_letter_info() else { fail!("a dead letter without info: {letter:?}") };
    ensure_eq!(info.reason.as_deref(), Some("unwanted-type"), "reason");
    let detail = info.detail.as_deref().unwrap_or_default();
    ensure!(detail.contains("b.x") && detail.contains("a.*"), "the detail names neither type nor list: {detail:?}");
    expect_equal(&sent, letter.envelope()).during("on the dead letters")?;
    letter.release().await?;
    dead.close().await?;

    let report = new.bus.redrive(&new.source, |_| true, 10).await.during("redrive")?;
    ensure_eq!(report.failed.len(), 0, "letters that could not be redriven");
    let mut sub = new.subscribe(10).await?;
    ensure_eq!(types(&cx.drain(&mut sub, 1).await?), ["b.x"], "what the new version handles");
    cx.expect_none(&mut sub).await
}

/// How often each message was handled, and how often it was dead-lettered.
#[derive(Default)]
struct MessageFates {
    seen: Mutex<BTreeMap<Box<str>, (u32, u32)>>,
    settled: AtomicUsize,
}

impl MessageFates {
    /// Counts what comes, until every message was handled or dead-lettered.
    async fn follow(
        self: Arc<Self>,
        sub: &mut Subscription,
        dead: bool,
        pace: Duration,
        all: usize,
        until: Instant,
    ) -> Outcome {
        let mut acks = JoinSet::new();
        while self.settled.load(Ordering::SeqCst) < all {
            // A consumer that gets nothing checks whether the others have got everything.
            let soon = until.min(Instant::now() + Duration::from_millis(100));
            let Ok(next) = timeout_at(soon, sub.next()).await else {
                if soon == until {
                    break;
                }
                continue;
            };
            let Some(next) = next else { fail!("{} ended", sub.source()) };
            let delivery = next?;
            sleep(pace).await;
            let fates = self.clone();
            acks.spawn(async move { fates.settle(delivery, dead).await });
            while let Some(acked) = acks.try_join_next() {
                acked??;
            }
        }
        while let Some(acked) = acks.join_next().await {
            acked??;
        }
        Ok(())
    }

    async fn settle(&self, delivery: Delivery, dead: bool) -> Outcome {
        let id = delivery.envelope().id.clone();
        delivery.ack().await.during("ack")?;
        let mut seen = self.seen.lock();
        let fate = seen.entry(id).or_default();
        let count = if dead { &mut fate.1 } else { &mut fate.0 };
        *count += 1;
        drop(seen);
        self.settled.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

async fn rolling_deploy(cx: Cx) -> Outcome {
    let (new, old) = versions(&cx, &["a.*", "b.*"], UnwantedPolicy::DeadLetter).await?;
    // A real broker also serves the scenarios that run beside this one.
    let n = if cx.target().upstream.is_none() { 10_000 } else { 2_000 };
    let sent: Vec<Envelope> = (0..n).map(|i| event(if i % 4 == 0 { "a.x" } else { "b.x" }, i)).collect();
    let fates = Arc::new(MessageFates::default());
    let mut consumers = JoinSet::new();
    // The limit is for hangs: how long a real broker takes is not judged.
    let until = Instant::now() + if cx.time_is_free() { Duration::from_secs(90) } else { cx.patience() * 4 };
    for (f, dead, pace) in [(&old, false, 0), (&new, false, 1), (&new, true, 0)] {
        let mut sub = if dead { f.subscribe_dead(100).await? } else { f.subscribe(100).await? };
        let fates = fates.clone();
        consumers.spawn(async move {
            fates.follow(&mut sub, dead, Duration::from_millis(pace), n, until).await?;
            Outcome::Ok(sub.close().await?)
        });
    }
    // A thousand at a time: on a slow broker all of them would exceed the timeout of a publish.
    for some in sent.chunks(1_000) {
        new.publish_all(some.to_vec()).await?;
    }
    while let Some(ended) = consumers.join_next().await {
        ended??;
    }
    let seen = fates.seen.lock();
    let missing = sent.iter().filter(|e| !seen.contains_key(&e.id)).count();
    ensure_eq!(missing, 0, "messages of {n} that were neither handled nor dead-lettered");
    for envelope in &sent {
        let (handled, dead) = seen.get(&envelope.id).copied().unwrap_or_default();
        ensure_eq!(handled + dead, 1, "{} was handled {handled} and dead-lettered {dead} times", envelope.event_type);
        ensure!(dead == 0 || &*envelope.event_type == "b.x", "a message that both versions want was dead-lettered");
    }
    Ok(())
}

async fn handled(cx: Cx) -> Outcome {
    let (new, old) = versions(&cx, &["a.*", "b.*"], UnwantedPolicy::Handle).await?;
    new.publish_all([event("a.x", 0), event("b.x", 1)]).await?;
    let mut sub = old.subscribe(10).await?;
    ensure_eq!(types(&cx.drain(&mut sub, 2).await?), ["a.x", "b.x"], "what is handled");
    Ok(())
}

async fn discarded(cx: Cx) -> Outcome {
    let (new, old) = versions(&cx, &["a.*", "b.*"], UnwantedPolicy::Discard).await?;
    new.publish_all([event("b.x", 0), event("a.x", 1), event("b.y", 2)]).await?;
    let mut sub = old.subscribe(10).await?;
    ensure_eq!(types(&cx.drain(&mut sub, 1).await?), ["a.x"], "what is handled");
    cx.expect_none(&mut sub).await?;
    sub.close().await?;
    let mut sub = new.subscribe(10).await?;
    cx.expect_none(&mut sub).await.during("for the new version")
}

async fn nowhere_to_put(cx: Cx) -> Outcome {
    let new = cx.topic(of(&["a.*", "b.*"], UnwantedPolicy::DeadLetter)).await?;
    let poor = cx.setup(Topology::new().topic("t", of(&["a.*"], UnwantedPolicy::DeadLetter))).undeclared();
    let poor = new.on(poor.wrap(|driver| masked(driver, |can| can.dead_letters = false)).open().await?);
    new.publish(event("b.x", 0)).await?;
    let mut sub = poor.subscribe(1).await?;
    ensure_eq!(types(&cx.drain(&mut sub, 1).await?), ["b.x"], "what is handed out");
    Ok(())
}

async fn foreign(cx: Cx) -> Outcome {
    // The subscription has no types, so the broker lets everything through.
    let (new, old) = versions(&cx, &[], UnwantedPolicy::DeadLetter).await?;
    let raw = RawMessage::body("one,two").content_type("text/csv").header("tenant", RawValue::Text("acme".into()));
    cx.inject(&new.bus, &new.address, raw).await?;
    new.publish(event("a.x", 1)).await?;
    let mut sub = old.subscribe(10).await?;
    let got = cx.drain(&mut sub, 2).await?;
    ensure_eq!(types(&got), ["a.x", Envelope::FOREIGN_TYPE], "what is handed out");
    let foreign = got.iter().find(|e| &*e.event_type == Envelope::FOREIGN_TYPE);
    ensure_eq!(foreign.map(|e| &*e.data), Some(&b"one,two"[..]), "its body");
    Ok(())
}
