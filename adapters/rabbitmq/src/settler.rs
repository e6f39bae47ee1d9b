//! Settling deliveries: acks merged, copies confirmed before the original is acknowledged.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use lapin::types::ShortString;
use polybus_core::{
    Batching, DeadLetter, Entity, Error, Result, Settle, Settlement, Settler, Source, Token, cloudevents::Carried,
};
use time::OffsetDateTime;

use crate::{
    attachment::{Attachment, Feed, Held, How},
    confirms::Parcel,
    connection::Links,
    envelope, error,
    manage::short,
    names,
    outlet::{Outlet, Rung},
    rungs::{self, Rungs, Target},
};

pub(crate) struct RabbitmqSettler {
    feed: Arc<Feed>,
    outlet: Outlet,
    links: Arc<Links>,
    source: Source,
    /// The live queue, or an ordered one's headers exchange.
    base: String,
    dead_letters: ShortString,
    ordered: bool,
    named: Vec<Duration>,
}

impl RabbitmqSettler {
    pub(crate) fn new(feed: Arc<Feed>, rungs: Arc<Rungs>, from: &Entity<Source>) -> Result<Self> {
        let links = feed.links.clone();
        let base = names::base(from);
        Ok(Self {
            outlet: Outlet::new(links.clone(), rungs, None, from.name.to_string()),
            dead_letters: short(&names::dead_letters(&base))?,
            links,
            feed,
            source: from.name.clone(),
            base,
            ordered: from.settings.ordered,
            named: from.settings.retry.clone(),
        })
    }

    /// Where the copy for this settlement goes, and what it carries.
    fn copy(&self, held: &Held, settle: &Settle) -> Result<Copy> {
        let mut carried = Carried::default();
        carried.hop = held.hop.saturating_add(1);
        let mut rung = None;
        let (exchange, routing_key) = match &settle.how {
            Settlement::RetryAfter(delay) if !self.source.is_dead_letters() => {
                if *delay > rungs::MAX_DELAY {
                    return Err(Error::unsupported("RabbitMQ delays messages by 45 days at most").operation("settle"));
                }
                carried.attempts = settle.attempt;
                let (target, delay) = (self.target(), rungs::pick(*delay, &self.named));
                let route = Rungs::route(&target, delay, &ShortString::default())?;
                rung = Some(Rung { target, delay });
                route
            }
            Settlement::DeadLetter { reason, detail } if !self.source.is_dead_letters() => {
                let mut told = DeadLetter::default();
                told.reason = Some(reason.clone());
                told.detail = Some(detail.clone()).filter(|d| !d.is_empty());
                told.attempt = Some(settle.attempt);
                told.origin = Some(self.source.to_string().into());
                told.time = Some(OffsetDateTime::now_utc());
                carried.dead_letter = Some(Box::new(told));
                (ShortString::default(), self.dead_letters.clone())
            }
            Settlement::Redrive if self.source.is_dead_letters() => match self.ordered {
                true => (short(&self.base)?, ShortString::default()),
                false => (ShortString::default(), short(&self.base)?),
            },
            other => return Err(Error::unsupported(format!("{other:?} on {}", self.source)).operation("settle")),
        };
        Ok(Copy { exchange, routing_key, carried, rung })
    }

    fn target(&self) -> Target {
        if self.ordered { Target::Slots(self.base.clone()) } else { Target::Queue(self.base.clone()) }
    }

    /// Copies what is still held, and tells which copies the broker has.
    async fn copies(&self, batch: &[Settle], held: &[&Held]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = Vec::with_capacity(batch.len());
        let mut copies = Vec::new();
        for (at, settle) in batch.iter().enumerate() {
            results.push(if !self.open(held[at]) {
                Err(error::lock_lost("the channel that delivered the message is gone"))
            } else {
                self.copy(held[at], settle).map(|copy| copies.push((at, copy)))
            });
        }
        let rungs: Vec<Option<&Rung>> = copies.iter().map(|(_, copy)| copy.rung.as_ref()).collect();
        let published = self.outlet.publish(&rungs, |i| {
            let (at, copy) = &copies[i];
            let native = &held[*at].native;
            let mut head = envelope::copy(native, &copy.carried, &self.links.config.user);
            if let Some(key) = batch[*at].envelope.key.as_deref().filter(|_| self.ordered) {
                head.slot(names::slot(key));
            }
            Ok(Parcel {
                exchange: copy.exchange.clone(),
                routing_key: copy.routing_key.clone(),
                mandatory: true,
                head,
                body: native.body.clone(),
            })
        });
        for (result, (at, _)) in published.await.into_iter().zip(&copies) {
            results[*at] = result.map_err(|e| e.operation("settle"));
        }
        results
    }

    fn open(&self, held: &Held) -> bool {
        held.attachment.alive() && !held.attachment.acks().is_settled(held.tag)
    }
}

/// A copy to be made.
struct Copy {
    exchange: ShortString,
    routing_key: ShortString,
    carried: Carried,
    rung: Option<Rung>,
}

#[async_trait]
impl Settler for RabbitmqSettler {
    fn batching(&self) -> Batching {
        Batching::new(1_000, 8 << 20, 2)
    }

    async fn settle(&self, batch: &[Settle]) -> Vec<Result<()>> {
        let mut held = Vec::with_capacity(batch.len());
        for settle in batch {
            match settle.token.get::<Held>() {
                Ok(found) => held.push(found),
                Err(e) => return e.for_each_of(batch.len()),
            }
        }
        let copied = batch.iter().any(|s| s.how.copies());
        let mut results = match copied {
            true => self.copies(batch, &held).await,
            false => batch.iter().map(|_| Ok(())).collect(),
        };
        // Usually one generation; after a reconnect some may be of an earlier one.
        let mut left: Vec<usize> = (0..batch.len()).filter(|i| results[*i].is_ok()).collect();
        while let Some(first) = left.first().copied() {
            let attachment: &Arc<Attachment> = &held[first].attachment;
            let (these, others): (Vec<usize>, Vec<usize>) =
                left.into_iter().partition(|i| Arc::ptr_eq(&held[*i].attachment, attachment));
            let items: Vec<(u64, How)> = these.iter().map(|i| (held[*i].tag, how(&batch[*i].how))).collect();
            for (i, settled) in these.iter().zip(attachment.settle(&items).await) {
                results[*i] = settled.map_err(|e| if batch[*i].how.copies() { e.with("copy", "kept") } else { e });
            }
            left = others;
        }
        results
    }

    fn holds(&self, token: &Token) -> bool {
        token.get::<Held>().is_ok_and(|held| held.attachment.alive())
    }

    async fn close(&self) -> Result<()> {
        self.feed.closed.store(true, Ordering::Release);
        let current = self.feed.current().take();
        if let Some(attachment) = current {
            attachment.end().await;
        }
        self.outlet.close().await;
        Ok(())
    }
}

fn how(settlement: &Settlement) -> How {
    match settlement {
        Settlement::Release => How::Reject,
        Settlement::GiveBack => How::Nack,
        // A copy is made: the original is done with.
        _ => How::Ack,
    }
}
