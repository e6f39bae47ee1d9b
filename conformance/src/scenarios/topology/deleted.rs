//! Entities that are deleted while they are used, and rights that are missing.

use std::sync::Arc;

use async_trait::async_trait;
use polybus_core::{
    Address, Error, ErrorKind, QueueSpec, Result, Source, SubscriptionSpec, TopicSpec, Topology,
    clock::Clock,
    driver::{Batching, Capabilities, Driver, DriverToken, Receiver, Sender, SettleRequest, Settlement, Settler},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity},
};
use tokio::time::Instant;

use super::{lanes::keyed, topology::q};
use crate::{
    Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, messages, numbers, scenario,
};

pub(super) fn all() -> Vec<Scenario> {
    vec![
        scenario(
            "topology/deleted-while-consuming",
            "A queue deleted under a consumer: NotFound once, then the end; it is not made again.",
            deleted_queue,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "topology/deleted-while-holding",
            "Settling a message of a deleted queue is an error, not an Ok and not a hang.",
            deleted_while_holding,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "topology/deleted-subscription",
            "A subscription deleted under a consumer with its topic: NotFound once; a consumer of another topic goes on.",
            deleted_subscription,
        )
        .needs(|_, c| Need::declare(c).and(Need::topics(c))),
        scenario(
            "topology/deleted-dead-letters",
            "A consumer of dead letters whose queue is deleted ends with NotFound.",
            deleted_dead_letters,
        )
        .needs(|_, c| Need::declare(c).and(Need::dead_letters(c))),
        scenario(
            "topology/deleted-ordered",
            "An ordered queue deleted under a consumer with a held head: NotFound once, then the end.",
            deleted_ordered,
        )
        .needs(|_, c| Need::declare(c).and(Need::ordered(c))),
        scenario(
            "topology/deleted-and-back",
            "A queue deleted and declared anew: publishers of before go on, and a new consumer gets it all.",
            deleted_and_back,
        )
        .needs(|_, c| Need::declare(c)),
        scenario(
            "topology/no-right-to-dead-letter",
            "Without the right to dead-letter the message is not acked: the delivery is given back, nothing is lost.",
            no_right_to_dead_letter,
        )
        .needs(|_, c| Need::declare(c).and(Need::dead_letters(c))),
        scenario(
            "topology/no-right-to-consume",
            "Without the right to consume the stream ends with PermissionDenied, once.",
            no_right_to_consume,
        )
        .needs(|_, c| Need::declare(c)),
    ]
}

async fn deleted_queue(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new()).await?;
    let other = cx.second_bus(&f.bus).await?;
    let mut sub = f.subscribe(5).await?;
    f.publish(message(1)).await?;
    cx.drain(&mut sub, 1).await?;
    other.delete().await.during("delete")?;
    cx.expect_end(&mut sub, ErrorKind::NotFound).await?;
    // Whoever reconnects restores consumers, never entities.
    let missing = f.bus.verify().await?;
    ensure!(missing.differences.iter().any(|d| d.setting == "exists"), "it was made again: {missing:?}");
    expect_kind!(f.bus.publish(&f.address, message(2)).await, ErrorKind::NotFound, "publish afterwards");
    Ok(())
}

async fn deleted_while_holding(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new()).await?;
    let other = cx.second_bus(&f.bus).await?;
    f.publish_all(messages(0..3)).await?;
    // Room for one more: who holds all it may is not told before it has settled one.
    let mut sub = f.subscribe(4).await?;
    let held = cx.collect(&mut sub, 3).await?;
    other.delete().await.during("delete")?;
    cx.expect_end(&mut sub, ErrorKind::NotFound).await?;
    for d in held {
        let result = tokio::time::timeout(cx.patience(), d.ack()).await;
        let Ok(result) = result else { crate::fail!("the ack hangs") };
        expect_kind!(result, ErrorKind::LockLost, "ack of a message whose queue is gone");
    }
    Ok(())
}

async fn deleted_subscription(cx: Cx) -> Outcome {
    let sub = SubscriptionSpec::new;
    let both = cx.topic(TopicSpec::new().subscription("a", sub()).subscription("b", sub())).await?;
    // A topology that names one of the two and not the topic's other subscription deletes the topic as well; so the
    // sibling here is of another topic on the same connection.
    let sibling = cx.bus(Topology::new().topic("u", TopicSpec::new().subscription("a", sub()))).await?;
    let mut gone = both.subscribe(5).await?;
    let mut stays = sibling.subscribe(Source::subscription("u", "a")).open().await?;
    cx.second_bus(&both.bus).await?.delete().await.during("delete")?;
    cx.expect_end(&mut gone, ErrorKind::NotFound).await?;
    sibling.publish(&Address::topic("u"), message(1)).await?;
    ensure_eq!(numbers(&cx.drain(&mut stays, 1).await?)?, vec![1], "the other topic");
    Ok(())
}

async fn deleted_dead_letters(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new()).await?;
    let mut dead = f.subscribe_dead(5).await?;
    f.publish(message(1)).await?;
    let (_sub, d) = f.one(&cx).await?;
    d.dead_letter("poison", "").await?;
    cx.drain(&mut dead, 1).await?;
    cx.second_bus(&f.bus).await?.delete().await.during("delete")?;
    cx.expect_end(&mut dead, ErrorKind::NotFound).await
}

async fn deleted_ordered(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new().ordered(true)).await?;
    f.publish_all((0..5).map(|n| keyed("a", n))).await?;
    let mut sub = f.subscribe(5).await?;
    let held = cx.recv(&mut sub).await?;
    cx.second_bus(&f.bus).await?.delete().await.during("delete")?;
    cx.expect_end(&mut sub, ErrorKind::NotFound).await?;
    expect_kind!(held.ack().await, ErrorKind::LockLost, "ack of the head");
    Ok(())
}

async fn deleted_and_back(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new()).await?;
    let other = cx.setup(f.bus.topology().clone()).make().await??;
    let publisher = f.bus.publisher(&f.address).await?;
    publisher.publish(message(1)).await?;
    other.delete().await.during("delete")?;
    expect_kind!(publisher.publish(message(2)).await, ErrorKind::NotFound, "publish to what is gone");
    other.declare().await.during("declare anew")?;
    // The first publish may still hear of the old queue on a connection that was told late.
    super::tools::publish_until(&cx, &f, &message(3), None).await?;
    let mut sub = f.subscribe(5).await?;
    let got = numbers(&cx.drain(&mut sub, 1).await?)?;
    ensure_eq!(got, vec![3], "in the new queue");
    cx.expect_none(&mut sub).await
}

/// What the broker would answer to a user who lacks a right.
fn denied(what: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, format!("no right to {what}"))
}

/// The target's driver with a user who may do less.
struct Restricted {
    inner: Arc<dyn Driver>,
    may_consume: bool,
}

fn restricted(may_consume: bool) -> impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + 'static {
    move |inner| Arc::new(Restricted { inner, may_consume })
}

#[async_trait]
impl Driver for Restricted {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
        self.inner.declare(plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        self.inner.open_sender(to).await
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        if !self.may_consume {
            return Err(denied("consume"));
        }
        let (receiver, settler) = self.inner.open_receiver(from).await?;
        Ok((receiver, Arc::new(NoCopies(settler))))
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.inner.clock()
    }
}

struct NoCopies(Arc<dyn Settler>);

#[async_trait]
impl Settler for NoCopies {
    fn batching(&self) -> Batching {
        self.0.batching()
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        if batch.iter().any(|s| matches!(s.how, Settlement::DeadLetter { .. })) {
            return denied("write to the dead letters").for_each_of(batch.len());
        }
        self.0.settle(batch).await
    }

    async fn extend(&self, tokens: &[DriverToken], by: std::time::Duration) -> Vec<Result<Instant>> {
        self.0.extend(tokens, by).await
    }

    fn holds(&self, token: &DriverToken) -> bool {
        self.0.holds(token)
    }

    async fn close(&self) -> Result<()> {
        self.0.close().await
    }
}

async fn no_right_to_dead_letter(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new().max_deliveries(2)).await?;
    let poor: Fixture = f.on(cx.setup(f.bus.topology().clone()).wrap(restricted(true)).undeclared().open().await?);
    f.publish(message(1)).await?;
    let mut sub = poor.subscribe(1).await?;
    let d = cx.recv(&mut sub).await?;
    let Err(failed) = d.dead_letter("poison", "").await else { crate::fail!("dead_letter is Ok without the right") };
    let (e, back) = failed.into_parts();
    ensure_eq!(e.kind(), ErrorKind::PermissionDenied, "kind of {e:?}");
    let Some(back) = back else { crate::fail!("the delivery is not given back") };
    ensure!(back.is_held(), "the delivery given back is not held");
    back.release().await.during("release of the delivery given back")?;
    // At the last attempt a release becomes a dead letter, which is denied as well.
    let last = cx.recv(&mut sub).await?;
    ensure_eq!(last.attempt(), 2, "attempt");
    expect_kind!(last.release().await, ErrorKind::PermissionDenied, "release at the last attempt");
    cx.expect_none(&mut sub).await.during("more than max_deliveries")?;
    sub.close().await?;
    let mut dead = f.subscribe_dead(1).await?;
    let mut live = f.subscribe(1).await?;
    let got = tokio::select! { d = cx.recv(&mut dead) => d?, d = cx.recv(&mut live) => d? };
    ensure_eq!(numbers([got.envelope()])?, vec![1], "the message is not lost");
    got.ack().await?;
    Ok(())
}

async fn no_right_to_consume(cx: Cx) -> Outcome {
    let f = cx.queue(QueueSpec::new()).await?;
    let poor = cx.setup(f.bus.topology().clone()).wrap(restricted(false)).undeclared().open().await?;
    poor.publish(&q(), message(1)).await.during("publish is allowed")?;
    match poor.subscribe(Source::queue("q")).open().await {
        Ok(mut sub) => cx.expect_end(&mut sub, ErrorKind::PermissionDenied).await?,
        Err(e) => ensure_eq!(e.kind(), ErrorKind::PermissionDenied, "kind of {e:?}"),
    }
    let mut sub = f.subscribe(1).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![1], "what another user consumes");
    Ok(())
}
