//! Entities that other tools declared otherwise than the topology says.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{Envelope, QueueSpec, Source, Topology, topology::DeclareMode};
use tokio::time::{Instant, timeout_at};

use super::{collect_each, redrive};
use crate::{
    Cx, Drift, During, Fixture, Need, Outcome, RawMessage, Scenario, ensure_eq, message, messages, number, scenario,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "strangers/deduplicating-queue",
            "Where the broker drops what it has seen, unknown to the topology: retries and redrives lose nothing.",
            deduplicating,
        )
        .needs(|t, c| Need::drift(t, c, Drift::DuplicateDetection).and(Need::redrive(c))),
        scenario(
            "strangers/sessions-unknown",
            "An ordered queue that the topology takes for a plain one: what it took is handled, or still there.",
            sessions_unknown,
        )
        .needs(|t, c| Need::drift(t, c, Drift::Sessions).and(Need::raw(t)))
        .timeout(Duration::from_secs(120)),
        scenario(
            "strangers/no-dead-letters",
            "Where others made no dead letters, a dead_letter that is not Ok leaves the message where it is.",
            no_dead_letters,
        )
        .needs(|t, c| Need::drift(t, c, Drift::NoDeadLetters).and(Need::dead_letters(c))),
    ]
}

/// A queue that another tool declared with this drift, through a bus that declares nothing.
async fn others(cx: &Cx, spec: QueueSpec, drift: Drift) -> Outcome<Fixture> {
    let topology = Topology::new().queue("q", spec);
    cx.declared_by_others(topology.clone(), drift).await?;
    let setup = cx.setup(topology).undeclared();
    Ok(Fixture::queue(setup.options(|o| o.declare = DeclareMode::Off).open().await?))
}

async fn deduplicating(cx: Cx) -> Outcome {
    const N: usize = 12;
    let q = others(&cx, QueueSpec::new().max_deliveries(20), Drift::DuplicateDetection).await?;
    let foreign = cx.target().raw.is_some();
    let own = if foreign { N / 2 } else { N };
    q.publish_all(messages(0..own)).await?;
    for n in own..N {
        cx.inject(&q.bus, &q.address, RawMessage::body(n.to_string()).message_id(&format!("foreign-{n}"))).await?;
    }
    let mut sub = q.subscribe(N).await?;
    for round in 0..2 {
        if cx.capabilities().max_retry_delay.is_some() {
            for delivery in collect_each(&cx, &mut sub, N).await.during(format!("round {round}"))? {
                delivery.retry_after(Duration::from_secs(1)).await?;
            }
        }
        for delivery in collect_each(&cx, &mut sub, N).await.during(format!("retried, round {round}"))? {
            delivery.dead_letter("unfit", "").await?;
        }
        redrive(&q, N).await.during(format!("round {round}"))?;
    }
    for delivery in collect_each(&cx, &mut sub, N).await.during("in the end")? {
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await
}

async fn sessions_unknown(cx: Cx) -> Outcome {
    const N: usize = 12;
    let wrong = others(&cx, QueueSpec::new().max_deliveries(100), Drift::Sessions).await?;
    let right = Topology::new().queue("q", QueueSpec::new().ordered(true).max_deliveries(100));
    let right = Fixture { source: Source::queue("q"), ..wrong.on(cx.setup(right).undeclared().open().await?) };
    let mut taken = BTreeSet::new();
    for n in 0..N {
        match n % 3 {
            // A publish may be refused here: only what was Ok has to come.
            0 => {
                if wrong.bus.publish(&wrong.address, Envelope::new("test.message", n.to_string())).await.is_err() {
                    continue;
                }
            }
            1 => right.publish(message(n).key("k")).await?,
            _ => cx.inject(&right.bus, &right.address, RawMessage::body(n.to_string())).await?,
        }
        taken.insert(n);
    }
    let mut handled = BTreeSet::new();
    if let Ok(mut sub) = wrong.bus.subscribe(wrong.source.clone()).prefetch(3).open().await {
        // The consumer may get nothing. The timeout is around `next` alone, since an ack that has begun must end.
        let until = Instant::now() + cx.quiet() * 2;
        while let Ok(Some(Ok(delivery))) = timeout_at(until, sub.next()).await {
            let n = number(delivery.envelope())?;
            // Each message is released a few times, but not so often that it is dead-lettered for it.
            match n % 2 == 0 || delivery.attempt() > 3 {
                true => drop(delivery.ack().await.map(|()| handled.insert(n))),
                false => drop(delivery.release().await),
            }
            if handled.len() * 2 >= taken.len() {
                break;
            }
        }
        let _ = sub.close().await;
    }
    let mut sub = right.subscribe(3).await?;
    while handled.len() < taken.len() {
        let delivery = cx.recv(&mut sub).await.during(format!("{} of {} were handled", handled.len(), taken.len()))?;
        handled.insert(number(delivery.envelope())?);
        delivery.ack().await?;
    }
    ensure_eq!(handled, taken, "what was handled");
    Ok(())
}

async fn no_dead_letters(cx: Cx) -> Outcome {
    let q = others(&cx, QueueSpec::new().max_deliveries(100), Drift::NoDeadLetters).await?;
    q.publish_all(messages(0..3)).await?;
    let mut sub = q.subscribe(3).await?;
    for delivery in collect_each(&cx, &mut sub, 3).await? {
        let n = number(delivery.envelope())?;
        let Err(e) = delivery.dead_letter("unfit", "nowhere to put it").await else {
            crate::fail!("a dead_letter of message {n} without dead letters is Ok");
        };
        if let (_, Some(back)) = e.into_parts() {
            back.release().await?;
        }
    }
    for delivery in collect_each(&cx, &mut sub, 3).await.during("what could not be dead-lettered")? {
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await
}
