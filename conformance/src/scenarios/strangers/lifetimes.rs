//! The time to live that other producers give their messages.

use std::time::Duration;

use polybus_core::QueueSpec;

use crate::{Cx, During, Need, Outcome, RawMessage, Scenario, ensure_eq, number, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/own-ttl",
            "A message whose producer said how long it lives is not handed out after that, however often it was retried.",
            own_ttl,
        )
        .needs(|t, c| {
            let retry = Need::retry(c, Duration::from_secs(9));
            Need::carries(t, &RawMessage::body("0").ttl(Duration::from_secs(3600))).and(retry)
        })
        .timeout(Duration::from_secs(90)),
    ]
}

async fn own_ttl(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    // The time to live is long enough for a slow machine to see the message once.
    let (ttl, wait) = (Duration::from_secs(6), Duration::from_secs(9));
    cx.inject(&q.bus, &q.address, RawMessage::body("0").ttl(ttl)).await?;
    cx.inject(&q.bus, &q.address, RawMessage::body("1").ttl(Duration::from_secs(3600))).await?;
    let mut sub = q.subscribe(2).await?;
    let mut short = false;
    while let Ok(delivery) = cx.recv(&mut sub).await {
        let n = number(delivery.envelope())?;
        // On a slow machine it has expired unseen.
        short |= n == 0;
        delivery.retry_after(wait).await.during(format!("retry of message {n}"))?;
        if n == 1 {
            break;
        }
    }
    let mut delivery = cx.recv(&mut sub).await.during("the one that lives long, after its retry")?;
    // It may also be the other message for the first time, which was slower and had not expired.
    if !short && number(delivery.envelope())? == 0 {
        delivery.retry_after(wait).await?;
        delivery = cx.recv(&mut sub).await.during("the one that lives long, after the other")?;
    }
    ensure_eq!(number(delivery.envelope())?, 1, "what comes back: the other one expired while it waited");
    delivery.ack().await?;
    cx.expect_none(&mut sub).await.during("after the time to live")
}
