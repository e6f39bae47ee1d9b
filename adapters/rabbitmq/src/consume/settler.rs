//! Settling deliveries: acks merged, copies confirmed before the original is acknowledged.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use lapin::types::ShortString;
use polybus_core::{
    Envelope, Error, ErrorKind, Result, Source,
    driver::{Batching, DriverToken, SettleRequest, Settlement, Settler},
    message::cloudevents::CopyState,
    topology::Entity,
};

use time::OffsetDateTime;

use crate::{
    config::QueueType,
    consume::consumer_channel::{Attachment, Feed, How, Message},
    error,
    message::{
        envelope::{self, Head, Native},
        packed_copies,
    },
    publish::{
        confirm_channel::Parcel,
        confirmed_publisher::{Outlet, Rung},
    },
    topology::{
        channel_operations::short,
        delay_queues::{self, Rungs, Target},
        names,
    },
    transport::connection::Links,
};

/// Failed deliveries after which a release is a copy: well below the limit of 20 that RabbitMQ 4 has for queues that name none.
const MANY: u32 = 12;

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
    /// A release that the broker might count to its limit is a copy.
    copies_early: bool,
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
            copies_early: queue_type == QueueType::Quorum && !from.name.is_dead_letters() && !from.settings.ordered,
            named: from.settings.retry.clone(),
        })
    }

    /// Where the copy for this settlement goes, and what it carries.
    fn copy(&self, held: &Message, settle: &SettleRequest) -> Result<Copy> {
        let mut carried = held.carried.copied(settle, &self.source);
        let mut rung = None;
        let (exchange, routing_key) = match &settle.how {
            Settlement::RetryAfter(delay) if !self.source.is_dead_letters() => {
                if *delay > delay_queues::MAX_DELAY {
                    return Err(
                        Error::unsupported("RabbitMQ delays messages by 45 days at most").with_operation("settle")
                    );
                }
                let (target, delay) = (self.target(), delay_queues::pick(*delay, &self.named));
                let route = Rungs::route(&target, delay, &ShortString::default())?;
                rung = Some(Rung { target, delay });
                route
            }
            Settlement::Release | Settlement::GiveBack if self.copied_back(held, &settle.how) => {
                // What nobody began to handle is handed over again as the same attempt.
                let unhandled = u32::from(settle.how == Settlement::GiveBack);
                carried.attempts = settle.attempt.saturating_sub(unhandled);
                (ShortString::default(), short(&self.base)?)
            }
            Settlement::DeadLetter { .. } if !self.source.is_dead_letters() => {
                (ShortString::default(), self.dead_letters.clone())
            }
            Settlement::Redrive | Settlement::RedriveAs(_) if self.source.is_dead_letters() => match self.ordered {
                true => (short(&self.base)?, ShortString::default()),
                false => (ShortString::default(), short(&self.base)?),
            },
            other => return Err(Error::unsupported(format!("{other:?} on {}", self.source)).with_operation("settle")),
        };
        Ok(Copy { exchange, routing_key, carried, rung })
    }

    fn target(&self) -> Target {
        if self.ordered { Target::Slots(self.base.clone()) } else { Target::Queue(self.base.clone()) }
    }

    /// Whether a message goes back as a copy, which begins to count anew. A classic queue does not count; a quorum queue that somebody
    /// else declared drops what it has counted to its limit, 20 by default on RabbitMQ 4, and has no dead letters.
    fn copied_back(&self, held: &Message, how: &Settlement) -> bool {
        let limit = self.feed.limit.load(Ordering::Relaxed).saturating_sub(1).min(MANY);
        let many = self.copies_early && held.returns >= limit;
        (self.copies_releases || many) && *how == Settlement::Release || many && *how == Settlement::GiveBack
    }

    fn is_copied(&self, held: &Message, how: &Settlement) -> bool {
        how.copies() || self.copied_back(held, how)
    }

    /// Copies those of `which` that are still held, and tells which copies the broker has.
    async fn copies(&self, batch: &[SettleRequest], held: &[&Message], which: &[usize]) -> Vec<Result<()>> {
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
            let (head, body) = match &batch[*i].how {
                Settlement::RedriveAs(envelope) => self.anew(envelope, copy)?,
                _ => self.head(&held[*i].native, copy, &batch[*i])?,
            };
            let (exchange, routing_key) = (copy.exchange.clone(), copy.routing_key.clone());
            Ok(Parcel { exchange, routing_key, mandatory: true, head, body })
        });
        for (result, (at, ..)) in published.await.into_iter().zip(&copies) {
            results[*at] = result.map_err(|e| e.with_operation("settle"));
        }
        results
    }

    /// The copy's properties, headers and body. A frame that is too large would close the connection that all publishers share, so what
    /// does not fit travels inside the body.
    fn head(&self, native: &Native, to: &Copy, settle: &SettleRequest) -> Result<(Head, Bytes)> {
        let mut copy = envelope::copy(native, &to.carried, &self.links.config.user);
        if let Some(key) = settle.envelope.key.as_deref().filter(|_| self.ordered) {
            envelope::put_slot(&mut copy.added, names::slot(key));
        }
        // A delay queue or the dead letters would let go of it too early; core looks at what the copy carries.
        let live = to.rung.is_none() && to.carried.dead_letter.is_none();
        if let Some(ends) = copy.ends.filter(|_| live) {
            copy.head.expire(Duration::try_from(ends - OffsetDateTime::now_utc()).unwrap_or_default());
        }
        let fits = |head: &Head, body: &Bytes| head.check_sizes(body.len(), usize::MAX, self.links.frame_max());
        let mut whole = copy.head.clone();
        whole.add(&copy.added);
        match fits(&whole, &native.body) {
            Ok(_) => Ok((whole, native.body.clone())),
            Err(e) => {
                let (head, body) = packed_copies::pack(copy.head, copy.added, &native.body).ok_or(e)?;
                fits(&head, &body).map(|_| (head, body))
            }
        }
    }

    /// Another message in place of the original.
    fn anew(&self, envelope: &Envelope, to: &Copy) -> Result<(Head, Bytes)> {
        let mut head = envelope::encode(envelope, &to.carried, &self.links.config.names)?;
        if let Some(key) = envelope.key.as_deref().filter(|_| self.ordered) {
            head.slot(names::slot(key));
        }
        let limit = self.links.config.max_message_size;
        head.check_sizes(envelope.data.len(), limit, self.links.frame_max())?;
        Ok((head, envelope.data.clone()))
    }

    /// Settles without copies. Usually one generation; after a reconnect some may be of an earlier one.
    async fn finish(&self, held: &[&Message], mut left: Vec<(usize, How)>, results: &mut [Result<()>]) {
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

    fn open(&self, held: &Message) -> bool {
        held.attachment.alive() && !held.attachment.acks().is_settled(held.tag)
    }
}

/// A copy to be made.
struct Copy {
    exchange: ShortString,
    routing_key: ShortString,
    carried: CopyState,
    rung: Option<Rung>,
}

#[async_trait]
impl Settler for RabbitmqSettler {
    fn batching(&self) -> Batching {
        Batching::new(1_000, 8 << 20, 1)
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut held = Vec::with_capacity(batch.len());
        for settle in batch {
            match settle.token.get::<Message>() {
                Ok(found) => held.push(found),
                Err(e) => return e.for_each_of(batch.len()),
            }
        }
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let copied = |i: &usize| self.is_copied(held[*i], &batch[*i].how);
        let (copies, plain): (Vec<usize>, Vec<usize>) = (0..batch.len()).partition(copied);
        let mut settled = Vec::with_capacity(plain.len());
        for i in plain {
            match how(&batch[i].how) {
                Some(how) => settled.push((i, how)),
                None => results[i] = Err(Error::unsupported(format!("{:?}", batch[i].how)).with_operation("settle")),
            }
        }
        self.finish(&held, settled, &mut results).await;
        if !copies.is_empty() {
            let mut made = Vec::with_capacity(copies.len());
            for (i, result) in copies.iter().zip(self.copies(batch, &held, &copies).await) {
                match (result, &batch[*i].how) {
                    (Ok(()), _) => made.push((*i, How::Ack)),
                    // Without the copy it is available again all the same, only not counted.
                    (Err(e), Settlement::Release | Settlement::GiveBack) if e.kind() != ErrorKind::LockLost => {
                        made.push((*i, How::Reject))
                    }
                    (Err(e), _) => results[*i] = Err(e),
                }
            }
            let acked: Vec<usize> = made.iter().filter(|(_, how)| *how == How::Ack).map(|(i, _)| *i).collect();
            self.finish(&held, made, &mut results).await;
            for i in acked {
                if let Err(e) = &results[i] {
                    results[i] = Err(e.clone().with_context("copy", "kept"));
                }
            }
        }
        results
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<Message>().is_ok_and(|held| held.attachment.alive())
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

/// What settles without a copy; `None` for what this driver does not know.
fn how(settlement: &Settlement) -> Option<How> {
    match settlement {
        Settlement::Ack => Some(How::Ack),
        Settlement::Release => Some(How::Reject),
        Settlement::GiveBack => Some(How::Nack),
        _ => None,
    }
}
