//! Which message of a key comes next once the one before it was settled, has expired, or lost its consumer.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Envelope, ErrorKind, Outgoing};
use tokio::time::Instant;

use super::ordered_queue;
use crate::{
    Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, number, numbers, scenario,
    scenarios::shared::{keyed, numbers_of, roomy_delay},
};

pub(super) fn all() -> Vec<Scenario> {
    let ordered = |s: Scenario| s.needs(|_, c| Need::ordered(c));
    vec![
        ordered(scenario(
            "order/after-release",
            "A released message comes again before the others of its key, with its attempt counted.",
            after_release,
        )),
        ordered(scenario(
            "order/after-drop",
            "A dropped delivery comes again before the others of its key.",
            after_drop,
        )),
        ordered(scenario(
            "order/after-retry",
            "A message to be retried later is held in place: its key waits, other keys go on.",
            after_retry,
        )),
        scenario("order/after-dead-letter", "A dead-lettered message lets its key go on.", after_dead_letter)
            .needs(|_, c| Need::ordered(c).and(Need::dead_letters(c))),
        scenario(
            "order/after-last-attempt",
            "A message that used up its attempts lets its key go on, and is never handed out once more.",
            after_last_attempt,
        )
        .needs(|_, c| Need::ordered(c).and(Need::dead_letters(c))),
        ordered(scenario("order/after-expiry", "An expired message lets its key go on.", after_expiry)),
        ordered(scenario(
            "order/after-close",
            "A consumer that closes with unsettled messages gives them back without reordering a key.",
            after_close,
        )),
        scenario("order/after-crash", "A consumer killed with SIGKILL reorders no key.", after_crash)
            .needs(|t, c| Need::ordered(c).and(Need::processes(t))),
        scenario(
            "order/dead-letters-keep-keys",
            "Redriven dead letters of an ordered source come back with their keys, each once.",
            redriven,
        )
        .needs(|_, c| Need::ordered(c).and(Need::redrive(c))),
    ]
}

async fn after_release(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all((0..6).map(|i| keyed(["a", "b"][i % 2], i / 2))).await?;
    let mut sub = q.subscribe(10).await?;
    let mut seen: BTreeMap<String, Vec<(usize, u32)>> = BTreeMap::new();
    for _ in 0..12 {
        let d = cx.recv(&mut sub).await?;
        let (key, n) = (d.envelope().key.as_deref().unwrap_or_default().to_owned(), number(d.envelope())?);
        let attempt = d.attempt();
        seen.entry(key).or_default().push((n, attempt));
        if attempt == 1 {
            d.release().await?;
        } else {
            d.ack().await?;
        }
    }
    let wanted = vec![(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2)];
    ensure_eq!(seen.get("a"), Some(&wanted), "numbers and attempts of a");
    ensure_eq!(seen.get("b"), Some(&wanted), "numbers and attempts of b");
    cx.expect_none(&mut sub).await
}

async fn after_drop(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all((0..4).map(|n| keyed("a", n))).await?;
    let mut sub = q.subscribe(10).await?;
    for _ in 0..3 {
        let d = cx.recv(&mut sub).await?;
        ensure_eq!(number(d.envelope())?, 0, "what comes while the first is dropped again and again");
        drop(d);
    }
    ensure_eq!(numbers(&cx.drain(&mut sub, 4).await?)?, vec![0, 1, 2, 3], "the key in the end");
    Ok(())
}

async fn after_retry(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let mut sub = q.subscribe(20).await?;
    q.publish_all((0..4).map(|n| keyed("a", n))).await?;
    let first = cx.recv(&mut sub).await?;
    // These are published before the retry, so that during its delay they only have to be received and acked.
    q.publish_all((0..5).map(|n| keyed("b", n))).await?;
    let (delay, began) = (roomy_delay(&cx), Instant::now());
    first.retry_after(delay).await?;
    let meanwhile = cx.drain(&mut sub, 5).await?;
    ensure_eq!(numbers_of(&meanwhile, "b")?, vec![0, 1, 2, 3, 4], "the other key, while one waits");
    let again = cx.recv_within(&mut sub, delay + cx.patience()).await?;
    let took = began.elapsed();
    ensure_eq!((number(again.envelope())?, again.attempt()), (0, 2), "number and attempt after the delay");
    ensure!(took >= delay, "retried after {took:?}, not {delay:?}");
    again.ack().await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 3).await?)?, vec![1, 2, 3], "the rest of the key");
    Ok(())
}

async fn after_dead_letter(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all((0..4).map(|n| keyed("a", n))).await?;
    let mut sub = q.subscribe(10).await?;
    for n in 0..4 {
        let d = cx.recv(&mut sub).await?;
        ensure_eq!(number(d.envelope())?, n, "the next of the key");
        if n % 2 == 0 {
            d.dead_letter("poison", "even").await?;
        } else {
            d.ack().await?;
        }
    }
    let mut dead = q.subscribe_dead(10).await?;
    let letters = cx.drain(&mut dead, 2).await?;
    let mut got = numbers(&letters)?;
    got.sort_unstable();
    ensure_eq!(got, vec![0, 2], "the dead letters");
    cx.expect_none(&mut sub).await
}

async fn after_last_attempt(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue().max_deliveries(2)).await?;
    q.publish_all((0..3).map(|n| keyed("a", n))).await?;
    let mut sub = q.subscribe(10).await?;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let d = cx.recv(&mut sub).await?;
        seen.push((number(d.envelope())?, d.attempt()));
        if seen.len() <= 2 {
            d.release().await?;
        } else {
            d.ack().await?;
        }
    }
    ensure_eq!(seen, vec![(0, 1), (0, 2), (1, 1), (2, 1)], "numbers and attempts");
    let mut dead = q.subscribe_dead(10).await?;
    let letter = cx.recv(&mut dead).await?;
    ensure_eq!(number(letter.envelope())?, 0, "the dead letter");
    ensure_eq!(letter.envelope().key.as_deref(), Some("a"), "its key");
    letter.ack().await?;
    Ok(())
}

async fn after_expiry(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish(keyed("a", 0)).await?;
    q.publish(Outgoing::from(keyed("a", 1)).expires_in(Duration::from_millis(500))).await?;
    q.publish(keyed("a", 2)).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.recv(&mut sub).await?;
    ensure_eq!(number(held.envelope())?, 0, "the first of the key");
    let expired = q.bus.now() + Duration::from_millis(1200);
    while q.bus.now() <= expired {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    held.ack().await?;
    let next = cx.recv(&mut sub).await?;
    ensure_eq!(number(next.envelope())?, 2, "what follows the expired one");
    next.ack().await?;
    Ok(())
}

async fn after_close(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let sent: Vec<Envelope> = (0..30).map(|i| keyed(&format!("k{}", i % 3), i / 3)).collect();
    q.publish_all(sent).await?;
    let mut sub = other.subscribe(20).await?;
    // Of each key one message is acked and one is held. The rest waits in the client or at the broker.
    let mut acked = Vec::new();
    let mut held = Vec::new();
    while acked.len() < 3 || held.len() < 3 {
        let d = cx.recv(&mut sub).await?;
        if number(d.envelope())? == 0 {
            acked.push(d.envelope().clone());
            d.ack().await?;
        } else {
            held.push(d);
        }
    }
    sub.close().await?;
    for d in held {
        expect_kind!(d.ack().await, ErrorKind::LockLost, "ack after the close");
    }
    other.bus.close().await?;
    let mut next = q.subscribe(20).await?;
    let mut got = Vec::new();
    while got.len() < 27 {
        let d = cx.recv(&mut next).await.during(format!("message {} of 27 after the close", got.len() + 1))?;
        got.push(d.envelope().clone());
        d.ack().await?;
    }
    for key in ["k0", "k1", "k2"] {
        ensure_eq!(numbers_of(&got, key)?, (1..10).collect::<Vec<_>>(), "order of {key} after the close");
    }
    Ok(())
}

async fn after_crash(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all((0..30).map(|i| keyed(&format!("k{}", i % 3), i / 3))).await?;
    let child = cx.child(&q.bus, &q.source, 20, 3).await?;
    child.kill().await?;
    let mut sub = q.subscribe(20).await?;
    let got = cx.drain(&mut sub, 30).await?;
    for key in ["k0", "k1", "k2"] {
        ensure_eq!(numbers_of(&got, key)?, (0..10).collect::<Vec<_>>(), "order of {key} after the crash");
    }
    Ok(())
}

async fn redriven(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all((0..6).map(|i| keyed(["a", "b"][i % 2], i / 2))).await?;
    let mut sub = q.subscribe(10).await?;
    for _ in 0..6 {
        cx.recv(&mut sub).await?.dead_letter("poison", "for a while").await?;
    }
    let moved = q.bus.redrive(&q.source, |_| true, usize::MAX).await?;
    ensure_eq!(moved.moved, 6, "redriven");
    let mut back = Vec::new();
    while back.len() < 6 {
        let d = cx.recv(&mut sub).await?;
        ensure_eq!(d.attempt(), 1, "attempt after the redrive");
        back.push(d.envelope().clone());
        d.ack().await?;
    }
    for key in ["a", "b"] {
        let mut got = numbers_of(&back, key)?;
        got.sort_unstable();
        ensure_eq!(got, vec![0, 1, 2], "what came back of {key}");
    }
    ensure_eq!(numbers(&back)?.len(), 6, "all");
    cx.expect_none(&mut sub).await
}
