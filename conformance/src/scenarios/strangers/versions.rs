//! Two versions of one program on one queue, which do not agree on its settings.

use std::collections::BTreeSet;

use polybus_core::{QueueSpec, Source, Topology};
use tokio::task::JoinSet;

use crate::{Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, messages, number, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/two-limits",
            "Two versions with different max_deliveries on one queue: poison ends in the dead letters, none is lost.",
            two_limits,
        )
        .needs(|_, c| Need::dead_letters(c)),
    ]
}

const N: usize = 20;

async fn two_limits(cx: Cx) -> Outcome {
    let old = cx.queue(QueueSpec::new().max_deliveries(2)).await?;
    let spec = Topology::new().queue("q", QueueSpec::new().max_deliveries(5));
    let new = Fixture { source: Source::queue("q"), ..old.on(cx.setup(spec).drifting().open().await?) };
    old.publish_all(messages(0..N)).await?;
    let mut consumers = JoinSet::new();
    let stop = switch();
    for f in [&old, &new] {
        let mut sub = f.subscribe(1).await?;
        let mut stopped = stop.subscribe();
        consumers.spawn(async move {
            loop {
                tokio::select! {
                    _ = stopped.changed() => return Outcome::Ok(sub.close().await?),
                    next = sub.next() => {
                        let Some(next) = next else { crate::fail!("a consumer ended") };
                        next?.release().await.during("release")?;
                    }
                }
            }
        });
    }
    let mut dead = new.subscribe_dead(N).await?;
    let mut seen = BTreeSet::new();
    for letter in cx.collect(&mut dead, N).await.during("dead letters")? {
        ensure!(seen.insert(number(letter.envelope())?), "came twice: {letter:?}");
        let info = letter.dead_letter_info().cloned().unwrap_or_default();
        ensure_eq!(info.reason.as_deref(), Some("max-deliveries-exceeded"), "reason");
        ensure!(info.attempt.is_none_or(|n| (2..=6).contains(&n)), "given up at attempt {:?}", info.attempt);
        letter.ack().await?;
    }
    stop.send_replace(true);
    while let Some(ended) = consumers.join_next().await {
        ended??;
    }
    let mut sub = new.subscribe(5).await?;
    cx.expect_none(&mut sub).await
}

/// A switch with which each consumer ends the other.
fn switch() -> tokio::sync::watch::Sender<bool> {
    tokio::sync::watch::Sender::new(false)
}
