//! Topics: each subscription gets its own copy of each message.

use std::collections::BTreeSet;

use polybus_core::{Address, Bus, Envelope, QueueSpec, Source, Subscription, SubscriptionSpec, TopicSpec, Topology};

use crate::{
    Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, message, messages, number, numbers, scenario,
    scenarios::shared::{expect_same, take_rest},
};

/// The scenarios of this group.
pub fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "pubsub/each-gets-all",
            "Each of eight subscriptions gets its own copy of every message.",
            each_gets_all,
        )
        .needs(|_, c| Need::topics(c)),
        scenario(
            "pubsub/competing-within-one",
            "Consumers of one subscription share its messages, while the other subscription gets all.",
            competing_within_one,
        )
        .needs(|_, c| Need::topics(c)),
        scenario(
            "pubsub/settled-apart",
            "Ack, release, retry and dead letter on one subscription leave the other's copy alone.",
            settled_apart,
        )
        .needs(|_, c| Need::topics(c)),
        scenario("pubsub/no-leak", "Topics with subscriptions of the same names, and queues, share nothing.", no_leak)
            .needs(|_, c| Need::topics(c)),
        scenario(
            "pubsub/late-subscription",
            "A subscription that is made later gets what is published from then on, and disturbs no other.",
            late_subscription,
        )
        .needs(|_, c| Need::topics(c).and(Need::declare(c))),
        scenario(
            "pubsub/nobody-listens",
            "A subscription keeps its messages while nobody consumes it, and through the end of its consumers.",
            nobody_listens,
        )
        .needs(|_, c| Need::topics(c)),
        scenario(
            "pubsub/many-publishers",
            "Many publishers at once on two buses: each message once to each.",
            many_publishers,
        )
        .needs(|_, c| Need::topics(c)),
    ]
}

async fn subscribe(bus: &Bus, topic: &str, name: &str, prefetch: usize) -> Outcome<Subscription> {
    let source = Source::subscription(topic, name);
    bus.subscribe(source).prefetch(prefetch).open().await.during(format!("subscribe to {topic}/{name}"))
}

async fn each_gets_all(cx: Cx) -> Outcome {
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let spec = names.iter().fold(TopicSpec::new(), |t, n| t.subscription(*n, SubscriptionSpec::new()));
    let t = cx.topic(spec).await?;
    let sent = messages(0..20);
    for half in sent.chunks(10) {
        t.publish(&half[0]).await?;
        t.publish_all(half[1..].to_vec()).await?;
    }
    for name in names {
        let mut sub = subscribe(&t.bus, "t", name, 30).await?;
        let got = cx.collect(&mut sub, 20).await.during(name)?;
        for delivery in &got {
            ensure_eq!(delivery.attempt(), 1, "attempt on {name}");
        }
        let envelopes: Vec<Envelope> = got.iter().map(|d| d.envelope().clone()).collect();
        expect_same(&sent, &envelopes, name)?;
        for delivery in got {
            delivery.ack().await?;
        }
    }
    // Each ack was for its own copy: nothing is left, and nothing comes again.
    for name in names {
        let mut sub = subscribe(&t.bus, "t", name, 30).await?;
        if name == "a" || name == "h" {
            cx.expect_none(&mut sub).await.during(name)?;
        }
    }
    Ok(())
}

async fn competing_within_one(cx: Cx) -> Outcome {
    let spec = TopicSpec::new().subscription("a", SubscriptionSpec::new()).subscription("b", SubscriptionSpec::new());
    let t = cx.topic(spec).await?;
    let other = cx.second_bus(&t.bus).await?;
    let (mut one, mut two) = (subscribe(&t.bus, "t", "a", 5).await?, subscribe(&other, "t", "a", 5).await?);
    let sent = messages(0..30);
    t.publish_all(sent.clone()).await?;
    let held = (cx.collect(&mut one, 5).await?, cx.collect(&mut two, 5).await?);
    let mut got = Vec::new();
    for delivery in held.0.into_iter().chain(held.1) {
        got.push(delivery.envelope().clone());
        delivery.ack().await?;
    }
    while got.len() < sent.len() {
        let delivery = tokio::select! { d = cx.recv(&mut one) => d?, d = cx.recv(&mut two) => d? };
        got.push(delivery.envelope().clone());
        delivery.ack().await?;
    }
    expect_same(&sent, &got, "both consumers of a")?;
    let mut sub = subscribe(&t.bus, "t", "b", 40).await?;
    expect_same(&sent, &take_rest(&cx, &mut sub, sent.len()).await?, "b")?;
    cx.expect_none(&mut one).await
}

async fn settled_apart(cx: Cx) -> Outcome {
    let spec = TopicSpec::new().subscription("a", SubscriptionSpec::new()).subscription("b", SubscriptionSpec::new());
    let t = cx.topic(spec).await?;
    t.publish_all(messages(0..4)).await?;
    let mut b = subscribe(&t.bus, "t", "b", 10).await?;
    let held = cx.collect(&mut b, 4).await?;

    let can = cx.capabilities().clone();
    let mut a = subscribe(&t.bus, "t", "a", 10).await?;
    let (mut dead, mut again) = (0, BTreeSet::new());
    for delivery in cx.collect(&mut a, 4).await? {
        match number(delivery.envelope())? {
            1 => {
                again.insert(1);
                delivery.release().await.during("release")?;
            }
            2 if can.max_retry_delay.is_some() => {
                again.insert(2);
                delivery.retry_after(std::time::Duration::from_secs(1)).await.during("retry")?;
            }
            3 if can.dead_letters => {
                dead += 1;
                delivery.dead_letter("unfit", "").await.during("dead letter")?;
            }
            _ => delivery.ack().await.during("ack")?,
        }
    }
    while !again.is_empty() {
        let delivery = cx.recv(&mut a).await.during("what comes back to a")?;
        let n = number(delivery.envelope())?;
        ensure!(again.remove(&n), "message {n} came back to a");
        ensure_eq!(delivery.attempt(), 2, "attempt of message {n}");
        delivery.ack().await?;
    }
    cx.expect_none(&mut b).await.during("b, which settled nothing")?;
    for delivery in held {
        ensure!(delivery.is_held() && delivery.attempt() == 1, "b's delivery was touched: {delivery:?}");
        delivery.ack().await.during("ack on b")?;
    }
    if can.dead_letters {
        let dead_letters = Source::subscription("t", "b").dead_letters();
        let mut sub = t.bus.subscribe(dead_letters).open().await?;
        cx.expect_none(&mut sub).await.during("the dead letters of b")?;
        let mut sub = t.subscribe_dead(5).await?;
        ensure_eq!(take_rest(&cx, &mut sub, dead).await?.len(), dead, "dead letters of a");
    }
    cx.expect_none(&mut a).await?;
    cx.expect_none(&mut b).await
}

async fn no_leak(cx: Cx) -> Outcome {
    let two = || TopicSpec::new().subscription("a", SubscriptionSpec::new()).subscription("b", SubscriptionSpec::new());
    let topology = Topology::new().topic("t", two()).topic("t-a", two()).queue("a", QueueSpec::new());
    let bus = cx.bus(topology).await?;
    let places = [Address::topic("t"), Address::topic("t-a"), Address::queue("a")];
    for (i, to) in places.iter().enumerate() {
        for result in bus.publish_all(to, messages([i, i + 10, i + 20])).await {
            result.during(format!("publish to {to}"))?;
        }
    }
    for (i, to) in places.iter().enumerate() {
        let sources = match to {
            Address::Topic(name) => vec![Source::subscription(&**name, "a"), Source::subscription(&**name, "b")],
            _ => vec![Source::queue("a")],
        };
        for source in sources {
            let mut sub = bus.subscribe(source.clone()).prefetch(20).open().await?;
            let mut got = numbers(&take_rest(&cx, &mut sub, 3).await?)?;
            got.sort_unstable();
            ensure_eq!(got, [i, i + 10, i + 20], "what came to {source}");
        }
    }
    Ok(())
}

async fn late_subscription(cx: Cx) -> Outcome {
    let early = TopicSpec::new().subscription("a", SubscriptionSpec::new());
    let t = cx.topic(early.clone()).await?;
    t.publish_all(messages(0..5)).await?;
    let late = cx.bus(Topology::new().topic("t", early.subscription("b", SubscriptionSpec::new()))).await?;
    t.publish_all(messages(5..10)).await?;
    for result in late.publish_all(&t.address, messages(10..15)).await {
        result.during("publish by the bus that knows both")?;
    }
    for (name, wanted) in [("b", 5..15_usize), ("a", 0..15)] {
        let mut sub = subscribe(&late, "t", name, 30).await?;
        let mut got = numbers(&take_rest(&cx, &mut sub, wanted.len()).await?)?;
        got.sort_unstable();
        ensure_eq!(got, wanted.collect::<Vec<_>>(), "what came to {name}");
    }
    Ok(())
}

async fn nobody_listens(cx: Cx) -> Outcome {
    let t = cx.topic(TopicSpec::new().subscription("a", SubscriptionSpec::new())).await?;
    let other = cx.second_bus(&t.bus).await?;
    let mut sub = subscribe(&other, "t", "a", 5).await?;
    t.publish(message(0)).await?;
    cx.recv(&mut sub).await?.ack().await?;
    sub.close().await?;
    other.close().await?;
    let sent = messages(1..20);
    t.publish_all(sent.clone()).await?;
    let mut sub = t.subscribe(30).await?;
    expect_same(&sent, &take_rest(&cx, &mut sub, sent.len()).await?, "what was published while nobody consumed")
}

async fn many_publishers(cx: Cx) -> Outcome {
    let spec = TopicSpec::new().subscription("a", SubscriptionSpec::new()).subscription("b", SubscriptionSpec::new());
    let t = cx.topic(spec).await?;
    let other = cx.second_bus(&t.bus).await?;
    let (mut a, mut b) = (subscribe(&t.bus, "t", "a", 100).await?, subscribe(&other, "t", "b", 100).await?);
    let sent = messages(0..1000);
    let tasks: Vec<_> = (sent.iter().enumerate())
        .map(|(i, m)| tokio::spawn(if i % 2 == 0 { &t.bus } else { &other }.publish(&t.address, m)))
        .collect();
    let (got_a, got_b) = tokio::join!(cx.drain(&mut a, 1000), cx.drain(&mut b, 1000));
    for task in tasks {
        task.await?.during("publish")?;
    }
    expect_same(&sent, &got_a.during("a")?, "a")?;
    expect_same(&sent, &got_b.during("b")?, "b")?;
    cx.expect_none(&mut a).await?;
    cx.expect_none(&mut b).await
}
