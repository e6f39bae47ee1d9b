//! Sizes, how batches form, and publishes that are given up.

use std::time::Duration;

use polybus_core::{
    Address, Bus, Envelope, ErrorKind, Outgoing, QueueSpec, RetrySafety, Source, SubscriptionSpec, TopicSpec, Topology,
    driver::Batching,
};
use tokio::time::{Instant, timeout};

use crate::{
    CallCounter, Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, fail, message, messages,
    scenario,
    scenarios::shared::{expect_same, publish_each, take_rest_with},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "publish/oversize",
            "An oversize message is PayloadTooLarge before any I/O, and its neighbours still go.",
            oversize_on_a_queue,
        )
        .needs(|_, c| Need::queue_limit(c)),
        scenario(
            "publish/oversize-on-a-topic",
            "An oversize message on a topic is PayloadTooLarge before any I/O, and its neighbours still go.",
            oversize_on_a_topic,
        )
        .needs(|_, c| Need::topics(c).and(Need::when(c.max_topic_payload.is_some(), "no known size limit"))),
        scenario(
            "publish/byte-limit",
            "A batch of more bytes than the broker takes at once is split, and all of it arrives.",
            byte_limit,
        ),
        scenario(
            "publish/within-limits",
            "Batches keep to the driver's limits of messages, bytes and calls at once, and are batches at all.",
            within_limits,
        ),
        scenario(
            "publish/no-answer",
            "A publish without an answer to its timeout is a Timeout, MayDuplicate if it was sent.",
            no_answer,
        ),
        scenario(
            "publish/cancelled",
            "Dropped publishes give their share of the waiting room back, and tear no message.",
            cancelled,
        )
        // Up to 1,600 messages, each acked in a round trip of its own.
        .timeout(Duration::from_secs(180)),
        scenario(
            "publish/huge-headers",
            "40 headers of 8 KiB are refused before any I/O, and the connection lives.",
            huge_headers,
        ),
    ]
}

const LIMIT: usize = 64 * 1024;

async fn limited(cx: &Cx, topology: Topology, calls: &CallCounter) -> Outcome<Bus> {
    cx.setup(topology).parameter("max_message_size", "64KiB").counting(calls).open().await
}

async fn oversize(cx: Cx, f: Fixture, calls: CallCounter) -> Outcome {
    let big = |n: usize| Envelope::new("test.big", vec![b'x'; n]);
    f.publish(message(0)).await?;
    let before = calls.total();
    for size in [LIMIT + 1, 4 * LIMIT, 20 << 20] {
        let e = expect_kind!(f.bus.publish(&f.address, big(size)).await, ErrorKind::PayloadTooLarge, "{size} bytes");
        ensure_eq!(e.retry(), RetrySafety::Never, "retry");
        ensure!(e.to_string().contains(&LIMIT.to_string()), "the error does not name the limit of {LIMIT}: {e}");
    }
    ensure_eq!(calls.total(), before, "calls that reached the driver");

    let batch = vec![message(1), big(LIMIT + 1), message(2), message(3), big(LIMIT * 2), message(4)];
    let results = f.bus.publish_all(&f.address, batch.clone()).await;
    for (i, result) in results.iter().enumerate() {
        let is_big = batch[i].data.len() > LIMIT;
        match result {
            Err(e) if is_big && e.kind() == ErrorKind::PayloadTooLarge => {}
            Ok(_) if !is_big => {}
            other => crate::fail!("result {i} of {} bytes: {other:?}", batch[i].data.len()),
        }
    }
    ensure_eq!(results.len(), batch.len(), "results");
    let mut sub = f.subscribe(10).await?;
    let mut got = crate::numbers(&cx.drain(&mut sub, 5).await?)?;
    got.sort_unstable();
    ensure_eq!(got, [0, 1, 2, 3, 4], "the neighbours");
    cx.expect_none(&mut sub).await
}

async fn oversize_on_a_queue(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let bus = limited(&cx, Topology::new().queue("q", QueueSpec::new()), &calls).await?;
    ensure_eq!(bus.capabilities().max_queue_payload, Some(LIMIT), "the limit that the URL sets");
    let f = Fixture { bus, address: Address::queue("q"), source: Source::queue("q") };
    oversize(cx, f, calls).await
}

async fn oversize_on_a_topic(cx: Cx) -> Outcome {
    let calls = CallCounter::new();
    let spec = TopicSpec::new().subscription("a", SubscriptionSpec::new());
    let bus = limited(&cx, Topology::new().topic("t", spec), &calls).await?;
    ensure_eq!(bus.capabilities().max_topic_payload, Some(LIMIT), "the limit that the URL sets");
    let f = Fixture { bus, address: Address::topic("t"), source: Source::subscription("t", "a") };
    oversize(cx, f, calls).await
}

async fn byte_limit(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    // Half of the limit leaves room for what the encoding adds.
    let size = cx.capabilities().max_queue_payload.map_or(200 << 10, |most| (most / 2).min(200 << 10));
    let fill = |n: usize| Envelope::new("test.big", vec![u8::try_from(n % 251).unwrap_or(0); size]);
    let sent: Vec<Envelope> = (0..40).map(fill).collect();
    q.publish_all(sent.clone()).await?;
    let mut sub = q.subscribe(10).await?;
    let got = cx.drain(&mut sub, sent.len()).await?;
    expect_same(&sent, &got, "the batch")?;
    for envelope in &got {
        let was = sent.iter().find(|e| e.id == envelope.id);
        ensure!(was.is_some_and(|e| e.data == envelope.data), "the payload of {envelope:?} is not what was sent");
    }
    cx.expect_none(&mut sub).await
}

async fn slow(cx: &Cx, calls: &CallCounter) -> Outcome<Fixture> {
    let setup = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(calls);
    let bus = setup.options(|o| (o.max_pending_bytes, o.publish_timeout) = (ROOM, PATIENCE)).open().await?;
    Ok(Fixture { bus, address: Address::queue("q"), source: Source::queue("q") })
}

const ROOM: usize = 256 << 10;

const PATIENCE: Duration = Duration::from_secs(120);

fn filled(n: usize) -> Envelope {
    Envelope::new("test.big", vec![b'x'; n])
}

async fn within_limits(cx: Cx) -> Outcome {
    let limits = Batching::new(7, 20_000, 2);
    let calls = CallCounter::new().narrow(limits).slow(Duration::from_millis(5));
    let q = slow(&cx, &calls).await?;
    // Many small messages, some of which three fill a batch, and some that are larger than a batch.
    let size = |i: usize| match i % 20 {
        3 => 30_000,
        4..=9 => 5_500,
        _ => 10,
    };
    let sent: Vec<Envelope> = (0..200).map(|i| filled(size(i))).collect();
    let (one, rest) = sent.split_at(100);
    let (each, all) = tokio::join!(
        publish_each(&q.bus, one.iter().map(|m| (&q.address, m))),
        q.bus.publish_all(&q.address, rest.to_vec())
    );
    for (i, result) in each?.into_iter().chain(all).enumerate() {
        result.during(format!("publish {i}"))?;
    }
    let largest = calls.largest();
    ensure!(largest.entries <= limits.entries, "{} messages in a batch, {} allowed", largest.entries, limits.entries);
    ensure!(largest.bytes <= limits.bytes, "{} bytes in a batch, {} allowed", largest.bytes, limits.bytes);
    ensure!(largest.in_flight <= limits.in_flight, "{} under way, {} allowed", largest.in_flight, limits.in_flight);
    ensure_eq!(largest.in_flight, limits.in_flight, "batches under way at most");
    ensure!(calls.sends() < calls.sent() / 2, "{} messages took {} calls", calls.sent(), calls.sends());
    let mut sub = q.subscribe(50).await?;
    expect_same(&sent, &cx.drain(&mut sub, sent.len()).await?, "all sizes")?;
    cx.expect_none(&mut sub).await
}

async fn no_answer(cx: Cx) -> Outcome {
    let calls = CallCounter::new().slow(Duration::from_secs(3600));
    let setup = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls);
    // The limit leaves the first ones time to reach the driver.
    let limit = cx.lateness(Duration::from_secs(1));
    let bus = setup.options(|o| o.publish_timeout = limit).open().await?;
    let (to, sent) = (Address::queue("q"), messages(0..20));
    // This comes before the clock starts: opening the sender would use up the time of the publishes.
    let deadline = cx.deadline();
    while let Err(e) = bus.publisher(&to).await {
        ensure!(Instant::now() < deadline, "the sender cannot be opened: {e:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let started = Instant::now();
    let results = publish_each(&bus, sent.iter().map(|m| (&to, m))).await?;
    let took = started.elapsed();
    let most = limit + cx.lateness(Duration::from_secs(2));
    ensure!(took >= limit && took < most, "a timeout of {limit:?} took {took:?}");
    let mut unsure = 0;
    for (i, result) in results.into_iter().enumerate() {
        let e = expect_kind!(result, ErrorKind::Timeout, "publish {i}");
        match e.retry() {
            RetrySafety::MayDuplicate => unsure += 1,
            // It waited behind the others and was never sent.
            RetrySafety::Safe => {}
            other => fail!("publish {i} says retry = {other:?}: {e:?}"),
        }
    }
    // A publish that said Safe must not be sent later, nor anything once the bus is closed.
    let Ok(closed) = timeout(cx.patience(), bus.close()).await else { fail!("close waits for what was given up") };
    closed.during("close")?;
    ensure_eq!(unsure, calls.sent(), "publishes that say MayDuplicate, and messages that reached the driver");
    ensure!(unsure > 0, "no message reached the driver");
    Ok(())
}

async fn cancelled(cx: Cx) -> Outcome {
    let calls = CallCounter::new().slow(Duration::from_millis(1));
    let q = slow(&cx, &calls).await?;
    let mut kept = vec![filled(1)];
    q.publish(&kept[0]).await?;
    for round in 0..200 {
        let publishes: Vec<_> = (0..8).map(|_| q.bus.publish(&q.address, Outgoing::from(filled(16 << 10)))).collect();
        for mut publish in publishes {
            // The publish is polled once, or for a short time, and then dropped.
            let _ = timeout(Duration::from_micros(round % 4 * 400), &mut publish).await;
        }
    }
    kept.extend((0..8).map(|_| filled(60 << 10)));
    for (i, result) in q.bus.publish_all(&q.address, &kept[1..]).await.into_iter().enumerate() {
        result.during(format!("publish {i} after many were dropped"))?;
    }
    let mut sub = q.subscribe(50).await?;
    let got = take_rest_with(&cx, &mut sub, &kept).await?;
    let of = |size: usize| got.iter().filter(|e| e.data.len() == size).count();
    ensure_eq!((of(1), of(60 << 10)), (1, 8), "those that were not dropped");
    ensure_eq!(of(1) + of(60 << 10) + of(16 << 10), got.len(), "messages of a size that was sent");
    ensure!(of(16 << 10) <= 1600, "more copies than were published");
    Ok(())
}

async fn huge_headers(cx: Cx) -> Outcome {
    let calls = crate::CallCounter::new();
    let bus = cx.setup(Topology::new().queue("q", QueueSpec::new())).counting(&calls).open().await?;
    let q = Fixture { bus, address: Address::queue("q"), source: Source::queue("q") };
    q.publish(message(0)).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.recv(&mut sub).await?;
    let before = calls.total();
    let huge = || (0..40).fold(message(1), |m, i| m.header(format!("h{i}"), "x".repeat(8 * 1024)));
    for _ in 0..3 {
        expect_kind!(q.bus.publish(&q.address, huge()).await, ErrorKind::PayloadTooLarge);
    }
    ensure_eq!(calls.total(), before, "calls that reached the driver");
    let results = q.bus.publish_all(&q.address, vec![message(2), huge(), message(3)]).await;
    ensure!(results[0].is_ok() && results[2].is_ok(), "the neighbours: {results:?}");
    ensure!(results[1].is_err(), "huge headers were Ok in a batch");
    ensure!(held.is_held(), "the delivery in hand was lost, and with it the connection");
    held.ack().await.during("ack after the refusal")?;
    let mut got = crate::numbers(&cx.drain(&mut sub, 2).await?)?;
    got.sort_unstable();
    ensure_eq!(got, [2, 3], "the neighbours");
    cx.expect_none(&mut sub).await
}
