//! Retries and delays on topics.

use polybus_core::{Envelope, Outgoing, SubscriptionSpec, TopicSpec};
use tokio::time::sleep;

use super::SECOND;
use crate::{
    Cx, During, Need, Outcome, Scenario, ensure_eq, message, number, numbers, scenario,
    scenarios::shared::ExpectedDelay,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "retry/siblings",
            "A retry on one subscription never reaches its siblings, whatever their types.",
            siblings,
        )
        .needs(|_, c| Need::topics(c).and(Need::retry(c, SECOND))),
        scenario(
            "retry/both-siblings",
            "Two subscriptions retry the same message at once: each gets its own again, once.",
            both_siblings,
        )
        .needs(|_, c| Need::topics(c).and(Need::retry(c, SECOND))),
        scenario(
            "retry/no-match",
            "40 delayed publishes that no subscription wants are Ok, and stall none that one wants.",
            no_match,
        )
        .needs(|_, c| Need::topic_delay(c, SECOND)),
    ]
}

async fn siblings(cx: Cx) -> Outcome {
    let t = cx
        .topic(
            TopicSpec::new()
                .subscription("a", SubscriptionSpec::new().types(["test.*"]))
                .subscription("b", SubscriptionSpec::new())
                .subscription("c", SubscriptionSpec::new().types(["test.message"])),
        )
        .await?;
    let mut others = Vec::new();
    for name in ["b", "c"] {
        others.push(t.bus.subscribe(t.subscription(name)).prefetch(10).open().await?);
    }
    let mut sub = t.subscribe(10).await?;
    let sent = message(1).source("suite").header("tenant", "acme");
    t.publish(&sent).await?;
    for other in &mut others {
        let delivery = cx.recv(other).await?;
        ensure_eq!(delivery.attempt(), 1, "attempt on {}", delivery.source());
        delivery.ack().await?;
    }
    for retry in 1..=2 {
        let retried = ExpectedDelay::retry(cx.recv(&mut sub).await?, SECOND).await?;
        let again = cx.recv(&mut sub).await?;
        retried.check(&cx)?;
        ensure_eq!(again.envelope(), &sent, "what came again");
        ensure_eq!(again.attempt(), 2 * retry, "attempt");
        again.release().await?;
    }
    cx.drain(&mut sub, 1).await?;
    for other in &mut others {
        cx.expect_none(other).await.during(format!("sibling {}", other.source()))?;
    }
    cx.expect_none(&mut sub).await
}

async fn both_siblings(cx: Cx) -> Outcome {
    let spec = || SubscriptionSpec::new().types(["test.*"]);
    let t = cx.topic(TopicSpec::new().subscription("a", spec()).subscription("b", spec())).await?;
    let mut subs = vec![t.subscribe(5).await?, t.bus.subscribe(t.subscription("b")).prefetch(5).open().await?];
    t.publish(message(1)).await?;
    let mut delays = Vec::new();
    for sub in &mut subs {
        delays.push(ExpectedDelay::retry(cx.recv(sub).await?, SECOND).await?);
    }
    for (sub, delay) in subs.iter_mut().zip(delays) {
        let delivery = cx.recv(sub).await.during(sub_name(sub))?;
        delay.check(&cx)?;
        ensure_eq!((number(delivery.envelope())?, delivery.attempt()), (1, 2), "message and attempt");
        delivery.ack().await?;
    }
    for sub in &mut subs {
        cx.expect_none(sub).await.during(sub_name(sub))?;
    }
    Ok(())
}

fn sub_name(sub: &polybus_core::Subscription) -> String {
    sub.source().to_string()
}

async fn no_match(cx: Cx) -> Outcome {
    let spec = SubscriptionSpec::new().types(["test.message"]);
    let t = cx.topic(TopicSpec::new().subscription("a", spec)).await?;
    let mut sub = t.subscribe(10).await?;
    let unwanted = (0..40).map(|n| Outgoing::from(Envelope::new("other.message", n.to_string())).delay(SECOND));
    for (i, result) in t.bus.publish_all(&t.address, unwanted).await.into_iter().enumerate() {
        result.during(format!("delayed publish {i} that nobody wants"))?;
    }
    for round in 0..2 {
        let delay = ExpectedDelay::of(SECOND, t.publish(Outgoing::from(message(round)).delay(SECOND))).await?;
        let delivery = cx.recv(&mut sub).await.during(format!("round {round}"))?;
        delay.check(&cx)?;
        ensure_eq!(numbers([delivery.envelope()])?, [round], "what came");
        delivery.ack().await?;
        sleep(SECOND * 2).await;
    }
    cx.expect_none(&mut sub).await
}
