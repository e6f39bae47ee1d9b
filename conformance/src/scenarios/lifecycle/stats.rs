//! Counting and purging messages.

use std::time::Duration;

use polybus_core::{Bus, ErrorKind, Outgoing, QueueSpec, Source, Topology, topology::SourceStats};

use crate::{
    CountAccuracy, Cx, During, Failure, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, messages,
    numbers, scenario, scenarios::shared::take_rest,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario("lifecycle/stats", "Stats tell ready, in flight, delayed and dead-lettered messages.", stats)
            .needs(|_, c| Need::stats(c)),
        scenario("lifecycle/stats-missing", "Stats of a missing queue are NotFound.", stats_missing)
            .needs(|_, c| Need::stats(c)),
        scenario("lifecycle/purge", "Purge deletes what is ready, tells how many, and spares the rest.", purge)
            .needs(|_, c| Need::purge(c)),
        scenario("lifecycle/purge-missing", "Purge of a missing queue is NotFound.", purge_missing)
            .needs(|_, c| Need::purge(c)),
    ]
}

/// Waits for these counts. A count that the broker does not tell is not compared.
async fn counted(cx: &Cx, bus: &Bus, source: &Source, wanted: [u64; 4], when: &str) -> Outcome {
    let matches = |s: &SourceStats| {
        let found = [s.ready, s.in_flight, s.delayed, s.dead_lettered];
        found.iter().zip(wanted).all(|(found, wanted)| found.is_none_or(|n| n == wanted))
    };
    let stats = bus.stats(source).await.during(format!("stats {when}"))?;
    if matches(&stats) {
        return Ok(());
    }
    // Deliveries and acks may still be on their way, even where counts are exact.
    let deadline =
        cx.deadline() + if cx.target().counts == CountAccuracy::Eventual { cx.patience() * 2 } else { Duration::ZERO };
    let mut stats = stats;
    while tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
        stats = bus.stats(source).await.during(format!("stats {when}"))?;
        if matches(&stats) {
            return Ok(());
        }
    }
    Err(Failure::new(format!("{when}: wanted ready, in flight, delayed, dead-lettered {wanted:?}, found {stats:?}")))
}

async fn stats(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let can = cx.capabilities().clone();
    counted(&cx, &q.bus, &q.source, [0, 0, 0, 0], "of an empty queue").await?;
    let known = q.bus.stats(&q.source).await?;
    ensure!(known.ready.is_some(), "stats tell nothing of what is ready: {known:?}");
    q.publish_all(messages(0..7)).await?;
    counted(&cx, &q.bus, &q.source, [7, 0, 0, 0], "after seven publishes").await?;
    let mut sub = q.subscribe(3).await?;
    let mut held = cx.collect(&mut sub, 3).await?;
    counted(&cx, &q.bus, &q.source, [4, 3, 0, 0], "with three held").await?;
    // From here on the consumer takes nothing more.
    sub.stop().await?;
    counted(&cx, &q.bus, &q.source, [4, 3, 0, 0], "with the consumer stopped").await?;
    let mut dead = 0;
    if let (true, Some(d)) = (can.dead_letters, held.pop()) {
        d.dead_letter("poison", "").await?;
        dead = 1;
        counted(&cx, &q.bus, &q.source, [4, 2, 0, dead], "with a dead letter").await?;
        counted(&cx, &q.bus, &q.source.dead_letters(), [4, 2, 0, dead], "asked of the dead letters").await?;
    }
    let (mut delayed, mut hidden) = (0, 0);
    // The delay is longer than the scenario takes on a slow machine, as far as the broker can delay.
    let (minute, most) = (Duration::from_secs(60), Duration::from_secs(600));
    let long = |can: Option<Duration>| can.filter(|can| *can >= minute).map(|can| can.min(most));
    if let Some(by) = long(can.max_retry_delay)
        && let Some(d) = held.pop()
    {
        d.retry_after(by).await?;
        delayed = 1;
        // Where a broker delays a retry by holding it, the retry counts as in flight.
        let holds_on = can.lock_range.is_some_and(|(_, most)| can.max_retry_delay <= Some(most));
        let held_back = u64::from(cx.target().lock_outlives.is_some() && holds_on);
        (delayed, hidden) = (delayed - held_back, held_back);
        let in_flight = held.len() as u64 + hidden;
        counted(&cx, &q.bus, &q.source, [4, in_flight, delayed, dead], "with a retry").await?;
    }
    if let Some(by) = long(can.max_queue_delay) {
        q.publish(Outgoing::from(message(9)).delay(by)).await?;
        delayed += 1;
        counted(&cx, &q.bus, &q.source, [4, held.len() as u64 + hidden, delayed, dead], "with a delayed publish")
            .await?;
    }
    for d in held {
        d.ack().await?;
    }
    counted(&cx, &q.bus, &q.source, [4, hidden, delayed, dead], "in the end").await
}

async fn stats_missing(cx: Cx) -> Outcome {
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).undeclared().open().await?;
    let e = expect_kind!(bus.stats(Source::queue("q")).await, ErrorKind::NotFound);
    ensure_eq!(e.context("source"), Some("queue:q"), "what the error names");
    Ok(())
}

async fn purge(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let exact = cx.target().counts == CountAccuracy::Exact;
    q.publish_all(messages(0..7)).await?;
    let mut sub = q.subscribe(2).await?;
    let mut held = cx.collect(&mut sub, 2).await?;
    sub.stop().await?;
    let purged = q.bus.purge(&q.source).await?;
    if exact {
        ensure_eq!(purged, 5, "purged");
    }
    if let (true, Some(d)) = (cx.capabilities().dead_letters, held.pop()) {
        d.dead_letter("poison", "").await?;
        let again = q.bus.purge(&q.source).await?;
        ensure_eq!(again, 0, "purged again");
        let purged = q.bus.purge(&q.source.dead_letters()).await.during("purge of the dead letters")?;
        if exact {
            ensure_eq!(purged, 1, "purged dead letters");
        }
        let mut dead = q.subscribe_dead(2).await?;
        cx.expect_none(&mut dead).await?;
    }
    for d in held {
        d.release().await.during("what was held is spared")?;
    }
    let mut sub = q.subscribe(10).await?;
    let spared = if cx.capabilities().dead_letters { 1 } else { 2 };
    ensure_eq!(take_rest(&cx, &mut sub, spared).await?.len(), spared, "what was held and released");
    q.publish(message(9)).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![9], "after the purge");
    Ok(())
}

async fn purge_missing(cx: Cx) -> Outcome {
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).undeclared().open().await?;
    expect_kind!(bus.purge(Source::queue("q")).await, ErrorKind::NotFound);
    Ok(())
}
