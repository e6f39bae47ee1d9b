//! Settling: ack, release, retry_after, extend, drop.

use polybus_core::QueueSpec;

use crate::{Cx, Outcome, Scenario, ensure_eq, messages, number, scenario};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![scenario("settle/ack-is-final", "An acked message is gone, for this consumer and for the next.", ack_is_final)]
}

async fn ack_is_final(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..3)).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.collect(&mut sub, 3).await?;
    for delivery in held {
        if number(delivery.envelope())? == 1 {
            delivery.release().await?;
        } else {
            delivery.ack().await?;
        }
    }
    let again = cx.recv(&mut sub).await?;
    ensure_eq!(number(again.envelope())?, 1, "what came back");
    again.ack().await?;
    cx.expect_none(&mut sub).await?;
    sub.close().await?;

    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut sub = other.subscribe(10).await?;
    cx.expect_none(&mut sub).await
}
