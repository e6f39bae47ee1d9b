//! Dead letters and redrive, the hard ones.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use polybus_core::{QueueSpec, SubscriptionSpec, TopicSpec};
use tokio::time::timeout;

use super::{
    dead_letters::{bury, bury_next},
    tools::{lifetime, past},
};
use crate::{
    Cx, During, Need, Outcome, Raw, RawValue, Scenario, ensure, ensure_eq, fail, message, messages, number, numbers,
    scenario,
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    let mut all = vec![
        scenario(
            "dead_letters_hard/again-and-again",
            "A message is dead-lettered and redriven three times within five minutes: no broker swallows a copy, each is counted.",
            again_and_again,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "dead_letters_hard/poison-returns",
            "A redrive ends though a consumer dead-letters everything again at once; nothing is lost.",
            poison_returns,
        )
        .needs(|_, c| Need::redrive(c)),
        scenario(
            "dead_letters_hard/redrive-siblings",
            "A redrive on a subscription is for it alone: its sibling gets nothing, whatever the types.",
            redrive_siblings,
        )
        .needs(|_, c| Need::redrive(c).and(Need::topics(c))),
        scenario(
            "dead_letters_hard/25-releases",
            "A dead letter released 25 times is still there, with what it told: max_deliveries does not apply.",
            releases,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "dead_letters_hard/foreign-counters",
            "A foreign message's own counters do not count: it starts at attempt 1 and gets all its attempts.",
            foreign_counters,
        )
        .needs(|t, c| Need::dead_letters(c).and(Need::raw(t))),
        scenario(
            "dead_letters_hard/outlives-expiry",
            "A dead letter outlives the expiry of its message, which is still told.",
            outlives_expiry,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "dead_letters_hard/while-consuming",
            "A redrive runs while its source is consumed: each message is handled once.",
            redrive_while_consuming,
        )
        .needs(|_, c| Need::redrive(c)),
    ];
    all.extend(super::dead_letter_moves::all());
    all
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
        // Nobody else may hold it while it is moved.
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

async fn poison_returns(cx: Cx) -> Outcome {
    const N: usize = 8;
    let q = cx.queue(QueueSpec::new()).await?;
    bury(&cx, &q, messages(0..N)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut sub = q.subscribe(2).await?;
    let consumer = tokio::spawn({
        let stop = stop.clone();
        async move {
            while !stop.load(Ordering::SeqCst) {
                match timeout(Duration::from_millis(100), sub.next()).await {
                    Ok(Some(delivery)) => delivery?.dead_letter("poison", "").await?,
                    Ok(None) => break,
                    Err(_) => {}
                }
            }
            sub.close().await?;
            Outcome::Ok(())
        }
    });
    let redriven = timeout(cx.patience(), q.bus.redrive(&q.source, |_| true, usize::MAX)).await;
    let Ok(moved) = redriven else { fail!("the redrive does not end while poison returns") };
    let moved = moved.during("redrive")?.moved;
    ensure!((1..=N as u64).contains(&moved), "moved {moved} of {N}");
    // All come to rest in the dead letters once the consumer has had them all.
    let mut dead = q.subscribe_dead(N).await?;
    let mut seen = BTreeSet::new();
    let mut poison = 0;
    for letter in cx.collect(&mut dead, N).await.during("dead letters in the end")? {
        ensure!(seen.insert(number(letter.envelope())?), "twice in the dead letters: {letter:?}");
        poison += u64::from(letter.dead_letter_info().and_then(|d| d.reason.as_deref()) == Some("poison"));
        letter.ack().await?;
    }
    ensure_eq!(poison, moved, "of those that were moved, how many came back");
    stop.store(true, Ordering::SeqCst);
    consumer.await?.during("the consumer")?;
    cx.expect_none(&mut dead).await?;
    let mut sub = q.subscribe(1).await?;
    cx.expect_none(&mut sub).await
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
    bury(&cx, &t, messages(0..5)).await?;
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

async fn releases(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(2)).await?;
    bury(&cx, &q, messages(0..1)).await?;
    let mut dead = q.subscribe_dead(1).await?;
    for i in 0..25 {
        let letter = cx.recv(&mut dead).await.during(format!("before release {i}"))?;
        let Some(info) = letter.dead_letter_info() else { fail!("nothing is told before release {i}") };
        ensure_eq!(info.reason.as_deref(), Some("unwanted"), "reason before release {i}");
        ensure_eq!(info.attempt, Some(1), "attempt at which it was given up, before release {i}");
        if i % 5 == 4 {
            drop(letter);
        } else {
            letter.release().await.during(format!("release {i}"))?;
        }
    }
    ensure_eq!(numbers(&cx.drain(&mut dead, 1).await?)?, [0], "dead letter in the end");
    cx.expect_none(&mut dead).await?;
    let mut sub = q.subscribe(1).await?;
    cx.expect_none(&mut sub).await
}

async fn foreign_counters(cx: Cx) -> Outcome {
    const N: u32 = 3;
    let q = cx.queue(QueueSpec::new().max_deliveries(N)).await?;
    let raw = Raw::body("5")
        .message_id("foreign-1")
        .header("x-delivery-count", RawValue::Int(7))
        .header("x-death", RawValue::Nested)
        .header("x-first-death-queue", RawValue::Text("elsewhere".into()))
        .header("x-first-death-reason", RawValue::Text("rejected".into()));
    cx.inject(&q.bus, &q.address, raw).await?;
    let mut sub = q.subscribe(1).await?;
    for round in 0..2 {
        for attempt in 1..=N {
            let delivery = cx.recv(&mut sub).await.during(format!("round {round}, attempt {attempt}"))?;
            ensure_eq!(delivery.attempt(), attempt, "attempt in round {round}");
            ensure_eq!(number(delivery.envelope())?, 5, "body");
            match attempt {
                1 if cx.capabilities().max_retry_delay.is_some() => {
                    delivery.retry_after(Duration::from_millis(200)).await?;
                }
                _ => delivery.release().await?,
            }
        }
        cx.expect_none(&mut sub).await?;
        if !cx.capabilities().redrive {
            return Ok(());
        }
        let moved = q.bus.redrive(&q.source, |_| true, 10).await.during("redrive")?;
        ensure_eq!(moved.moved, 1, "how many were moved");
    }
    Ok(())
}

async fn outlives_expiry(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.bus.publisher(&q.address).await.during("open the sender")?;
    let expires = q.bus.now() + lifetime(&cx, Duration::from_secs(2));
    let sent = vec![message(1).source("suite").expires_at(expires)];
    bury(&cx, &q, sent.clone()).await.during("before it expires")?;
    past(&q.bus, expires).await;
    let mut dead = q.subscribe_dead(1).await?;
    let letter = cx.recv(&mut dead).await.during("after it has expired")?;
    ensure_eq!(letter.envelope(), &sent[0], "dead letter");
    Ok(letter.ack().await?)
}

async fn redrive_while_consuming(cx: Cx) -> Outcome {
    const N: usize = 60;
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..N)).await?;
    let mut sub = q.subscribe(10).await?;
    bury_next(&cx, &mut sub, N / 2).await?;
    // Half of them wait live, half are redriven under the consumer's hands.
    let (moved, drained) = tokio::join!(q.bus.redrive(&q.source, |_| true, usize::MAX), cx.drain(&mut sub, N));
    ensure_eq!(moved.during("redrive")?.moved, N as u64 / 2, "how many were moved");
    let mut got = numbers(&drained?)?;
    got.sort_unstable();
    ensure_eq!(got, (0..N).collect::<Vec<_>>(), "all messages");
    cx.expect_none(&mut sub).await
}
