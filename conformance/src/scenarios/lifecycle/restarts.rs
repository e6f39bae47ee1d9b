//! Brokers that are killed and started again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use polybus_core::{Envelope, ErrorKind, Publisher, QueueSpec, Subscription};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::acked_or_lost;
use crate::{
    Cx, During, Failure, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, messages, number, scenario,
    scenarios::shared::{SETTLED_QUEUE_AGE, publish_until, take_rest, wait_until},
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "lifecycle/restart-under-load",
            "The broker is killed and started while 20,000 messages are published and consumed: none confirmed is lost.",
            restart_under_load,
        )
        .needs(|t, _| Need::durable_restart(t))
        .alone()
        .timeout(Duration::from_secs(240)),
        scenario(
            "lifecycle/restart-at-rest",
            "What waits, what is held and what is dead-lettered survives a restart; consumers go on by themselves.",
            restart_at_rest,
        )
        .needs(|t, c| Need::durable_restart(t).and(Need::dead_letters(c)))
        .alone()
        .timeout(Duration::from_secs(180)),
        scenario(
            "lifecycle/restart-without-state",
            "A broker that comes back empty hangs nobody: NotFound and LockLost, and after a declare all goes on.",
            restart_without_state,
        )
        .needs(|t, c| Need::forgetful_restart(t).and(Need::declare(c)))
        .alone()
        .timeout(Duration::from_secs(120)),
    ]
}

/// Publishes `count` messages from number `first` on, in parts, until each is Ok. Returns their ids.
fn keep_publishing(publisher: Publisher, first: usize, count: usize) -> JoinHandle<Outcome<Vec<Box<str>>>> {
    tokio::spawn(async move {
        let mut confirmed = Vec::with_capacity(count);
        let mut left: Vec<Envelope> = messages(first..first + count);
        left.reverse();
        let deadline = Instant::now() + Duration::from_secs(600);
        while !left.is_empty() {
            let part = left.split_off(left.len().saturating_sub(100));
            let results = publisher.publish_all(part.iter().rev()).await;
            for (message, result) in part.iter().rev().zip(results) {
                match result {
                    Ok(_) => confirmed.push(message.id.clone()),
                    Err(e)
                        if matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Throttled) =>
                    {
                        ensure!(Instant::now() < deadline, "publishing does not recover: {e:?}");
                        left.push(message.clone());
                    }
                    Err(e) => return Err(Failure::new(format!("a publish during the restart: {e:?}"))),
                }
            }
        }
        Ok(confirmed)
    })
}

/// How often each id came to a consumer. Clones share it.
#[derive(Clone, Default)]
struct ConsumedLog {
    counts: Arc<Mutex<BTreeMap<Box<str>, usize>>>,
    enough: Arc<AtomicBool>,
}

impl ConsumedLog {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, usize>> {
        self.counts.lock()
    }

    fn distinct(&self) -> usize {
        self.lock().len()
    }

    /// Consumes in a task until it is told to stop.
    fn consume(&self, mut sub: Subscription) -> JoinHandle<Outcome> {
        let this = self.clone();
        tokio::spawn(async move {
            while !this.enough.load(Ordering::SeqCst) {
                let Ok(next) = timeout(Duration::from_millis(200), sub.next()).await else { continue };
                let delivery = next.ok_or_else(|| Failure::new("a consumer ended"))?.during("consuming")?;
                *this.lock().entry(delivery.envelope().id.clone()).or_default() += 1;
                acked_or_lost(delivery.ack().await)?;
            }
            Ok(())
        })
    }
}

async fn restart_under_load(cx: Cx) -> Outcome {
    const EACH: usize = 5000;
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    tokio::time::sleep(SETTLED_QUEUE_AGE).await;
    let consuming = q.on(cx.second_bus(&q.bus).await?);
    let seen = ConsumedLog::default();
    let mut consumers = Vec::new();
    for _ in 0..2 {
        consumers.push(seen.consume(consuming.subscribe(100).await?));
    }
    let publisher = q.bus.publisher(&q.address).await?;
    let publishers: Vec<_> = (0..4).map(|i| keep_publishing(publisher.clone(), i * EACH, EACH)).collect();
    // The kill comes early, so that most of the load comes during and after it.
    wait_until(&cx, "the load to begin", || seen.distinct() > 500).await?;
    cx.restart().await?;
    let mut confirmed = BTreeSet::new();
    for publisher in publishers {
        confirmed.extend(publisher.await??);
    }
    ensure_eq!(confirmed.len(), 4 * EACH, "confirmed publishes");
    let deadline = cx.deadline() + cx.patience();
    while seen.distinct() < confirmed.len() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let counts = seen.lock().clone();
    let lost = confirmed.iter().filter(|id| !counts.contains_key(*id)).count();
    let extra: usize = counts.values().map(|n| n - 1).sum();
    println!("lifecycle/restart-under-load: {} confirmed, {lost} lost, {extra} duplicates", confirmed.len());
    ensure_eq!(lost, 0, "confirmed messages that never came, of {} ({extra} duplicates)", confirmed.len());
    ensure!(extra < 4 * EACH / 4, "{extra} duplicates: far more than were under way at the restart");
    seen.enough.store(true, Ordering::SeqCst);
    for consumer in consumers {
        consumer.await??;
    }
    let mut sub = consuming.subscribe(10).await?;
    let left = take_rest(&cx, &mut sub, 0).await?;
    ensure!(left.iter().all(|e| counts.contains_key(&e.id)), "strange messages are left: {left:?}");
    Ok(())
}

async fn restart_without_state(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new()).await?;
    q.publish_all(messages(0..5)).await?;
    let mut sub = q.subscribe(2).await?;
    let held = cx.recv(&mut sub).await?;
    cx.restart().await?;
    let Ok(acked) = timeout(cx.patience(), held.ack()).await else { crate::fail!("an ack hangs after the restart") };
    expect_kind!(acked, ErrorKind::LockLost, "ack of what the broker forgot");
    cx.expect_end(&mut sub, ErrorKind::NotFound).await?;
    publish_until(&cx, &q, &message(8), Some(ErrorKind::NotFound)).await.during("publish after the restart")?;
    q.bus.declare().await.during("declare after the restart")?;
    publish_until(&cx, &q, &message(9), None).await.during("publish after the declare")?;
    let mut sub = q.subscribe(5).await.during("subscribe after the declare")?;
    ensure_eq!(number(&cx.drain(&mut sub, 1).await?[0])?, 9, "what comes after the declare");
    cx.expect_none(&mut sub).await
}

async fn restart_at_rest(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    tokio::time::sleep(SETTLED_QUEUE_AGE).await;
    let mut sub = q.subscribe(4).await?;
    q.publish_all(messages(0..50)).await?;
    let mut held = cx.collect(&mut sub, 4).await?;
    let dead = held.pop().ok_or_else(|| Failure::new("nothing was collected"))?;
    let buried = number(dead.envelope())?;
    dead.dead_letter("poison", "before the restart").await?;
    cx.restart().await?;
    let mut seen = BTreeSet::new();
    for d in held {
        let n = number(d.envelope())?;
        // Its connection is gone, whether or not the client knows. It must not be acked over the new connection.
        let acked = timeout(cx.patience(), d.ack()).await;
        let acked = acked.map_err(|_| Failure::new("an ack hangs after the restart"))?;
        // Where it belongs to its lock alone, the ack is good, and the message comes no more.
        if acked.is_ok() && cx.lock_outlives().is_some() {
            seen.insert(n);
        }
        acked_or_lost(acked)?;
    }
    // Where deliveries belong to locks, what was held comes back when its lock ends.
    let deadline = cx.deadline() + cx.lock_outlives().unwrap_or_default();
    while (0..50).any(|n| n != buried && !seen.contains(&n)) {
        ensure!(Instant::now() < deadline, "only {} of 49 messages came after the restart", seen.len());
        let Ok(next) = timeout(Duration::from_millis(500), sub.next()).await else { continue };
        let d = next.ok_or_else(|| Failure::new("the stream ended at the restart"))??;
        seen.insert(number(d.envelope())?);
        acked_or_lost(d.ack().await)?;
    }
    // Where acks are not confirmed, the ack after the copy may have been lost with the broker.
    let back = seen.contains(&buried) && cx.capabilities().confirmed_settlement;
    ensure!(!back, "the dead letter is back in the queue");
    let mut dead = q.subscribe_dead(5).await?;
    let letter = cx.recv(&mut dead).await.during("the dead letter after the restart")?;
    ensure_eq!(number(letter.envelope())?, buried, "the dead letter");
    letter.ack().await?;
    publish_until(&cx, &q, &message(99), None).await.during("publish after the restart")
}
