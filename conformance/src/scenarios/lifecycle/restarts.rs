//! Brokers that restart, connections that are cut, consumers that are killed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use polybus_core::{Envelope, ErrorKind, Publisher, QueueSpec, RetrySafety, SettleError, Subscription};
use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::working::until;
use crate::{
    Cx, During, Failure, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, messages, number,
    scenario,
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
            "lifecycle/close-in-an-outage",
            "Close ends in good time while the broker cannot be reached, with messages held and publishes waiting.",
            close_in_an_outage,
        )
        .needs(|t, _| Need::proxy(t)),
    ]
}

/// How old a queue is before its broker is killed. RabbitMQ 3.10.8 killed within 200 ms of declaring a quorum queue was
/// seen to leave it without a leader for good; what is promised of confirmed messages is not about that moment.
pub(super) const SETTLED: Duration = Duration::from_secs(2);

/// An ack while connections are lost: done, or the delivery is this consumer's no longer and comes again, or that cannot be
/// told now, which trying again may.
fn acked_or_lost(result: Result<(), SettleError>) -> Outcome {
    let Err(e) = result else { return Ok(()) };
    match (e.error().kind(), e.error().retry()) {
        (ErrorKind::LockLost, RetrySafety::Never)
        | (ErrorKind::Unavailable, RetrySafety::Safe | RetrySafety::MayDuplicate) => Ok(()),
        _ => Err(Failure::from(e).during("an ack around a lost connection")),
    }
}

/// Publishes `count` messages from `first` on, in parts, until each is Ok. Its ids.
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

/// How often each id came to consumers. Clones share it.
#[derive(Clone, Default)]
struct Seen {
    counts: Arc<Mutex<BTreeMap<Box<str>, usize>>>,
    enough: Arc<AtomicBool>,
}

impl Seen {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn distinct(&self) -> usize {
        self.lock().len()
    }

    /// Consumes until told to stop.
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
    tokio::time::sleep(SETTLED).await;
    let consuming = q.on(cx.second_bus(&q.bus).await?);
    let seen = Seen::default();
    let mut consumers = Vec::new();
    for _ in 0..2 {
        consumers.push(seen.consume(consuming.subscribe(100).await?));
    }
    let publisher = q.bus.publisher(&q.address).await?;
    let publishers: Vec<_> = (0..4).map(|i| keep_publishing(publisher.clone(), i * EACH, EACH)).collect();
    // Early enough that most of the load comes during and after it.
    until(&cx, "the load to begin", || seen.distinct() > 500).await?;
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
    let left = super::tools::rest(&cx, &mut sub, 0).await?;
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
    super::tools::publish_until(&cx, &q, &message(8), Some(ErrorKind::NotFound))
        .await
        .during("publish after the restart")?;
    q.bus.declare().await.during("declare after the restart")?;
    super::tools::publish_until(&cx, &q, &message(9), None).await.during("publish after the declare")?;
    let mut sub = q.subscribe(5).await.during("subscribe after the declare")?;
    ensure_eq!(number(&cx.drain(&mut sub, 1).await?[0])?, 9, "what comes after the declare");
    cx.expect_none(&mut sub).await
}

async fn restart_at_rest(cx: Cx) -> Outcome {
    let q = cx.queue(QueueSpec::new().max_deliveries(100)).await?;
    tokio::time::sleep(SETTLED).await;
    let mut sub = q.subscribe(4).await?;
    q.publish_all(messages(0..50)).await?;
    let mut held = cx.collect(&mut sub, 4).await?;
    let dead = held.pop().ok_or_else(|| Failure::new("nothing was collected"))?;
    let buried = number(dead.envelope())?;
    dead.dead_letter("poison", "before the restart").await?;
    cx.restart().await?;
    for d in held {
        // The connection that held it is gone, whether or not this client knows yet; it must not be acked on the new one.
        let acked = timeout(cx.patience(), d.ack()).await;
        acked_or_lost(acked.map_err(|_| Failure::new("an ack hangs after the restart"))?)?;
    }
    let mut seen = BTreeSet::new();
    // What was held comes back when its lock ends, where no connection holds it.
    let deadline = cx.deadline() + cx.lock_outlives().unwrap_or_default();
    while (0..50).any(|n| n != buried && !seen.contains(&n)) {
        ensure!(Instant::now() < deadline, "only {} of 49 messages came after the restart", seen.len());
        let Ok(next) = timeout(Duration::from_millis(500), sub.next()).await else { continue };
        let d = next.ok_or_else(|| Failure::new("the stream ended at the restart"))??;
        seen.insert(number(d.envelope())?);
        acked_or_lost(d.ack().await)?;
    }
    // Where acks are not confirmed, the broker may have died with the one that follows the copy.
    let back = seen.contains(&buried) && cx.capabilities().confirmed_settlement;
    ensure!(!back, "the dead letter is back in the queue");
    let mut dead = q.subscribe_dead(5).await?;
    let letter = cx.recv(&mut dead).await.during("the dead letter after the restart")?;
    ensure_eq!(number(letter.envelope())?, buried, "the dead letter");
    letter.ack().await?;
    super::tools::publish_until(&cx, &q, &message(99), None).await.during("publish after the restart")
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
    let got = super::tools::rest_with(&cx, &mut sub, &sent).await?;
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
    // Each cut gives back at most what was held, and what was acked a moment before.
    ensure!(came <= 300 + 4 * 40, "{came} deliveries of 300 messages over four cuts");
    sub.close().await?;
    // An ack that was cut on its way is no loss, and comes once more.
    let mut sub = q.subscribe(20).await?;
    let left = super::tools::rest(&cx, &mut sub, 0).await?;
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

async fn close_in_an_outage(cx: Cx) -> Outcome {
    let proxy = cx.proxy().await?;
    let q: Fixture = cx.queue(QueueSpec::new()).await?;
    let setup = cx.setup(q.bus.topology().clone()).through(&proxy).undeclared();
    let through = q.on(setup.options(|o| o.publish_timeout = Duration::from_secs(3)).open().await?);
    q.publish_all(messages(0..5)).await?;
    // Its sender is there when the outage begins.
    super::tools::publish_until(&cx, &through, &message(5), None).await?;
    let mut sub = through.subscribe(5).await?;
    let held = cx.collect(&mut sub, 2).await?;
    proxy.refuse(true).await;
    proxy.cut();
    let waiting = tokio::spawn(through.bus.publish(&q.address, message(9)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let closed = timeout(cx.patience(), through.bus.close()).await;
    // Whether it could say goodbye is not the point.
    let _ = closed.map_err(|_| Failure::new("close hangs in an outage"))?;
    let published =
        timeout(cx.patience(), waiting).await.map_err(|_| Failure::new("a publish hangs after close"))??;
    ensure!(published.is_err(), "a publish in an outage is Ok");
    drop(held);
    let mut sub = q.subscribe(5).await?;
    let mut back = BTreeSet::new();
    // What was published within a short timeout may be there twice.
    while back.len() < 6 {
        let delivery = cx.recv(&mut sub).await.during(format!("{} of 6 came", back.len()))?;
        back.insert(number(delivery.envelope())?);
        delivery.ack().await?;
    }
    ensure_eq!(back, (0..6).collect(), "what the closed bus had");
    Ok(())
}
