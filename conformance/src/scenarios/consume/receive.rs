//! Competing consumers, prefetch, cancellation, missing sources.

use std::{collections::BTreeSet, time::Duration};

use polybus_core::{Address, Delivery, ErrorKind, QueueSpec, Source, SubscriptionSpec, TopicSpec, Topology};
use tokio::time::{Instant, timeout};

use crate::{
    Cx, During, Failure, Fixture, Need, Outcome, Scenario,
    drivers::outage_switch::OutageSwitch,
    ensure, ensure_eq, expect_kind, fail, message, messages, number, numbers, scenario,
    scenarios::shared::{expect_same, take_rest, wait_until},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "consume/competing",
            "Two consumers on two connections share a queue: each message goes to one, and both get some.",
            competing,
        ),
        scenario(
            "consume/eight-wait",
            "Eight consumers that wait each get one of eight messages; no wake-up is lost.",
            eight_wait,
        ),
        scenario(
            "consume/poll-returns-early",
            "A consumer that has waited for long gets a message at once, not at the end of its poll.",
            poll_returns_early,
        ),
        scenario(
            "consume/prefetch-bound",
            "A consumer is given no more than its prefetch while it settles nothing; the rest is another's.",
            prefetch_bound,
        ),
        scenario(
            "consume/prefetch-frees",
            "With a prefetch of 1 each settlement, of whatever kind, lets the next message come.",
            prefetch_frees,
        ),
        scenario(
            "consume/cancelled",
            "A receive that is dropped at any time loses nothing and counts no attempt.",
            cancelled,
        ),
        scenario(
            "consume/after-close",
            "A closed subscription ends without an error; what it held is LockLost and comes to others.",
            after_close,
        ),
        scenario(
            "consume/after-bus-close",
            "On a closed bus a subscription yields Closed once and ends.",
            after_bus_close,
        ),
        scenario(
            "consume/stop",
            "A stopped subscription hands out no more; what is in hand can be settled, the rest is others' at once.",
            stop,
        ),
        scenario(
            "consume/dropped-subscription",
            "A dropped subscription gives back what it had not handed out; what is in hand can be settled.",
            dropped_subscription,
        ),
        scenario(
            "consume/missing-queue",
            "Consuming a missing queue is NotFound, at once or as the only item, and creates nothing.",
            missing_queue,
        ),
        scenario(
            "consume/missing-subscription",
            "Consuming a missing subscription, of a topic that is there or not, is NotFound.",
            missing_subscription,
        )
        .needs(|_, c| Need::topics(c)),
        scenario(
            "consume/missing-dead-letters",
            "Consuming the dead letters of a missing queue is NotFound.",
            missing_dead_letters,
        )
        .needs(|_, c| Need::dead_letters(c)),
        scenario(
            "consume/two-of-one-bus",
            "Two subscriptions of one bus to one queue share it, and each settles its own.",
            two_of_one_bus,
        ),
    ]
}

async fn competing(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let (mut one, mut two) = (q.subscribe(5).await?, other.subscribe(5).await?);
    q.publish_all(messages(0..40)).await?;
    // Each holds its full prefetch before anything is settled, so neither can take everything.
    let held = (cx.collect(&mut one, 5).await?, cx.collect(&mut two, 5).await?);
    let mut seen = BTreeSet::new();
    for delivery in held.0.into_iter().chain(held.1) {
        ensure!(seen.insert(number(delivery.envelope())?), "handed out twice: {:?}", delivery.envelope());
        delivery.ack().await?;
    }
    while seen.len() < 40 {
        let delivery = tokio::select! { d = cx.recv(&mut one) => d?, d = cx.recv(&mut two) => d? };
        ensure!(seen.insert(number(delivery.envelope())?), "handed out twice: {:?}", delivery.envelope());
        delivery.ack().await?;
    }
    ensure_eq!(seen, (0..40).collect::<BTreeSet<_>>(), "all messages");
    cx.expect_none(&mut one).await?;
    cx.expect_none(&mut two).await
}

async fn eight_wait(cx: Cx) -> Outcome {
    let watch = OutageSwitch::default();
    let topology = Topology::new().queue("q", QueueSpec::new());
    let q = Fixture::queue(cx.setup(topology).wrap(watch.around()).open().await?);
    let mut waiting = Vec::new();
    for _ in 0..8 {
        let mut sub = q.subscribe(1).await?;
        let cx = cx.clone();
        waiting.push(tokio::spawn(async move {
            let delivery = cx.recv(&mut sub).await?;
            Ok::<_, Failure>((sub, delivery))
        }));
    }
    wait_until(&cx, "eight to wait", || watch.receiving().1 == 8).await?;
    q.publish_all(messages(0..8)).await?;
    let mut held = Vec::new();
    // Nothing is settled before each consumer has a message.
    for (i, waiter) in waiting.into_iter().enumerate() {
        held.push(waiter.await?.during(format!("consumer {i} of 8"))?);
    }
    let seen: BTreeSet<usize> = numbers(held.iter().map(|(_, d)| d.envelope()))?.into_iter().collect();
    ensure_eq!(seen, (0..8).collect::<BTreeSet<_>>(), "what the eight got");
    for (_sub, delivery) in held {
        delivery.ack().await?;
    }
    Ok(())
}

async fn poll_returns_early(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(5).await?;
    for round in 0..3 {
        let waits = async {
            let delivery = cx.recv(&mut sub).await?;
            Ok::<_, Failure>((delivery, Instant::now()))
        };
        let publishes = async {
            tokio::time::sleep(Duration::from_millis(600)).await;
            q.publish(message(round)).await?;
            Ok::<_, Failure>(Instant::now())
        };
        let (got, at) = tokio::join!(waits, publishes);
        let ((delivery, came), at) = (got?, at?);
        ensure_eq!(number(delivery.envelope())?, round, "what came");
        let late = came.saturating_duration_since(at);
        ensure!(late < cx.lateness(Duration::from_secs(3)), "round {round}: it came {late:?} after its publish was Ok");
        delivery.ack().await?;
    }
    Ok(())
}

async fn prefetch_bound(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..60)).await?;
    let mut slow = q.subscribe(5).await?;
    let held = cx.collect(&mut slow, 5).await?;
    cx.expect_none(&mut slow).await.during("a sixth delivery at prefetch 5")?;
    let other = q.on(cx.second_bus(&q.bus).await?);
    let mut quick = other.subscribe(100).await?;
    let mut got = cx.drain(&mut quick, 55).await.during("what the slow consumer may not have")?;
    cx.expect_none(&mut quick).await?;
    for delivery in held {
        got.push(delivery.envelope().clone());
        delivery.ack().await?;
    }
    let seen: BTreeSet<usize> = numbers(&got)?.into_iter().collect();
    ensure_eq!(seen, (0..60).collect::<BTreeSet<_>>(), "all messages");

    // Half of the window is free, and that half is filled again.
    q.publish_all(messages(60..80)).await?;
    drop(quick);
    let mut held = cx.collect(&mut slow, 5).await?;
    for delivery in held.drain(..3) {
        delivery.ack().await?;
    }
    held.extend(cx.collect(&mut slow, 3).await?);
    cx.expect_none(&mut slow).await.during("a sixth delivery after three acks")
}

async fn prefetch_frees(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(10)).await?;
    let buries = cx.capabilities().dead_letters;
    q.publish_all(messages(0..20)).await?;
    let mut sub = q.subscribe(1).await?;
    let mut done = BTreeSet::new();
    let mut given_back = BTreeSet::new();
    while done.len() < 20 {
        let delivery = cx.recv(&mut sub).await.during(format!("after {} were done", done.len()))?;
        let n = number(delivery.envelope())?;
        match n % 4 {
            1 if given_back.insert(n) => delivery.release().await.during("release")?,
            2 if given_back.insert(n) => drop(delivery),
            3 if buries => {
                delivery.dead_letter("unfit", "").await.during("dead_letter")?;
                done.insert(n);
            }
            _ => {
                delivery.ack().await.during("ack")?;
                done.insert(n);
            }
        }
    }
    cx.expect_none(&mut sub).await
}

async fn cancelled(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let mut sub = q.subscribe(20).await?;
    let total = 300;
    let publisher = tokio::spawn({
        let q = q.clone();
        async move {
            for n in 0..total {
                q.publish(message(n)).await?;
                if n % 7 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Ok::<_, Failure>(())
        }
    });
    let mut seen = BTreeSet::new();
    let mut held: Vec<Delivery> = Vec::new();
    let deadline = cx.deadline() + cx.patience();
    for wait in [0, 1, 0, 300, 50, 0, 2000].into_iter().cycle() {
        ensure!(Instant::now() < deadline, "after many dropped receives only {} of {total} came", seen.len());
        match timeout(Duration::from_micros(wait), sub.next()).await {
            Err(_) => tokio::task::yield_now().await,
            Ok(Some(delivery)) => {
                let delivery = delivery?;
                ensure_eq!(delivery.attempt(), 1, "attempt of {:?}", delivery.envelope());
                ensure!(seen.insert(number(delivery.envelope())?), "came twice: {:?}", delivery.envelope());
                held.push(delivery);
            }
            Ok(None) => fail!("the subscription ended"),
        }
        if held.len() == 10 || seen.len() == total {
            for delivery in held.drain(..) {
                delivery.ack().await?;
            }
        }
        if seen.len() == total {
            break;
        }
    }
    publisher.await??;
    cx.expect_none(&mut sub).await
}

async fn after_close(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent = messages(0..10);
    q.publish_all(sent.clone()).await?;
    let mut sub = q.subscribe(10).await?;
    let held = cx.collect(&mut sub, 2).await?;
    sub.close().await?;
    for _ in 0..2 {
        match timeout(cx.patience(), sub.next()).await {
            Ok(None) => {}
            Ok(Some(item)) => fail!("a closed subscription went on: {item:?}"),
            Err(_) => fail!("a closed subscription hangs"),
        }
    }
    sub.close().await.during("close again")?;
    let mut next = q.subscribe(20).await?;
    let again = cx.collect(&mut next, 10).await.during("after the close")?;
    for delivery in held {
        let (e, back) = match delivery.ack().await {
            Ok(()) => fail!("an ack after close was Ok"),
            Err(e) => e.into_parts(),
        };
        ensure!(e.kind() == ErrorKind::LockLost && back.is_none(), "ack after close: {e:?}");
    }
    let mut got = Vec::new();
    for delivery in again {
        got.push(delivery.envelope().clone());
        delivery.ack().await.during("ack by the next consumer")?;
    }
    expect_same(&sent, &got, "what the next consumer got")?;
    cx.expect_none(&mut next).await
}

async fn after_bus_close(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let sent = messages(0..10);
    q.publish_all(sent.clone()).await?;
    let closing = q.on(cx.second_bus(&q.bus).await?);
    let (mut idle, mut busy) = (closing.subscribe(1).await?, closing.subscribe(4).await?);
    let held = (cx.collect(&mut idle, 1).await?, cx.collect(&mut busy, 4).await?);
    // One consumer waits in a receive when the bus closes, the other asks only afterwards.
    let waits = tokio::spawn({
        let cx = cx.clone();
        async move { cx.expect_end(&mut idle, ErrorKind::Closed).await }
    });
    tokio::task::yield_now().await;
    closing.bus.close().await?;
    waits.await?.during("a receive that met the close")?;
    cx.expect_end(&mut busy, ErrorKind::Closed).await.during("a receive after the close")?;
    expect_kind!(closing.bus.subscribe(q.source.clone()).open().await, ErrorKind::Closed);
    for delivery in held.0.into_iter().chain(held.1) {
        expect_kind!(delivery.ack().await, ErrorKind::LockLost);
    }
    let mut sub = q.subscribe(20).await?;
    expect_same(&sent, &cx.drain(&mut sub, 10).await?, "what the next consumer got")
}

/// Of ten messages two are in hand and eight were given back: the next consumer gets the eight, and all are acked.
async fn check_given_back(cx: &Cx, q: &Fixture, in_hand: Vec<Delivery>) -> Outcome {
    let mut next = q.subscribe(20).await?;
    let again = cx.collect(&mut next, 8).await.during("what had not been handed out")?;
    for delivery in &again {
        ensure!(delivery.attempt() <= 2, "attempt {} after one prefetch", delivery.attempt());
    }
    cx.expect_none(&mut next).await.during("what is in another's hand")?;
    let mut seen = BTreeSet::new();
    for delivery in in_hand.into_iter().chain(again) {
        ensure!(seen.insert(number(delivery.envelope())?), "came twice: {:?}", delivery.envelope());
        delivery.ack().await.during("ack")?;
    }
    ensure_eq!(seen, (0..10).collect::<BTreeSet<_>>(), "all messages");
    cx.expect_none(&mut next).await
}

async fn stop(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..10)).await?;
    let mut sub = q.subscribe(10).await?;
    let in_hand = cx.collect(&mut sub, 2).await?;
    sub.stop().await?;
    ensure!(matches!(timeout(cx.patience(), sub.next()).await, Ok(None)), "a stopped subscription went on");
    check_given_back(&cx, &q, in_hand).await
}

async fn dropped_subscription(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..10)).await?;
    let mut sub = q.subscribe(10).await?;
    let in_hand = cx.collect(&mut sub, 2).await?;
    drop(sub);
    check_given_back(&cx, &q, in_hand).await
}

/// Fails unless opening the consumer, or its first and only item, is NotFound.
async fn expect_not_found(cx: &Cx, f: &Fixture, source: Source) -> Outcome {
    match f.bus.subscribe(source.clone()).open().await {
        Ok(mut sub) => cx.expect_end(&mut sub, ErrorKind::NotFound).await.during(source)?,
        Err(e) => {
            ensure_eq!(e.kind(), ErrorKind::NotFound, "opening {source}: {e:?}");
            ensure_eq!(e.context("source"), Some(&*source.to_string()), "the error's source");
        }
    }
    Ok(())
}

async fn missing_queue(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    for _ in 0..2 {
        expect_not_found(&cx, &q, Source::queue("nowhere")).await?;
    }
    let e = q.bus.publish(Address::queue("nowhere"), message(0)).await;
    expect_kind!(e, ErrorKind::NotFound, "a publish to the queue that was only asked for");
    // The bus still works.
    q.publish(message(1)).await?;
    let (_sub, got) = q.one(&cx).await?;
    got.ack().await?;
    Ok(())
}

async fn missing_subscription(cx: Cx) -> Outcome {
    let t = cx.topic(TopicSpec::new().subscription("a", SubscriptionSpec::new())).await?;
    expect_not_found(&cx, &t, t.subscription("nobody")).await?;
    expect_not_found(&cx, &t, Source::subscription("nowhere", "a")).await?;
    t.publish(message(1)).await?;
    let (_sub, got) = t.one(&cx).await?;
    got.ack().await?;
    Ok(())
}

async fn missing_dead_letters(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    expect_not_found(&cx, &q, Source::queue("nowhere").dead_letters()).await
}

async fn two_of_one_bus(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    let (mut one, mut two) = (q.subscribe(3).await?, q.subscribe(3).await?);
    let sent = messages(0..20);
    q.publish_all(sent.clone()).await?;
    let (a, b) = (cx.collect(&mut one, 3).await?, cx.collect(&mut two, 3).await?);
    let mut got: Vec<_> = a.iter().chain(&b).map(|d| d.envelope().clone()).collect();
    // The two settle in turn, each in another order than it received.
    for (x, y) in a.into_iter().rev().zip(b) {
        y.ack().await?;
        x.ack().await?;
    }
    one.close().await?;
    let left = sent.len() - got.len();
    got.extend(take_rest(&cx, &mut two, left).await?);
    expect_same(&sent, &got, "both together")
}
