//! Connections that are cut, and consumer processes that are killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use polybus_core::QueueSpec;
use tokio::time::{Instant, sleep};

use super::acked_or_lost;
use crate::{
    Cx, During, Need, Outcome, Scenario, ensure, ensure_eq, message, messages, number, scenario,
    scenarios::shared::{take_rest, take_rest_with},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "lifecycle/cut-mid-batch",
            "The connection is cut within batches of publishes: all are Ok in the end, and each is there.",
            cut_mid_batch,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "lifecycle/cut-while-consuming",
            "The connection is cut while 300 messages are consumed: the stream goes on, nothing is lost.",
            cut_while_consuming,
        )
        .needs(|t, _| Need::proxy(t)),
        scenario(
            "lifecycle/killed-consumer",
            "A consumer killed with SIGKILL loses nothing of what it held or had prefetched, and attempts go on.",
            killed_consumer,
        )
        .needs(|t, _| Need::processes(t)),
        scenario(
            "lifecycle/killed-beside-another",
            "A killed consumer's messages come to the one beside it, whose own are not disturbed.",
            killed_beside_another,
        )
        .needs(|t, _| Need::processes(t)),
        scenario(
            "lifecycle/pulls-over-reconnects",
            "A consumer that waits while its connection is lost ten times takes everything later, each at attempt 1.",
            pulls,
        )
        .needs(|t, _| Need::proxy(t))
        .timeout(Duration::from_secs(120)),
    ]
}

async fn cut_mid_batch(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(QueueSpec::new()).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    through.publish(message(0)).await?;
    let mut sent = Vec::new();
    for (round, bytes) in [20_000_u32, 1_000, 60_000, 150].into_iter().enumerate() {
        let part = messages(round * 500..(round + 1) * 500);
        let before = proxy.opened();
        proxy.cut_after(bytes);
        through.publish_all(part.clone()).await.during(format!("round {round}, cut after {bytes} bytes"))?;
        ensure!(proxy.opened() > before, "the connection was never cut in round {round}");
        sent.extend(part);
    }
    let mut sub = q.subscribe(200).await?;
    let got = take_rest_with(&cx, &mut sub, &sent).await?;
    let ids: BTreeSet<&str> = got.iter().map(|e| &*e.id).collect();
    let lost = sent.iter().filter(|e| !ids.contains(&*e.id)).count();
    let extra = got.len() - ids.len();
    println!("lifecycle/cut-mid-batch: {} published over 4 cuts, {lost} lost, {extra} duplicates", sent.len());
    ensure_eq!(lost, 0, "confirmed messages that never came, of {} ({extra} duplicates)", sent.len());
    ensure!(extra <= sent.len(), "{extra} duplicates of {}", sent.len());
    Ok(())
}

async fn cut_while_consuming(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    q.publish_all(messages(0..300)).await?;
    let mut sub = through.subscribe(20).await?;
    let (mut seen, mut came) = (BTreeSet::new(), 0);
    let deadline = cx.deadline() + cx.patience();
    let mut cuts = [40, 100, 101, 200].into_iter().peekable();
    while seen.len() < 300 {
        ensure!(Instant::now() < deadline, "only {} of 300 came in time", seen.len());
        let d = cx.recv(&mut sub).await.during(format!("after {} of 300", seen.len()))?;
        came += 1;
        if cuts.next_if(|at| seen.len() >= *at).is_some() {
            proxy.cut();
        }
        seen.insert(number(d.envelope())?);
        acked_or_lost(d.ack().await)?;
    }
    ensure!(cuts.peek().is_none(), "not all cuts were made");
    // A cut gives back at most what was held, and what was acked a moment before.
    ensure!(came <= 300 + 4 * 40, "{came} deliveries of 300 messages over four cuts");
    sub.close().await?;
    // A message whose ack was lost comes once more.
    let mut sub = q.subscribe(20).await?;
    let left = take_rest(&cx, &mut sub, 0).await?;
    ensure!(left.len() <= 20, "{} messages are left", left.len());
    Ok(())
}

async fn killed_consumer(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..40)).await?;
    let child = cx.child(&q.bus, &q.source, 10, 4).await?;
    child.kill().await?;
    let mut sub = q.subscribe(40).await?;
    let mut seen = BTreeSet::new();
    let mut again = 0;
    for d in cx.collect(&mut sub, 40).await.during("after the kill")? {
        ensure!(seen.insert(number(d.envelope())?), "{:?} came twice", d.envelope());
        again += usize::from(d.attempt() > 1);
        d.ack().await?;
    }
    ensure_eq!(seen, (0..40).collect(), "all messages");
    if cx.capabilities().attempts_across_crash {
        ensure!(
            (4..=10).contains(&again),
            "{again} messages count an earlier attempt; 4 were handed out, 10 prefetched"
        );
    }
    cx.expect_none(&mut sub).await
}

async fn killed_beside_another(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..30)).await?;
    let child = cx.child(&q.bus, &q.source, 10, 10).await?;
    let mut sub = q.subscribe(5).await?;
    let mine = cx.collect(&mut sub, 5).await?;
    child.kill().await?;
    let mut seen = BTreeSet::new();
    for d in mine {
        seen.insert(number(d.envelope())?);
        d.ack().await.during("ack of what the other consumer holds")?;
    }
    for e in cx.drain(&mut sub, 25).await? {
        ensure!(seen.insert(number(&e)?), "{e:?} came twice");
    }
    ensure_eq!(seen, (0..30).collect(), "all messages");
    cx.expect_none(&mut sub).await
}

async fn pulls(cx: Cx) -> Outcome {
    const N: usize = 40;
    let proxy = cx.proxy().await?;
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    let through = q.on(cx.setup(q.bus.topology().clone()).through(&proxy).undeclared().open().await?);
    let mut sub = through.subscribe(10).await?;
    for round in 0..10 {
        // The receive waits at the broker when its connection is cut.
        cx.expect_none_for(&mut sub, Duration::from_millis(150)).await.during(format!("round {round}"))?;
        if round % 3 == 2 {
            proxy.refuse(true).await;
        }
        proxy.cut();
        sleep(Duration::from_millis(50)).await;
        proxy.refuse(false).await;
    }
    cx.expect_none(&mut sub).await?;
    if let Some(lock) = cx.lock_outlives() {
        // A broker that does not notice the lost connection ends the poll by itself, and gives back what it took
        // within a lock.
        cx.expect_none_for(&mut sub, lock).await?;
    }
    q.publish_all(messages(0..N)).await?;
    let mut seen: BTreeMap<usize, u32> = BTreeMap::new();
    for _ in 0..N {
        let delivery = cx.recv(&mut sub).await.during(format!("after {} of {N}", seen.len()))?;
        let n = number(delivery.envelope())?;
        ensure!(seen.insert(n, delivery.attempt()).is_none(), "came twice: {delivery:?}");
        ensure_eq!(delivery.attempt(), 1, "attempt of message {n}: an old call of the consumer's took it first");
        delivery.ack().await?;
    }
    cx.expect_none(&mut sub).await
}
