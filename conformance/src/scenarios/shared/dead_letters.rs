//! Moving messages to the dead letters.

use std::time::Duration;

use polybus_core::{Envelope, Subscription};
use tokio::task::JoinSet;

use crate::{Cx, During, Fixture, Outcome};

/// Publishes these messages, and moves them to the dead letters of the source.
pub(crate) async fn dead_letter_all(cx: &Cx, q: &Fixture, messages: Vec<Envelope>) -> Outcome {
    let n = messages.len();
    q.publish_all(messages).await?;
    let mut sub = q.subscribe(n.clamp(1, 100)).await?;
    dead_letter_next(cx, &mut sub, n).await?;
    Ok(sub.close().await?)
}

/// Moves the next `n` messages to the dead letters.
pub(crate) async fn dead_letter_next(cx: &Cx, sub: &mut Subscription, n: usize) -> Outcome {
    let mut moves = JoinSet::new();
    for i in 0..n {
        let delivery = cx.recv(sub).await.during(format!("delivery {i} of {n} to dead-letter"))?;
        moves.spawn(delivery.dead_letter("unwanted", format!("the suite does not want it ({i})")));
    }
    while let Some(moved) = moves.join_next().await {
        moved?.during("dead_letter")?;
    }
    Ok(())
}

/// An envelope with every field set, 40 headers, and all byte values as data.
pub(crate) fn full_envelope(cx: &Cx, q: &Fixture) -> Envelope {
    let mut e = Envelope::new("order.placed", (0..=255u8).cycle().take(1024).collect::<Vec<u8>>())
        .source("/suite/dead-letters")
        .subject("order 7, größer")
        .schema_version(3)
        .data_schema("https://example.com/schemas/order")
        .content_type("application/octet-stream")
        .correlation_id("corr-1")
        .causation_id("cause-1")
        .key("key-7")
        .sequence(42)
        .expires_at(q.bus.now() + Duration::from_secs(3600))
        .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    for i in 0..40 {
        e = e.header(format!("header-{i}"), format!("wert {i} ✓ {}", cx.prefix()));
    }
    e
}
