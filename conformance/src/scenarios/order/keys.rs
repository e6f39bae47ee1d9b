//! Each key arrives in order, one message at a time.

use polybus_core::{Envelope, ErrorKind, Topology};

use super::{ordered_queue, two_subscriptions, typed};
use crate::{
    CallCounter, Cx, During, Need, Outcome, Scenario, ensure_eq, expect_kind, messages, number, scenario,
    scenarios::shared::{KeyOrderLog, consume_with_all, keyed, numbers_of, submit_in_order},
};

pub(super) fn all() -> Vec<Scenario> {
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
    ]
}

async fn eight_consumers(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let lanes = KeyOrderLog::new(1000);
    let mut subs = Vec::new();
    for i in 0..8 {
        subs.push(if i % 2 == 0 { &q } else { &other }.subscribe(10).await?);
    }
    q.publish_all((0..1000).map(|i| keyed(&format!("k{}", i % 100), i / 100))).await?;
    consume_with_all(&cx, &lanes, subs, |_, _| false).await?;
    lanes.all_in_order(100, 10)
}

async fn releases_everywhere(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let lanes = KeyOrderLog::new(240);
    let mut subs = Vec::new();
    for i in 0..8 {
        subs.push(if i % 2 == 0 { &q } else { &other }.subscribe(8).await?);
    }
    q.publish_all((0..240).map(|i| keyed(&format!("k{}", i % 12), i / 12))).await?;
    // A consumer that takes the source over may see attempt 1 again, so the release goes by what was seen here.
    consume_with_all(&cx, &lanes, subs, |n, seen| n % 3 == 0 && seen == 1).await?;
    lanes.all_in_order(12, 20)
}

async fn one_at_a_time(cx: Cx) -> Outcome {
    let q = cx.queue(ordered_queue()).await?;
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
    let q = cx.queue(ordered_queue()).await?;
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
    let q = cx.queue(ordered_queue()).await?;
    // The first half has runs of one key, the second half alternates.
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

async fn no_key(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let bus = cx.setup(Topology::new().queue("q", ordered_queue())).counting(&calls).open().await?;
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
    let q = cx.queue(ordered_queue()).await?;
    q.publish_all((0..keys.len() * 5).map(|i| keyed(keys[i % keys.len()], i / keys.len()))).await?;
    let mut sub = q.subscribe(100).await?;
    let got = cx.drain(&mut sub, keys.len() * 5).await?;
    for key in keys {
        ensure_eq!(numbers_of(&got, key)?, (0..5).collect::<Vec<_>>(), "order of {key:?}");
    }
    Ok(())
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
