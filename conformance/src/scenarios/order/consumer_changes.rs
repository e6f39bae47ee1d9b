//! Consumers that close, crash or lose their connection while they hold messages of a key.

use std::time::Duration;

use polybus_core::{Envelope, ErrorKind, SubscriptionSpec, TopicSpec};
use tokio::time::Instant;

use super::{holds_at_the_broker, ordered_queue, three_keys};
use crate::{
    Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, scenario, scenarios::shared::numbers_of,
};

pub(super) fn all() -> Vec<Scenario> {
    let ordered = |s: Scenario| s.needs(|_, c| Need::ordered(c));
    vec![
        ordered(scenario(
            "order/close-with-a-standby",
            "An active consumer closes with unacked messages while another waits: that one goes on in order.",
            close_with_a_standby,
        )),
        scenario(
            "order/crash-with-a-standby",
            "An active consumer is killed while another waits: that one goes on in order.",
            crash_with_a_standby,
        )
        .needs(|t, c| Need::ordered(c).and(Need::processes(t))),
        ordered(scenario(
            "order/stop-then-settle",
            "A stopped consumer settles what it holds; then the next one goes on in order.",
            stop_then_settle,
        )),
        ordered(scenario(
            "order/ten-rounds",
            "Ten consumers one after another, each closing with messages in hand, see each key in order.",
            ten_rounds,
        )),
        scenario(
            "order/cut-while-holding",
            "A connection cut while messages are held: settling them is LockLost, and each key goes on in order.",
            cut_while_holding,
        )
        .needs(|t, c| Need::ordered(c).and(Need::proxy(t))),
        scenario(
            "order/close-on-a-topic",
            "A subscription's consumer that closes with messages in hand reorders nothing, there or beside it.",
            close_on_a_topic,
        )
        .needs(|_, c| Need::ordered_topics(c)),
    ]
}

/// Fails unless each of the three keys has its messages from `first` to `n / 3`, in order.
fn in_order(got: &[Envelope], first: usize, n: usize, when: &str) -> Outcome {
    for key in ["k0", "k1", "k2"] {
        ensure_eq!(numbers_of(got, key)?, (first..n / 3).collect::<Vec<_>>(), "order of {key} {when}");
    }
    Ok(())
}

async fn close_with_a_standby(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut active = q.subscribe(10).await?;
    q.publish_all(three_keys(30)).await?;
    let held = cx.collect(&mut active, 3).await?;
    ensure!(held.iter().all(|d| d.envelope().data == "0"), "the first of each key is handed out first: {held:?}");
    let mut standby = other.subscribe(10).await?;
    let closing = async {
        active.close().await?;
        q.bus.close().await?;
        Ok(held)
    };
    let took_over = async { cx.drain(&mut standby, 30).await };
    let (closed, got): (Outcome<Vec<_>>, _) = tokio::join!(closing, took_over);
    in_order(&got.during("the standby")?, 0, 30, "at the standby")?;
    for d in closed.during("close")? {
        expect_kind!(d.ack().await, ErrorKind::LockLost, "ack after the close");
    }
    cx.expect_none(&mut standby).await
}

async fn crash_with_a_standby(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all(three_keys(30)).await?;
    let child = cx.child(&q.bus, &q.source, 10, 3).await?;
    let mut standby = q.subscribe(10).await?;
    child.kill().await?;
    in_order(&cx.drain(&mut standby, 30).await?, 0, 30, "at the standby")
}

async fn stop_then_settle(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    q.publish_all(three_keys(30)).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.collect(&mut sub, 3).await?;
    sub.stop().await?;
    for d in held {
        d.ack().await.during("ack after stop")?;
    }
    sub.close().await?;
    let mut next = other.subscribe(10).await?;
    in_order(&cx.drain(&mut next, 27).await?, 1, 30, "after the stop")?;
    cx.expect_none(&mut next).await
}

async fn ten_rounds(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all(three_keys(90)).await?;
    let mut acked = Vec::new();
    for round in 0..10 {
        let mut sub = q.subscribe(15).await?;
        for _ in 0..6 {
            let d = cx.recv(&mut sub).await.during(format!("round {round}"))?;
            acked.push(d.envelope().clone());
            d.ack().await?;
        }
        let held = cx.recv(&mut sub).await.during(format!("round {round}, the one held"))?;
        sub.close().await?;
        drop(held);
    }
    let mut sub = q.subscribe(15).await?;
    acked.extend(cx.drain(&mut sub, 30).await?);
    in_order(&acked, 0, 90, "over all rounds")?;
    cx.expect_none(&mut sub).await
}

async fn cut_while_holding(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all(three_keys(30)).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    let mut sub = through.subscribe(10).await?;
    let held = cx.collect(&mut sub, 3).await?;
    proxy.cut();
    // Where locks outlive the connection, the delivery can still be settled, unless the broker holds the key for the
    // connection.
    if cx.target().lock_outlives.is_some() && !holds_at_the_broker(&cx) {
        let mut got = Vec::new();
        for d in held {
            got.push(d.envelope().clone());
            d.ack().await.during("ack of what outlives the cut")?;
        }
        got.extend(cx.drain(&mut sub, 27).await.during("after the cut")?);
        in_order(&got, 0, 30, "after the cut")?;
        return cx.expect_none(&mut sub).await;
    }
    // Where settlements are not confirmed, an ack may seem Ok until the client has noticed the cut.
    let deadline = cx.deadline();
    while !cx.capabilities().confirmed_settlement && held.iter().any(|d| d.is_held()) {
        ensure!(Instant::now() < deadline, "the client does not notice that its connection was cut");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for d in held {
        expect_kind!(d.ack().await, ErrorKind::LockLost, "ack of what was held before the cut");
    }
    let mut got = vec![];
    while got.len() < 30 {
        let d = cx.recv(&mut sub).await.during("after the cut")?;
        got.push(d.envelope().clone());
        d.ack().await.during("ack after the cut")?;
    }
    in_order(&got, 0, 30, "after the cut")?;
    cx.expect_none(&mut sub).await
}

async fn close_on_a_topic(cx: Cx) -> Outcome {
    let spec = TopicSpec::new()
        .ordered(true)
        .subscription("a", SubscriptionSpec::new().max_deliveries(50))
        .subscription("b", SubscriptionSpec::new().max_deliveries(50));
    let t = cx.topic(spec).await?;
    let other = t.on(cx.second_bus(&t.bus).await?);
    t.publish_all(three_keys(30)).await?;
    let mut sub = other.subscribe(10).await?;
    let held = cx.collect(&mut sub, 3).await?;
    other.bus.close().await?;
    drop(held);
    let mut again = t.subscribe(10).await?;
    in_order(&cx.drain(&mut again, 30).await?, 0, 30, "after the close")?;
    let mut beside = t.bus.subscribe(t.subscription("b")).prefetch(10).open().await?;
    let got = cx.drain(&mut beside, 30).await?;
    in_order(&got, 0, 30, "in the other subscription")?;
    cx.expect_none(&mut beside).await
}
