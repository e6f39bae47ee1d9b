//! Receiving: competing consumers, prefetch, cancellation, missing sources.

use std::collections::BTreeSet;

use polybus_core::QueueSpec;

use crate::{Cx, Outcome, Scenario, ensure, ensure_eq, messages, number, scenario};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![scenario(
        "receive/competing",
        "Two consumers on two connections share a queue: each message goes to one, and both get some.",
        competing,
    )]
}

async fn competing(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let (mut one, mut two) = (q.subscribe(5).await?, other.subscribe(5).await?);
    q.publish_all(messages(0..40)).await?;
    // Each holds its full prefetch before anything is settled, so neither can take everything.
    let held = (cx.collect(&mut one, 5).await?, cx.collect(&mut two, 5).await?);
    let mut seen = BTreeSet::new();
    for delivery in held.0.into_iter().chain(held.1) {
        ensure!(seen.insert(number(delivery.envelope())?), "handed out twice: {:?}", delivery.envelope());
        delivery.ack().await?;
    }
    while seen.len() < 40 {
        let delivery = tokio::select! { d = cx.recv(&mut one) => d?, d = cx.recv(&mut two) => d? };
        ensure!(seen.insert(number(delivery.envelope())?), "handed out twice: {:?}", delivery.envelope());
        delivery.ack().await?;
    }
    ensure_eq!(seen, (0..40).collect::<BTreeSet<_>>(), "all messages");
    cx.expect_none(&mut one).await?;
    cx.expect_none(&mut two).await
}
