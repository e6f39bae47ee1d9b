//! Dead letters with equal ids or wrong clocks, and letters that hide others.

use std::{sync::Arc, time::Duration};

use polybus_core::{
    BusOptions, Envelope, QueueSpec, Topology,
    clock::{Clock, SystemClock},
};
use time::OffsetDateTime;

use super::{adds_up, take_live_and_dead};
use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure_eq, message, messages, number, scenario,
    scenarios::shared::{dead_letter_all, dead_letter_next},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "redrive/equal-ids",
            "Messages of one id and one source are messages of their own: all are dead-lettered, moved in one call, and back.",
            equal_ids,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/equal-ids-again",
            "Two messages of one id and source live through retry, dead letter and redrive, twice: two in the end.",
            equal_ids_again,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/equal-ids-ordered",
            "The same of two keys on an ordered source.",
            equal_ids_ordered,
        )
        .needs(|_, c| Need::redrive(c).and(Need::ordered(c))),
        scenario(
            "redrive/clocks",
            "Letters that died by clocks of five minutes and of centuries ahead are moved like all others, in one call.",
            clocks,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/behind-a-kept-one",
            "On an ordered source a filtered redrive moves what lies behind kept letters of the same key; they stay, set aside in their order where they would hide others.",
            behind_a_kept_one,
        )
        .needs(|_, c| Need::redrive(c).and(Need::ordered(c))),
    ]
}

/// Messages that all have the same id and source, as a cron job may write them.
fn jobs(n: usize) -> Vec<Envelope> {
    (0..n).map(|n| message(n).id("nightly").source("/cron")).collect()
}

async fn equal_ids(cx: Cx) -> Outcome {
    const N: usize = 5;
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sent = jobs(N);
    // The same id under another source is another message.
    sent.push(message(N).id("nightly").source("/other"));
    dead_letter_all(&cx, &q, sent).await?;
    let report = q.bus.redrive(&q.source, |_| true, usize::MAX).await.during("redrive")?;
    adds_up(&report)?;
    ensure_eq!(report.moved, N as u64 + 1, "moved in one call: {report}");
    let (live, _) = take_live_and_dead(&cx, &q, N + 1, 0).await?;
    ensure_eq!(live, (0..=N).collect::<Vec<_>>(), "what is back");
    Ok(())
}

async fn equal_ids_again(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(jobs(2)).await?;
    again(&cx, &q).await
}

async fn equal_ids_ordered(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().ordered(true)).await?;
    // The sources differ here: a broker that deduplicates may drop a second message of the same id and source.
    let sent = jobs(2).into_iter().enumerate().map(|(n, m)| m.source(format!("/{n}")).key(format!("key-{n}")));
    q.publish_all(sent).await?;
    again(&cx, &q).await
}

/// Retries, dead-letters and redrives both messages side by side, twice.
async fn again(cx: &Cx, q: &Fixture) -> Outcome {
    let mut sub = q.subscribe(2).await?;
    for round in 0..2 {
        if cx.capabilities().max_retry_delay.is_some() {
            for delivery in cx.collect(&mut sub, 2).await.during(format!("round {round}"))? {
                delivery.retry_after(Duration::from_millis(200)).await?;
            }
        }
        dead_letter_next(cx, &mut sub, 2).await.during(format!("dead-lettering in round {round}"))?;
        let report = q.bus.redrive(&q.source, |_| true, usize::MAX).await.during("redrive")?;
        ensure_eq!(report.moved, 2, "moved in round {round}: {report}");
    }
    sub.close().await?;
    let (live, _) = take_live_and_dead(cx, q, 2, 0).await?;
    ensure_eq!(live, [0, 1], "what is back");
    Ok(())
}

/// A clock that is ahead by this much.
struct AheadClock(Arc<dyn Clock>, time::Duration);

impl Clock for AheadClock {
    fn now(&self) -> OffsetDateTime {
        self.0.now().saturating_add(self.1)
    }
}

async fn clocks(cx: Cx) -> Outcome {
    let topology = Topology::new().queue("q", QueueSpec::new());
    let q = Fixture::queue(cx.bus(topology.clone()).await?);
    let ahead = [time::Duration::ZERO, time::Duration::minutes(5), time::Duration::days(365 * 9_999)];
    for (i, ahead) in ahead.into_iter().enumerate() {
        let clock = Arc::new(AheadClock(Arc::new(SystemClock), ahead));
        let setup = cx.setup(topology.clone()).undeclared().options(|o: &mut BusOptions| o.clock = Some(clock));
        let worker = Fixture::queue(setup.open().await?);
        dead_letter_all(&cx, &worker, messages(2 * i..2 * i + 2)).await.during(format!("a worker {ahead} ahead"))?;
    }
    let report = q.bus.redrive(&q.source, |_| true, usize::MAX).await.during("redrive")?;
    adds_up(&report)?;
    ensure_eq!(report.moved, 6, "moved in one call: {report}");
    let (live, _) = take_live_and_dead(&cx, &q, 6, 0).await?;
    ensure_eq!(live, [0, 1, 2, 3, 4, 5], "what is back");
    Ok(())
}

async fn behind_a_kept_one(cx: Cx) -> Outcome {
    const N: usize = 40;
    let q = cx.queue(QueueSpec::new().ordered(true)).await?;
    let key = |n: usize| if n.is_multiple_of(2) { "even" } else { "odd" };
    q.publish_all((0..N).map(|n| message(n).key(key(n))).collect::<Vec<_>>()).await?;
    let mut sub = q.subscribe(20).await?;
    for n in 0..N {
        cx.recv(&mut sub).await.during(format!("letter {n}"))?.dead_letter("unwanted", "").await?;
    }
    sub.close().await?;
    let report = q.bus.redrive(&q.source, |e| number(e).is_ok_and(|n| n >= 12), usize::MAX).await.during("redrive")?;
    adds_up(&report)?;
    ensure_eq!((report.moved, report.kept), (N as u64 - 12, 12), "moved and kept: {report}");
    let mut dead = q.subscribe_dead(1).await?;
    let mut left = Vec::new();
    for e in cx.drain(&mut dead, 12).await.during("what was kept")? {
        left.push(number(&e)?);
    }
    dead.close().await?;
    // What comes back together may come in any order, unless kept letters block the queue.
    if !cx.capabilities().kept_letters_block {
        left.sort_unstable();
    }
    for rest in [0, 1] {
        let of_key: Vec<usize> = left.iter().copied().filter(|n| n % 2 == rest).collect();
        ensure_eq!(of_key, (0..12).filter(|n| n % 2 == rest).collect::<Vec<_>>(), "kept ones of {}", key(rest));
    }
    let (live, _) = take_live_and_dead(&cx, &q, N - 12, 0).await?;
    ensure_eq!(live, (12..N).collect::<Vec<_>>(), "what is back");
    Ok(())
}
