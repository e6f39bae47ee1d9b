//! A key that is blocked stalls no other key, also where its backlog fills the prefetch window.

use std::time::Duration;

use polybus_core::Envelope;
use tokio::time::Instant;

use super::{holds_at_the_broker, ordered_queue, two_subscriptions, typed};
use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, number, numbers, scenario,
    scenarios::shared::{keyed, numbers_of},
};

pub(super) fn all() -> Vec<Scenario> {
    let ordered = |s: Scenario| s.needs(|_, c| Need::ordered(c));
    vec![
        ordered(scenario(
            "order/blocked-key",
            "An unsettled message does not stall the other keys as long as its own fit the prefetch.",
            blocked_key,
        )),
        scenario(
            "order/blocked-sibling",
            "A key that is blocked in one subscription goes on in the other.",
            blocked_sibling,
        )
        .needs(|_, c| Need::ordered_topics(c)),
        ordered(scenario(
            "order/full-window",
            "A blocked key whose backlog is larger than the prefetch: once it is settled, all go on in order.",
            full_window,
        )),
        ordered(scenario(
            "order/full-window-retry",
            "A retried head in front of more than the prefetch comes back in place, and all go on in order.",
            full_window_retry,
        )),
        ordered(scenario(
            "order/failed-head",
            "A head that fails in front of nine buffered siblings holds them back, and does not burn their attempts.",
            failed_head,
        )),
        ordered(scenario(
            "order/one-key-hog",
            "A key with 500 messages waiting does not keep the others from being handed out for ever.",
            one_key_hog,
        )),
    ]
}

async fn blocked_key(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let mut sub = q.subscribe(50).await?;
    q.publish_all((0..20).map(|n| keyed("blocked", n))).await?;
    let held = cx.recv(&mut sub).await?;
    ensure_eq!(number(held.envelope())?, 0, "the first of the key");
    q.publish_all((0..100).map(|i| keyed(&format!("k{}", i % 10), i / 10))).await?;
    let meanwhile = cx.drain(&mut sub, 100).await.during("while another key is blocked")?;
    for k in 0..10 {
        ensure_eq!(numbers_of(&meanwhile, &format!("k{k}"))?, (0..10).collect::<Vec<_>>(), "order of k{k}");
    }
    held.ack().await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 19).await?)?, (1..20).collect::<Vec<_>>(), "the key once it may go on");
    Ok(())
}

async fn blocked_sibling(cx: Cx) -> Outcome {
    let t = cx.topic(two_subscriptions()).await?;
    t.publish_all([1, 3, 5].map(|n| typed("a", n))).await?;
    let mut all = t.subscribe(10).await?;
    let mut odd = t.bus.subscribe(t.subscription("odd")).prefetch(10).open().await?;
    let held = cx.recv(&mut all).await?;
    ensure_eq!(numbers(&cx.drain(&mut odd, 3).await?)?, vec![1, 3, 5], "the other subscription");
    held.release().await?;
    ensure_eq!(numbers(&cx.drain(&mut all, 3).await?)?, vec![1, 3, 5], "the blocked one, after a release");
    cx.expect_none(&mut odd).await
}

/// Publishes more of a key than the prefetch and one message of another key, and returns the held head of the key.
async fn head_of_backlog(
    cx: &Cx,
    q: &Fixture,
    sub: &mut polybus_core::Subscription,
) -> Outcome<polybus_core::Delivery> {
    q.publish_all((0..25).map(|n| keyed("a", n))).await?;
    let held = cx.recv(sub).await?;
    ensure_eq!(number(held.envelope())?, 0, "the head");
    q.publish(keyed("b", 0)).await?;
    Ok(held)
}

async fn full_window(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let mut sub = q.subscribe(4).await?;
    let held = head_of_backlog(&cx, &q, &mut sub).await?;
    let mut got = Vec::new();
    if holds_at_the_broker(&cx) {
        got = cx.drain(&mut sub, 1).await.during("another key, beside the blocked one")?;
        ensure_eq!(got[0].key.as_deref(), Some("b"), "what goes on");
    }
    held.ack().await?;
    let left = 25 - got.len();
    got.extend(cx.drain(&mut sub, left).await?);
    ensure_eq!(numbers_of(&got, "a")?, (1..25).collect::<Vec<_>>(), "order of the key that was blocked");
    ensure_eq!(numbers_of(&got, "b")?, vec![0], "the other key");
    Ok(())
}

async fn full_window_retry(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let mut sub = q.subscribe(4).await?;
    let held = head_of_backlog(&cx, &q, &mut sub).await?;
    let (delay, began) = (Duration::from_secs(1), Instant::now());
    held.retry_after(delay).await?;
    let mut got = Vec::new();
    while got.len() < 26 {
        let d = cx.recv(&mut sub).await?;
        if got.iter().all(|e: &Envelope| e.key.as_deref() != Some("a")) && d.envelope().key.as_deref() == Some("a") {
            ensure!(began.elapsed() >= delay, "the key went on after {:?}", began.elapsed());
            ensure_eq!(d.attempt(), 2, "attempt of the retried head");
        }
        got.push(d.envelope().clone());
        d.ack().await?;
    }
    ensure_eq!(numbers_of(&got, "a")?, (0..25).collect::<Vec<_>>(), "order of the key that was held");
    cx.expect_none(&mut sub).await
}

async fn failed_head(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all((0..10).map(|n| keyed("a", n))).await?;
    let mut sub = q.subscribe(10).await?;
    let (delay, mut asked) = (Duration::from_millis(400), None::<Instant>);
    for attempt in 1..=4 {
        // The head comes first: until it is settled no other message of its key may come.
        let head = cx.recv(&mut sub).await?;
        let waited = asked.map(|asked| asked.elapsed());
        ensure_eq!((number(head.envelope())?, head.attempt()), (0, attempt), "the head and its attempt");
        ensure!(waited.is_none_or(|waited| waited >= delay), "the head came again after {waited:?}, not {delay:?}");
        if attempt < 4 {
            asked = Some(Instant::now());
            head.retry_after(delay).await?;
        } else {
            head.ack().await?;
        }
    }
    for n in 1..10 {
        let d = cx.recv(&mut sub).await?;
        ensure_eq!((number(d.envelope())?, d.attempt()), (n, 1), "number and attempt");
        d.ack().await?;
    }
    Ok(())
}

async fn one_key_hog(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all((0..500).map(|n| keyed("hog", n))).await?;
    q.publish_all((0..10).map(|n| keyed(&format!("small{n}"), n))).await?;
    let mut sub = q.subscribe(50).await?;
    let got = cx.drain(&mut sub, 510).await?;
    ensure_eq!(numbers_of(&got, "hog")?, (0..500).collect::<Vec<_>>(), "order of the hog");
    ensure_eq!(got.iter().filter(|e| e.key.as_deref() != Some("hog")).count(), 10, "the others");
    Ok(())
}
