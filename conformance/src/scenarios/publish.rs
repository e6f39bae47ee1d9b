//! Publishing: single, batch, many at once, missing addresses, sizes.

use polybus_core::QueueSpec;

use crate::{Cx, Outcome, Scenario, ensure_eq, message, scenario};

/// All of them.
pub fn all() -> Vec<Scenario> {
    vec![scenario("publish/single", "One published message arrives once, equal in every part.", single)]
}

async fn single(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent = message(7).source("suite").header("tenant", "acme");
    q.publish(&sent).await?;
    let mut sub = q.subscribe(10).await?;
    let got = cx.recv(&mut sub).await?;
    ensure_eq!(got.envelope(), &sent, "what arrived");
    ensure_eq!(got.attempt(), 1, "attempt");
    got.ack().await?;
    let extra = cx.sentinel(&q.bus, &q.address, "test.sentinel", &mut sub).await?;
    ensure_eq!(extra.len(), 0, "messages besides the one published");
    Ok(())
}
