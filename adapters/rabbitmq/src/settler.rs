//! Settling deliveries: acks merged, copies confirmed before the original is acknowledged.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use lapin::types::ShortString;
use polybus_core::{
    Batching, Entity, Error, Kind, Result, Settle, Settlement, Settler, Source, Token, cloudevents::Carried,
};

use crate::{
    attachment::{Attachment, Feed, Held, How},
    config::QueueType,
    confirms::Parcel,
    connection::Links,
    envelope::{self, Head, Native},
    error,
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
    /// A classic queue does not count its returns: a release is a copy that carries the count.
    copies_releases: bool,
    named: Vec<Duration>,
}

impl RabbitmqSettler {
    pub(crate) fn new(
        feed: Arc<Feed>,
        rungs: Arc<Rungs>,
        from: &Entity<Source>,
        queue_type: QueueType,
    ) -> Result<Self> {
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
            copies_releases: queue_type == QueueType::Classic && !from.name.is_dead_letters() && !from.settings.ordered,
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
            Settlement::Release if self.copies_releases => {
                carried.attempts = settle.attempt;
                (ShortString::default(), short(&self.base)?)
            }
            Settlement::DeadLetter { .. } if !self.source.is_dead_letters() => {
                carried.dead_letter = settle.dead_letter(&self.source);
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

    fn is_copied(&self, how: &Settlement) -> bool {
        how.copies() || (self.copies_releases && *how == Settlement::Release)
    }

    /// Copies those of `which` that are still held, and tells which copies the broker has.
    async fn copies(&self, batch: &[Settle], held: &[&Held], which: &[usize]) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = Vec::with_capacity(which.len());
        // Place among the results, place in the batch, copy.
        let mut copies = Vec::new();
        for i in which {
            let copy = match self.open(held[*i]) {
                true => self.copy(held[*i], &batch[*i]),
                false => Err(error::lock_lost("the channel that delivered the message is gone")),
            };
            results.push(copy.map(|copy| copies.push((results.len(), *i, copy))));
        }
        let rungs: Vec<Option<&Rung>> = copies.iter().map(|(_, _, copy)| copy.rung.as_ref()).collect();
        let published = self.outlet.publish(&rungs, |i| {
            let (_, i, copy) = &copies[i];
            let native = &held[*i].native;
            let head = self.head(native, &copy.carried, &batch[*i])?;
            Ok(Parcel {
                exchange: copy.exchange.clone(),
                routing_key: copy.routing_key.clone(),
                mandatory: true,
                head,
                body: native.body.clone(),
            })
        });
        for (result, (at, ..)) in published.await.into_iter().zip(&copies) {
            results[*at] = result.map_err(|e| e.operation("settle"));
        }
        results
    }

    /// The copy's properties and headers. A frame that is too large would close the connection that all publishers share.
    fn head(&self, native: &Native, carried: &Carried, settle: &Settle) -> Result<Head> {
        let made = |carried: &Carried| {
            let mut head = envelope::copy(native, carried, &self.links.config.user);
            if let Some(key) = settle.envelope.key.as_deref().filter(|_| self.ordered) {
                head.slot(names::slot(key));
            }
            head.check_sizes(native.body.len(), usize::MAX, self.links.frame_max()).map(|_| head)
        };
        match (made(carried), &carried.dead_letter) {
            (Err(_), Some(letter)) if letter.detail.is_some() => {
                let mut without = carried.clone();
                if let Some(letter) = &mut without.dead_letter {
                    letter.detail = None;
                }
                made(&without)
            }
            (made, _) => made,
        }
    }

    /// Settles without copies. Usually one generation; after a reconnect some may be of an earlier one.
    async fn finish(&self, held: &[&Held], mut left: Vec<(usize, How)>, results: &mut [Result<()>]) {
        while let Some((first, _)) = left.first() {
            let attachment: &Arc<Attachment> = &held[*first].attachment;
            let (these, others): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|(i, _)| Arc::ptr_eq(&held[*i].attachment, attachment));
            let items: Vec<(u64, How)> = these.iter().map(|(i, how)| (held[*i].tag, *how)).collect();
            for ((i, _), settled) in these.iter().zip(attachment.settle(&items).await) {
                results[*i] = settled;
            }
            left = others;
        }
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
        Batching::new(1_000, 8 << 20, 1)
    }

    async fn settle(&self, batch: &[Settle]) -> Vec<Result<()>> {
        let mut held = Vec::with_capacity(batch.len());
        for settle in batch {
            match settle.token.get::<Held>() {
                Ok(found) => held.push(found),
                Err(e) => return e.for_each_of(batch.len()),
            }
        }
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let copied = |i: &usize| self.is_copied(&batch[*i].how);
        let (copies, plain): (Vec<usize>, Vec<usize>) = (0..batch.len()).partition(copied);
        let plain: Vec<(usize, How)> = plain.into_iter().map(|i| (i, how(&batch[i].how))).collect();
        self.finish(&held, plain, &mut results).await;
        if !copies.is_empty() {
            let mut made = Vec::with_capacity(copies.len());
            for (i, result) in copies.iter().zip(self.copies(batch, &held, &copies).await) {
                match (result, &batch[*i].how) {
                    (Ok(()), _) => made.push((*i, How::Ack)),
                    // Without the copy it is available again all the same, only not counted.
                    (Err(e), Settlement::Release) if e.kind() != Kind::LockLost => made.push((*i, How::Reject)),
                    (Err(e), _) => results[*i] = Err(e),
                }
            }
            let acked: Vec<usize> = made.iter().filter(|(_, how)| *how == How::Ack).map(|(i, _)| *i).collect();
            self.finish(&held, made, &mut results).await;
            for i in acked {
                if let Err(e) = &results[i] {
                    results[i] = Err(e.clone().with("copy", "kept"));
                }
            }
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
        _ => How::Ack,
    }
}
