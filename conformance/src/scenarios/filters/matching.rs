//! Which event types a subscription gets.

use std::collections::BTreeSet;

use polybus_core::{Envelope, Source, SubscriptionSpec, TopicSpec};

use crate::{
    CountAccuracy, Cx, During, Fixture, Need, Outcome, Scenario, ensure_eq, scenario, scenarios::shared::take_rest,
};

pub(super) fn all() -> Vec<Scenario> {
    let topics = |s: Scenario| s.needs(|_, c| Need::topics(c));
    vec![
        topics(scenario("filters/under", "`order.*` is order.a and order.a.b; not order, orders.a or order_x.", under)),
        topics(scenario("filters/exact", "An exact type is that type alone, in that spelling.", exact)),
        topics(scenario("filters/deep", "`a.b.*` is what lies under a.b, and nothing beside it.", deep)),
        topics(scenario("filters/joints", "`_`, `-` and digits in a filter stand for themselves alone.", joints)),
        topics(scenario("filters/overlapping", "Types that overlap in one subscription give one copy.", overlapping)),
        topics(scenario("filters/none", "A subscription without types gets every type.", none)),
        topics(scenario("filters/longest", "A type of 128 bytes is filtered as any other.", longest)),
        topics(scenario(
            "filters/each-its-own",
            "Each subscription of a topic gets what its own types say.",
            each_its_own,
        )),
        topics(scenario("filters/batch", "In a batch each message is filtered for itself.", batch)),
        scenario(
            "filters/by-the-broker",
            "What does not match is not stored for the subscription at all.",
            by_the_broker,
        )
        .needs(|_, c| Need::topics(c).and(Need::stats(c))),
    ]
}

fn event(event_type: &str) -> Envelope {
    Envelope::new(event_type, event_type.to_owned())
}

/// The types that come, each of which must come once. Waits for `least` of them, then until nothing more comes.
async fn types_received(cx: &Cx, t: &Fixture, subscription: &str, least: usize) -> Outcome<BTreeSet<String>> {
    let source = Source::subscription(t.address.name(), subscription);
    let mut sub = t.bus.subscribe(source).prefetch(50).open().await?;
    let mut types = BTreeSet::new();
    let mut all = cx.drain(&mut sub, least).await?;
    all.extend(take_rest(cx, &mut sub, 0).await?);
    for envelope in all {
        ensure_eq!(&*envelope.data, envelope.event_type.as_bytes(), "payload and type");
        let first = types.insert(envelope.event_type.to_string());
        crate::ensure!(first, "{} came twice to {subscription}", envelope.event_type);
    }
    Ok(types)
}

fn set(types: &[&str]) -> BTreeSet<String> {
    types.iter().map(|t| (*t).to_owned()).collect()
}

/// Publishes all of `yes` and `no` to a topic with one subscription of these types: exactly `yes` must come.
async fn expect_only(cx: Cx, types: &[&str], yes: &[&str], no: &[&str]) -> Outcome {
    let t = cx.topic(TopicSpec::new().subscription("a", SubscriptionSpec::new().types(types.iter().copied()))).await?;
    for event_type in no.iter().chain(yes) {
        t.publish(event(event_type)).await?;
    }
    ensure_eq!(types_received(&cx, &t, "a", yes.len()).await?, set(yes), "what came under {types:?}");
    Ok(())
}

async fn under(cx: Cx) -> Outcome {
    let no = ["order", "orders.a", "order_x", "order-a", "Order.a", "ORDER.A", "a.order.b", "orde", "order_.a"];
    expect_only(cx, &["order.*"], &["order.a", "order.a.b", "order.a.b.c.d", "order.1", "order._", "order.order"], &no)
        .await
}

async fn exact(cx: Cx) -> Outcome {
    let no =
        ["order", "order.place", "order.placed.eu", "Order.placed", "order.placed_", "order_placed", "x.order.placed"];
    expect_only(cx, &["order.placed", "pay"], &["order.placed", "pay"], &no).await?;
    Ok(())
}

async fn deep(cx: Cx) -> Outcome {
    let no = ["a.b", "a", "a.c.b", "a.bc.d", "b.a.b.c", "a.b_c", "ab.c"];
    expect_only(cx, &["a.b.*"], &["a.b.c", "a.b.c.d", "a.b.b"], &no).await
}

async fn joints(cx: Cx) -> Outcome {
    let yes = ["a_b.c", "x-1.y", "n0.0"];
    let no = ["aXb.c", "ab.c", "a-b.c", "a.b.c", "x_1.y", "x1.y", "n1.0", "a_b", "a__b.c"];
    expect_only(cx, &["a_b.*", "x-1.y", "n0.*"], &yes, &no).await
}

async fn overlapping(cx: Cx) -> Outcome {
    let types = ["order.*", "order.a", "order.a.*", "order.a.b", "order"];
    expect_only(cx, &types, &["order", "order.a", "order.a.b", "order.c"], &["orders", "pay.order"]).await
}

async fn none(cx: Cx) -> Outcome {
    expect_only(cx, &[], &["order", "order.a", "x_y", "A.B.C.D", "1"], &[]).await
}

async fn longest(cx: Cx) -> Outcome {
    let (long, other) = (format!("{}.end", "x".repeat(124)), format!("{}.and", "x".repeat(124)));
    let under = format!("{}.*", "x".repeat(124));
    expect_only(cx.clone(), &[&long], &[&long], &[&other]).await?;
    let t = TopicSpec::new().subscription("a", SubscriptionSpec::new().types([under.as_str()]));
    let topology = polybus_core::Topology::new().topic("u", t);
    let bus = cx.bus(topology).await?;
    let (address, source) = (polybus_core::Address::topic("u"), Source::subscription("u", "a"));
    let t = Fixture { bus, address, source };
    for event_type in [&long, &other, &"x".repeat(124), &"x".repeat(128)] {
        t.publish(event(event_type)).await?;
    }
    ensure_eq!(types_received(&cx, &t, "a", 2).await?, set(&[&long, &other]), "what came under a long filter");
    Ok(())
}

fn several() -> TopicSpec {
    let of = |types: &[&'static str]| SubscriptionSpec::new().types(types.iter().copied());
    TopicSpec::new()
        .subscription("orders", of(&["order.*"]))
        .subscription("placed", of(&["order.placed"]))
        .subscription("both", of(&["order.paid", "user.*"]))
        .subscription("all", SubscriptionSpec::new())
        .subscription("never", of(&["never.published"]))
}

const TYPES: [&str; 5] = ["order.placed", "order.paid", "user.left", "user", "order"];

async fn each_gets(cx: &Cx, t: &Fixture) -> Outcome {
    for (name, wanted) in [
        ("orders", &["order.placed", "order.paid"][..]),
        ("placed", &["order.placed"]),
        ("both", &["order.paid", "user.left"]),
        ("all", &TYPES),
        ("never", &[]),
    ] {
        ensure_eq!(types_received(cx, t, name, wanted.len()).await?, set(wanted), "what came to {name}");
    }
    Ok(())
}

async fn each_its_own(cx: Cx) -> Outcome {
    let t = cx.topic(several()).await?;
    for event_type in TYPES {
        t.publish(event(event_type)).await?;
    }
    each_gets(&cx, &t).await
}

async fn batch(cx: Cx) -> Outcome {
    let t = cx.topic(several()).await?;
    t.publish_all(TYPES.map(event)).await?;
    each_gets(&cx, &t).await
}

async fn by_the_broker(cx: Cx) -> Outcome {
    let t = cx.topic(TopicSpec::new().subscription("a", SubscriptionSpec::new().types(["order.*"]))).await?;
    for _ in 0..5 {
        t.publish_all(["order", "orders.a", "order_x", "pay"].map(event)).await?;
    }
    t.publish_all(["order.a", "order.b"].map(event)).await?;
    let mut ready = None;
    let deadline = cx.deadline();
    while ready != Some(2) && tokio::time::Instant::now() < deadline {
        ready = t.bus.stats(&t.source).await.during("stats")?.ready;
        if cx.target().counts == CountAccuracy::Exact || ready.is_none() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    crate::ensure!(ready.is_none_or(|n| n == 2), "ready: expected the 2 that match, got {ready:?} of 22");
    Ok(())
}
