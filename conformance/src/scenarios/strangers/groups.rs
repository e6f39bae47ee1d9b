//! Sessions and message groups of other producers: what orders messages at the broker stays with them.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Delivery, QueueSpec};

use super::{group, redrive};
use crate::{Cx, During, Failure, Need, Outcome, RawMessage, Scenario, ensure, ensure_eq, number, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/own-groups",
            "Foreign messages of several groups: each group in order, also after a release; a redriven one keeps its group.",
            own_groups,
        )
        .needs(|t, c| Need::carries(t, &RawMessage::body("0").group("g")).and(Need::ordered(c)).and(Need::redrive(c)))
        .timeout(Duration::from_secs(120)),
    ]
}

const GROUPS: usize = 3;

const EACH: usize = 4;

async fn own_groups(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().ordered(true).max_deliveries(20)).await?;
    for n in 0..EACH {
        for g in 0..GROUPS {
            let raw = RawMessage::body((g * EACH + n).to_string()).group(&format!("group-{g}"));
            cx.inject(&q.bus, &q.address, raw).await?;
        }
    }
    let mut sub = q.subscribe(GROUPS).await?;
    let mut next: BTreeMap<usize, usize> = BTreeMap::new();
    let mut released = [false; GROUPS];
    for _ in 0..GROUPS * EACH + GROUPS {
        let delivery = cx.recv(&mut sub).await?;
        let (g, n) = place(&delivery)?;
        let wanted = next.entry(g).or_default();
        ensure_eq!(n, *wanted, "what comes next of group {g}");
        if !std::mem::replace(&mut released[g], true) {
            delivery.release().await?;
            continue;
        }
        *wanted += 1;
        match n + 1 == EACH {
            true => delivery.dead_letter("unfit", "").await.during("dead_letter")?,
            false => delivery.ack().await?,
        }
    }
    redrive(&q, GROUPS).await?;
    for _ in 0..GROUPS {
        let delivery = cx.recv(&mut sub).await.during("after the redrive")?;
        let (g, n) = place(&delivery)?;
        ensure_eq!(n, EACH - 1, "what was redriven");
        let shown = group(delivery.envelope()).ok_or_else(|| Failure::new("its group is not shown"))?;
        ensure!(shown.contains(&format!("group-{g}")), "group {shown:?} of a message of group {g}");
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await
}

fn place(delivery: &Delivery) -> Outcome<(usize, usize)> {
    let number = number(delivery.envelope())?;
    Ok((number / EACH, number % EACH))
}
