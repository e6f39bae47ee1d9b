//! Redriving moves dead letters back to where they came from.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{Envelope, Error, ErrorKind, QueueSpec, Source, SubscriptionSpec, TopicSpec, redrive::RedriveEnd};
use tokio::{sync::oneshot, task::AbortHandle, time::timeout};

use super::redrive_rest;
use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, message, messages, number,
    numbers, scenario,
    scenarios::shared::{dead_letter_all, full_envelope},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "redrive/all",
            "Redriven messages are back in their source, as published, at attempt 1, and gone from the dead letters.",
            redrive_all,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/filtered",
            "A filtered redrive moves what matches; the rest is there again at its end, with what it told.",
            filtered,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario("redrive/limited", "A redrive moves no more than its limit, and says how many.", limited)
            .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/interrupted",
            "A redrive that is dropped half way loses and doubles nothing; the next one moves the rest.",
            interrupted,
        )
        .needs(|_, c| Need::redrive(c))
        .timeout(Duration::from_secs(90)),
        scenario(
            "redrive/fresh-attempts",
            "A message that died of max_deliveries is handled max_deliveries times again after a redrive.",
            fresh_attempts,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/refused",
            "Redriving dead letters of dead letters is InvalidArgument, of a missing queue NotFound.",
            refused,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/again-and-again",
            "A message is dead-lettered and redriven three times within five minutes: no broker swallows a copy, each is counted.",
            again_and_again,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "redrive/siblings",
            "A redrive on a subscription is for it alone: its sibling gets nothing, whatever the types.",
            redrive_siblings,
        )
        .needs(|_, c| Need::redrive(c).and(Need::topics(c))),
    ]
}

async fn again_and_again(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent = message(1).source("suite").key("k").header("tenant", "acme");
    q.publish(&sent).await?;
    let mut sub = q.subscribe(1).await?;
    let mut dead = q.subscribe_dead(1).await?;
    for round in 0..3 {
        let delivery = cx.recv(&mut sub).await.during(format!("round {round}"))?;
        ensure_eq!(delivery.attempt(), 1, "attempt in round {round}");
        delivery.dead_letter(format!("reason-{round}"), format!("detail {round}")).await?;
        let letter = cx.recv(&mut dead).await.during(format!("dead letter of round {round}"))?;
        ensure_eq!(letter.envelope(), &sent, "dead letter of round {round}");
        let Some(info) = letter.dead_letter_info() else { fail!("nothing is told in round {round}") };
        ensure_eq!(info.reason.as_deref(), Some(&*format!("reason-{round}")), "reason");
        ensure_eq!(info.detail.as_deref(), Some(&*format!("detail {round}")), "detail");
        ensure_eq!(info.attempt, Some(1), "attempt at which it was given up");
        ensure_eq!(info.redriven, round, "how often it had been redriven");
        letter.release().await?;
        // This consumer must not hold it while it is moved.
        dead.close().await?;
        let moved = q.bus.redrive(&q.source, |_| true, 1).await.during(format!("redrive {round}"))?;
        ensure_eq!(moved.moved, 1, "how many were moved");
        dead = q.subscribe_dead(1).await?;
    }
    let last = cx.recv(&mut sub).await?;
    ensure_eq!(last.envelope(), &sent, "message in the end");
    ensure_eq!(last.dead_letter_info(), None, "what it tells in the end");
    last.ack().await?;
    cx.expect_none(&mut sub).await?;
    cx.expect_none(&mut dead).await
}

async fn redrive_siblings(cx: Cx) -> Outcome {
    let t = cx
        .topic(
            TopicSpec::new()
                .subscription("a", SubscriptionSpec::new().types(["test.*"]))
                .subscription("b", SubscriptionSpec::new())
                .subscription("c", SubscriptionSpec::new().types(["test.message"])),
        )
        .await?;
    let mut others = Vec::new();
    for name in ["b", "c"] {
        others.push(t.bus.subscribe(t.subscription(name)).prefetch(10).open().await?);
    }
    dead_letter_all(&cx, &t, messages(0..5)).await?;
    for sub in &mut others {
        cx.drain(sub, 5).await?;
    }
    let moved = t.bus.redrive(&t.source, |_| true, usize::MAX).await.during("redrive")?;
    ensure_eq!(moved.moved, 5, "how many were moved");
    let mut sub = t.subscribe(10).await?;
    let mut back = numbers(&cx.drain(&mut sub, 5).await?)?;
    back.sort_unstable();
    ensure_eq!(back, [0, 1, 2, 3, 4], "what is back");
    for sub in &mut others {
        cx.expect_none(sub).await.during(format!("sibling {}", sub.source()))?;
    }
    cx.expect_none(&mut sub).await
}

/// Acks everything in a source. Fails if a message comes twice.
async fn drain_all(cx: &Cx, q: &Fixture, source: Source, n: usize) -> Outcome<BTreeSet<usize>> {
    let mut sub = q.bus.subscribe(source).prefetch(n.max(1)).open().await?;
    let got = numbers(&cx.drain(&mut sub, n).await?)?;
    cx.expect_none(&mut sub).await?;
    sub.close().await?;
    let set: BTreeSet<usize> = got.iter().copied().collect();
    ensure_eq!(set.len(), n, "different messages in {got:?}");
    Ok(set)
}

async fn redrive_all(cx: Cx) -> Outcome {
    const N: usize = 30;
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sent: Vec<Envelope> = messages(0..N - 1).into_iter().map(|m| m.source("suite")).collect();
    sent.push(full_envelope(&cx, &q));
    dead_letter_all(&cx, &q, sent.clone()).await?;
    let moved = q.bus.redrive(&q.source, |_| true, usize::MAX).await.during("redrive")?;
    ensure_eq!(moved.moved, N as u64, "how many were moved");
    let mut sub = q.subscribe(N).await?;
    let mut ids = BTreeSet::new();
    for delivery in cx.collect(&mut sub, N).await? {
        let Some(sent) = sent.iter().find(|e| e.id == delivery.envelope().id) else { fail!("unknown: {delivery:?}") };
        ensure_eq!(delivery.envelope(), sent, "redriven message");
        ensure_eq!(delivery.attempt(), 1, "attempt after the redrive");
        ensure_eq!(delivery.dead_letter_info(), None, "what it tells of having been a dead letter");
        ensure!(ids.insert(sent.id.clone()), "came twice: {delivery:?}");
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await?;
    let mut dead = q.subscribe_dead(5).await?;
    cx.expect_none(&mut dead).await?;
    dead.close().await?;
    let again = q.bus.redrive(&q.source, |_| true, usize::MAX).await.during("second redrive")?;
    ensure_eq!((again.read, again.moved), (0, 0), "moved from nothing");
    Ok(())
}

async fn filtered(cx: Cx) -> Outcome {
    const N: usize = 20;
    let q = cx.queue(QueueSpec::new()).await?;
    let tenant = |n: usize| if n.is_multiple_of(4) { "acme" } else { "other" };
    dead_letter_all(&cx, &q, (0..N).map(|n| message(n).header("tenant", tenant(n))).collect()).await?;
    let wanted: BTreeSet<usize> = (0..N).filter(|n| tenant(*n) == "acme").collect();
    let acme = |e: &Envelope| e.headers.get("tenant") == Some("acme");
    let moved = q.bus.redrive(&q.source, acme, usize::MAX).await.during("redrive")?;
    let rest = N - wanted.len();
    ensure_eq!((moved.moved, moved.kept), (wanted.len() as u64, rest as u64), "how many were moved and kept: {moved}");
    ensure_eq!(drain_all(&cx, &q, q.source.clone(), wanted.len()).await?, wanted, "what is back");

    let mut dead = q.subscribe_dead(rest).await?;
    for letter in cx.collect(&mut dead, rest).await.during("what the filter refused")? {
        ensure!(!wanted.contains(&number(letter.envelope())?), "moved, yet still a dead letter: {letter:?}");
        let Some(info) = letter.dead_letter_info() else { fail!("nothing is told any more") };
        ensure_eq!(info.reason.as_deref(), Some("unwanted"), "reason");
        ensure_eq!(info.attempt, Some(1), "attempt at which it was given up");
        letter.ack().await?;
    }
    cx.expect_none(&mut dead).await
}

async fn limited(cx: Cx) -> Outcome {
    const N: usize = 12;
    let q = cx.queue(QueueSpec::new()).await?;
    dead_letter_all(&cx, &q, messages(0..N)).await?;
    let mut seen = 0;
    let moved = q
        .bus
        .redrive(
            &q.source,
            |_| {
                seen += 1;
                true
            },
            0,
        )
        .await
        .during("redrive of none")?;
    ensure_eq!((moved.moved, seen), (0, 0), "moved and looked at with a limit of 0");
    let moved = q.bus.redrive(&q.source, |_| true, 5).await.during("redrive of 5")?;
    ensure_eq!((moved.moved, moved.ended), (5, RedriveEnd::Limit), "how many were moved, and why it ended");
    let first = drain_all(&cx, &q, q.source.clone(), 5).await?;
    let moved = q.bus.redrive(&q.source, |e| number(e).is_ok_and(|n| n != 11), 100).await.during("redrive of 100")?;
    let there = 7 - usize::from(!first.contains(&11));
    ensure_eq!(moved.moved, there as u64, "how many were moved the second time");
    let second = drain_all(&cx, &q, q.source.clone(), there).await?;
    let left = drain_all(&cx, &q, q.source.dead_letters(), 7 - there).await?;
    let all: BTreeSet<usize> = first.into_iter().chain(second).chain(left).collect();
    ensure_eq!(all, (0..N).collect::<BTreeSet<_>>(), "all messages");
    Ok(())
}

async fn interrupted(cx: Cx) -> Outcome {
    const N: usize = 200;
    let q = cx.queue(QueueSpec::new()).await?;
    dead_letter_all(&cx, &q, messages(0..N)).await?;
    let (abort, aborted) = oneshot::channel::<AbortHandle>();
    let redrive = tokio::spawn({
        let (bus, source) = (q.bus.clone(), q.source.clone());
        async move {
            let itself = aborted.await.map_err(|_| Error::invalid("nobody interrupts"))?;
            let mut looked_at = 0;
            let filter = move |_: &Envelope| {
                looked_at += 1;
                if looked_at == 20 {
                    itself.abort();
                }
                true
            };
            bus.redrive(&source, filter, usize::MAX).await
        }
    });
    let _ = abort.send(redrive.abort_handle());
    match timeout(cx.patience(), redrive).await {
        Err(_) => fail!("the redrive does not get to its 20th letter"),
        Ok(Err(e)) if e.is_cancelled() => {}
        Ok(ended) => fail!("the redrive ended before it could be interrupted: {ended:?}"),
    }
    let back = redrive_rest(&cx, &q, N).await?;
    let twice: Vec<usize> = back.windows(2).filter(|w| w[0] == w[1]).map(|w| w[0]).collect();
    ensure!(twice.is_empty(), "of {N} these came twice: {twice:?}");
    drain_all(&cx, &q, q.source.dead_letters(), 0).await?;
    Ok(())
}

async fn fresh_attempts(cx: Cx) -> Outcome {
    const N: u32 = 3;
    let q = cx.queue(QueueSpec::new().max_deliveries(N)).await?;
    q.publish(message(1)).await?;
    let mut sub = q.subscribe(1).await?;
    for round in 0..3 {
        for attempt in 1..=N {
            let delivery = cx.recv(&mut sub).await.during(format!("round {round}, attempt {attempt}"))?;
            ensure_eq!(delivery.attempt(), attempt, "attempt in round {round}");
            delivery.release().await?;
        }
        cx.expect_none(&mut sub).await?;
        let moved = q.bus.redrive(&q.source, |_| true, 10).await.during(format!("redrive {round}"))?;
        ensure_eq!(moved.moved, 1, "how many were moved in round {round}");
    }
    ensure_eq!(cx.drain(&mut sub, 1).await?.len(), 1, "messages in the end");
    cx.expect_none(&mut sub).await
}

async fn refused(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let dead = q.source.dead_letters();
    expect_kind!(q.bus.redrive(&dead, |_| true, 1).await, ErrorKind::InvalidArgument, "redrive of dead letters");
    let missing = Source::queue("not-there");
    expect_kind!(q.bus.redrive(&missing, |_| true, 1).await, ErrorKind::NotFound, "redrive of a missing queue");
    Ok(())
}
