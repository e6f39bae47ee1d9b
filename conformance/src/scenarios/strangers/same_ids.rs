//! Missing ids, and ids that many messages share: a message is known by its place at the broker, never by its id alone.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Delivery, Envelope, QueueSpec, Subscription};

use super::redrive;
use crate::{Cx, During, Fixture, Need, Outcome, RawMessage, Scenario, ensure_eq, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/same-ids",
            "Foreign messages of one id, and without any: all retried, dead-lettered and redriven, none taken for another.",
            foreign,
        )
        .needs(|t, c| Need::raw(t).and(Need::redrive(c))),
        scenario(
            "strangers/ids-of-two-sources",
            "One id of two sources: both messages are retried, dead-lettered and redriven, neither taken for the other.",
            two_sources,
        )
        .needs(|_, c| Need::redrive(c)),
    ]
}

const EACH: usize = 5;

async fn foreign(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(20)).await?;
    for _ in 0..EACH {
        cx.inject(&q.bus, &q.address, RawMessage::body("the same job")).await?;
        cx.inject(&q.bus, &q.address, RawMessage::body("another job").message_id("job")).await?;
    }
    fates(&cx, &q, &[("the same job", EACH), ("another job", EACH)]).await
}

async fn two_sources(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(20)).await?;
    let of = |source: &str| Envelope::new("test.message", source.to_owned()).source(source).id("42");
    q.publish_all([of("/one"), of("/two")]).await?;
    fates(&cx, &q, &[("/one", 1), ("/two", 1)]).await
}

/// Takes all messages through a retry, the dead letters and a redrive. As many of each body must come each time.
async fn fates(cx: &Cx, f: &Fixture, sent: &[(&str, usize)]) -> Outcome {
    let n = sent.iter().map(|(_, n)| n).sum();
    let mut sub = f.subscribe(n).await?;
    if cx.capabilities().max_retry_delay.is_some() {
        // All at once, so that a copy of one is made while the others are still there.
        let held = all_of(cx, &mut sub, sent).await.during("as they were sent")?;
        for delivery in held {
            delivery.retry_after(Duration::from_secs(1)).await.during("retry")?;
        }
    }
    for delivery in all_of(cx, &mut sub, sent).await.during("retried")? {
        delivery.dead_letter("unfit", "").await.during("dead_letter")?;
    }
    let mut dead = f.subscribe_dead(n).await?;
    for letter in all_of(cx, &mut dead, sent).await.during("dead-lettered")? {
        letter.release().await?;
    }
    dead.close().await?;
    redrive(f, n).await?;
    for delivery in all_of(cx, &mut sub, sent).await.during("redriven")? {
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await
}

async fn all_of(cx: &Cx, sub: &mut Subscription, sent: &[(&str, usize)]) -> Outcome<Vec<Delivery>> {
    let all = cx.collect(sub, sent.iter().map(|(_, n)| n).sum()).await?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for delivery in &all {
        *counts.entry(String::from_utf8_lossy(&delivery.envelope().data).into_owned()).or_default() += 1;
    }
    let wanted = sent.iter().map(|(body, n)| ((*body).to_owned(), *n)).collect();
    ensure_eq!(counts, wanted, "how many of each body came");
    Ok(all)
}
