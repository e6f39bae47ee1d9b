//! Users who lack a right at the broker.

use std::sync::Arc;

use async_trait::async_trait;
use polybus_core::{
    Address, Error, ErrorKind, QueueSpec, Result, Source,
    clock::Clock,
    driver::{Batching, Capabilities, Driver, DriverToken, Receiver, Sender, SettleRequest, Settlement, Settler},
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity},
};
use tokio::time::Instant;

use super::q;
use crate::{Cx, During, Fixture, Need, Outcome, Scenario, ensure, ensure_eq, expect_kind, message, numbers, scenario};

pub(super) fn all() -> Vec<Scenario> {
    vec![
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

/// The broker's answer to a user who lacks a right.
fn denied(what: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, format!("no right to {what}"))
}

/// The target's driver as a user with fewer rights would have it.
struct RestrictedDriver {
    inner: Arc<dyn Driver>,
    may_consume: bool,
}

fn restricted(may_consume: bool) -> impl FnOnce(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + 'static {
    move |inner| Arc::new(RestrictedDriver { inner, may_consume })
}

#[async_trait]
impl Driver for RestrictedDriver {
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
        Ok((receiver, Arc::new(NoCopiesSettler(settler))))
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.inner.clock()
    }
}

struct NoCopiesSettler(Arc<dyn Settler>);

#[async_trait]
impl Settler for NoCopiesSettler {
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
    // At the last attempt a release is a move to the dead letters, which is denied as well.
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
    poor.publish(q(), message(1)).await.during("publish is allowed")?;
    match poor.subscribe(Source::queue("q")).open().await {
        Ok(mut sub) => cx.expect_end(&mut sub, ErrorKind::PermissionDenied).await?,
        Err(e) => ensure_eq!(e.kind(), ErrorKind::PermissionDenied, "kind of {e:?}"),
    }
    let mut sub = f.subscribe(1).await?;
    ensure_eq!(numbers(&cx.drain(&mut sub, 1).await?)?, vec![1], "what another user consumes");
    Ok(())
}
