//! Order per key.

use std::{collections::BTreeMap, time::Duration};

use polybus_core::{Envelope, ErrorKind, Outgoing, QueueSpec, SubscriptionSpec, TopicSpec, Topology};
use tokio::time::Instant;

use super::{
    lanes::{Lanes, group, keyed, numbers_of, submit_in_order},
    tools::roomy_delay,
};
use crate::{
    Calls, Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, messages, number, numbers, scenario,
};

/// All of them.
pub fn all() -> Vec<Scenario> {
    let ordered = |s: Scenario| s.needs(|_, c| Need::ordered(c));
    vec![
        ordered(scenario(
            "order/eight-consumers",
            "Eight consumers on two connections share 100 keys of 10 messages: each key in order, one at a time.",
            eight_consumers,
        )),
        ordered(scenario(
            "order/releases-everywhere",
            "Eight consumers that release every third delivery still see each key in order, one at a time.",
            releases_everywhere,
        )),
        ordered(scenario(
            "order/one-at-a-time",
            "While a message of a key is unsettled the next of that key is not handed out, to nobody.",
            one_at_a_time,
        )),
        ordered(scenario(
            "order/as-submitted",
            "Publishes that are under way at the same time are stored per key in the order of their calls.",
            as_submitted,
        )),
        ordered(scenario("order/large-batch", "One batch of 1,000 messages keeps each key's order.", large_batch)),
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
        ordered(scenario(
            "order/blocked-key",
            "An unsettled message does not stall the other keys as long as its own fit the prefetch.",
            blocked_key,
        )),
        ordered(scenario(
            "order/no-key",
            "Publishing without a key is InvalidArgument, for that message alone, before any I/O.",
            no_key,
        )),
        ordered(scenario(
            "order/odd-keys",
            "Keys of 1 to 256 bytes of any text arrive as they are, in order.",
            odd_keys,
        )),
        scenario(
            "order/on-a-topic",
            "Both subscriptions of an ordered topic see each key in order, the filtered one too.",
            on_a_topic,
        )
        .needs(|_, c| Need::ordered_topics(c)),
        scenario(
            "order/blocked-sibling",
            "A key that is blocked in one subscription goes on in the other.",
            blocked_sibling,
        )
        .needs(|_, c| Need::ordered_topics(c)),
    ]
}

fn ordered() -> QueueSpec {
    QueueSpec::new().ordered(true).max_deliveries(50)
}

async fn eight_consumers(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let lanes = Lanes::new(1000);
    let mut subs = Vec::new();
    for i in 0..8 {
        subs.push(if i % 2 == 0 { &q } else { &other }.subscribe(10).await?);
    }
    q.publish_all((0..1000).map(|i| keyed(&format!("k{}", i % 100), i / 100))).await?;
    group(&cx, &lanes, subs, |_, _| false).await?;
    lanes.all_in_order(100, 10)
}

async fn releases_everywhere(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let lanes = Lanes::new(240);
    let mut subs = Vec::new();
    for i in 0..8 {
        subs.push(if i % 2 == 0 { &q } else { &other }.subscribe(8).await?);
    }
    q.publish_all((0..240).map(|i| keyed(&format!("k{}", i % 12), i / 12))).await?;
    // The attempt may be forgotten where the source is taken over, so the release must not depend on it alone.
    group(&cx, &lanes, subs, |n, seen| n % 3 == 0 && seen == 1).await?;
    lanes.all_in_order(12, 20)
}

async fn one_at_a_time(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    q.publish_all((0..5).map(|n| keyed("a", n))).await?;
    let (mut one, mut two) = (q.subscribe(20).await?, other.subscribe(20).await?);
    for n in 0..5 {
        let held = tokio::select! { d = cx.recv(&mut one) => d?, d = cx.recv(&mut two) => d? };
        ensure_eq!(number(held.envelope())?, n, "the next of the key");
        if n < 2 {
            cx.expect_none(&mut one).await.during("while one of the key is unsettled")?;
            cx.expect_none(&mut two).await.during("elsewhere while one of the key is unsettled")?;
        }
        held.ack().await?;
    }
    Ok(())
}

async fn as_submitted(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    let publisher = q.bus.publisher(&q.address).await?;
    let sent: Vec<Envelope> = (0..300).map(|i| keyed(&format!("k{}", i % 3), i / 3)).collect();
    submit_in_order(&publisher, &sent).await?;
    let mut sub = q.subscribe(50).await?;
    let got = cx.drain(&mut sub, 300).await?;
    for key in ["k0", "k1", "k2"] {
        ensure_eq!(numbers_of(&got, key)?, (0..100).collect::<Vec<_>>(), "order of {key}");
    }
    Ok(())
}

async fn large_batch(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
    // Runs of one key as well as alternating ones.
    let key = |i: usize| if i < 500 { format!("k{}", i / 50) } else { format!("k{}", i % 10) };
    q.publish_all((0..1000).map(|i| keyed(&key(i), i))).await?;
    let mut sub = q.subscribe(100).await?;
    let got = cx.drain(&mut sub, 1000).await?;
    for k in 0..10 {
        let k = format!("k{k}");
        let wanted: Vec<usize> = (0..1000).filter(|i| key(*i) == k).collect();
        ensure_eq!(numbers_of(&got, &k)?, wanted, "order of {k}");
    }
    Ok(())
}

async fn after_release(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
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
    let q = cx.queue(ordered()).await?;
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
    let q = cx.queue(ordered()).await?;
    let mut sub = q.subscribe(20).await?;
    q.publish_all((0..4).map(|n| keyed("a", n))).await?;
    let first = cx.recv(&mut sub).await?;
    // Before the retry: only to be handed out and acked do they need its delay.
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
    let q = cx.queue(ordered()).await?;
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
    let q = cx.queue(ordered().max_deliveries(2)).await?;
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
    let q = cx.queue(ordered()).await?;
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
    let q = cx.queue(ordered()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let sent: Vec<Envelope> = (0..30).map(|i| keyed(&format!("k{}", i % 3), i / 3)).collect();
    q.publish_all(sent).await?;
    let mut sub = other.subscribe(20).await?;
    // Each key gets one acked and one held; the rest of the prefetch waits in the client or at the broker.
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
    let q = cx.queue(ordered()).await?;
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

async fn blocked_key(cx: Cx) -> Outcome {
    let q = cx.queue(ordered()).await?;
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

async fn no_key(cx: Cx) -> Outcome {
    let calls = Calls::new();
    let bus = cx.setup(Topology::new().queue("q", ordered())).counting(&calls).open().await?;
    let to = polybus_core::Address::queue("q");
    bus.publish(&to, keyed("a", 0)).await.during("publish with a key")?;
    let before = calls.sent();
    expect_kind!(bus.publish(&to, messages([1]).remove(0)).await, ErrorKind::InvalidArgument);
    expect_kind!(bus.publish(&to, keyed("", 1)).await, ErrorKind::InvalidArgument, "an empty key");
    expect_kind!(bus.publish(&to, keyed(&"k".repeat(257), 1)).await, ErrorKind::InvalidArgument, "257 bytes of key");
    ensure_eq!(calls.sent(), before, "messages that reached the driver");
    let results = bus.publish_all(&to, [keyed("a", 1), messages([2]).remove(0), keyed("b", 3)]).await;
    let kinds: Vec<_> = results.iter().map(|r| r.as_ref().err().map(polybus_core::Error::kind)).collect();
    ensure_eq!(kinds, vec![None, Some(ErrorKind::InvalidArgument), None], "results of the batch");
    Ok(())
}

async fn odd_keys(cx: Cx) -> Outcome {
    let long = "x".repeat(256);
    let wide = "é".repeat(128);
    let keys = ["1", "a b", "slash/and\\", "q:1*#.?%_", "日本語", "'\"", "Ünï", &long, &wide];
    let q = cx.queue(ordered()).await?;
    q.publish_all((0..keys.len() * 5).map(|i| keyed(keys[i % keys.len()], i / keys.len()))).await?;
    let mut sub = q.subscribe(100).await?;
    let got = cx.drain(&mut sub, keys.len() * 5).await?;
    for key in keys {
        ensure_eq!(numbers_of(&got, key)?, (0..5).collect::<Vec<_>>(), "order of {key:?}");
    }
    Ok(())
}

fn two_subscriptions() -> TopicSpec {
    TopicSpec::new()
        .ordered(true)
        .subscription("all", SubscriptionSpec::new().max_deliveries(50))
        .subscription("odd", SubscriptionSpec::new().max_deliveries(50).types(["n.odd.*"]))
}

fn typed(key: &str, n: usize) -> Envelope {
    keyed(key, n).edit(|p| p.event_type = ["n.even.x", "n.odd.x"][n % 2].into())
}

async fn on_a_topic(cx: Cx) -> Outcome {
    let t = cx.topic(two_subscriptions()).await?;
    t.publish_all((0..200).map(|i| typed(&format!("k{}", i % 10), i / 10))).await?;
    let mut all = t.subscribe(30).await?;
    let mut odd = t.bus.subscribe(t.subscription("odd")).prefetch(30).open().await?;
    let (all, odd) = (cx.drain(&mut all, 200).await?, cx.drain(&mut odd, 100).await?);
    for k in 0..10 {
        let key = format!("k{k}");
        ensure_eq!(numbers_of(&all, &key)?, (0..20).collect::<Vec<_>>(), "order of {key}");
        let wanted: Vec<usize> = (0..20).filter(|n| n % 2 == 1).collect();
        ensure_eq!(numbers_of(&odd, &key)?, wanted, "order of {key} where the even ones are filtered out");
    }
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
