//! The settler of one source.
//!
//! An ack, a release and a give-back are one AMQP method each, on the channel that delivered the message. Retries,
//! dead letters and redrives publish a copy, and acknowledge the original only after the broker has confirmed the
//! copy. After a crash between the two the message is there twice, and never lost.

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

use crate::{
    config::QueueType,
    consume::consumer_channel::{ConsumerChannel, NativeMessage, SettleMethod, SourceConsumer},
    error,
    message::{
        envelope::{self, AmqpMessage, ContentHeader},
        fitting_copies::CopyRequest,
    },
    publish::{confirm_channel::PublishRequest, confirmed_publisher::ConfirmedPublisher},
    topology::{
        channel_operations::short,
        delay_queues::{DelayQueue, KnownDelayQueues, PublishTarget},
        names,
    },
    transport::connection::DriverConnections,
};

/// After this many failed deliveries a release on a quorum queue is a copy. It is well below 20, the delivery limit
/// that RabbitMQ 4 gives a queue which names none.
const FAILURES_BEFORE_COPY: u32 = 12;

/// Settles the deliveries of one source.
pub(crate) struct RabbitmqSettler {
    consumer: Arc<SourceConsumer>,
    publisher: ConfirmedPublisher,
    connections: Arc<DriverConnections>,
    source: Source,
    /// The live queue of the source, or the headers exchange of an ordered one.
    base: ShortString,
    dead_letters: ShortString,
    ordered: bool,
    /// Every release is a copy that carries the count of attempts, since a classic queue does not count.
    copies_releases: bool,
    /// A release is a copy where the broker might count the message to its limit.
    copies_early: bool,
    /// The retry delays that the topology names.
    named: Vec<Duration>,
}

impl RabbitmqSettler {
    pub(crate) fn new(
        consumer: Arc<SourceConsumer>,
        delay_queues: Arc<KnownDelayQueues>,
        from: &Entity<Source>,
        queue_type: QueueType,
    ) -> Result<Self> {
        let connections = consumer.connections.clone();
        let base = names::base(from);
        Ok(Self {
            publisher: ConfirmedPublisher::new(connections.clone(), delay_queues, None, from.name.to_string()),
            dead_letters: short(&names::dead_letters(&base))?,
            connections,
            consumer,
            source: from.name.clone(),
            base: short(&base)?,
            ordered: from.settings.ordered,
            copies_releases: queue_type == QueueType::Classic && !from.name.is_dead_letters() && !from.settings.ordered,
            copies_early: queue_type == QueueType::Quorum && !from.name.is_dead_letters() && !from.settings.ordered,
            named: from.settings.retry.clone(),
        })
    }

    /// Decides where the copy for a settlement goes and what it carries.
    fn plan_copy(&self, message: &NativeMessage, settle: &SettleRequest) -> Result<PlannedCopy> {
        let mut carried = message.carried.copied(settle, &self.source);
        let mut delay_queue = None;
        let (exchange, routing_key) = match &settle.how {
            Settlement::RetryAfter(delay) if !self.source.is_dead_letters() => {
                let queue = DelayQueue::choose(self.target(), *delay, &self.named);
                let queue = queue.map_err(|e| e.with_operation("settle"))?;
                delay_queue.insert(queue).route(&ShortString::default())?
            }
            Settlement::Release | Settlement::GiveBack if self.copied_back(message, &settle.how) => {
                // No handler began to handle a message that is given back, so it comes again as the same attempt.
                let unhandled = u32::from(settle.how == Settlement::GiveBack);
                carried.attempts = settle.attempt.saturating_sub(unhandled);
                (ShortString::default(), self.base.clone())
            }
            Settlement::DeadLetter { .. } if !self.source.is_dead_letters() => {
                (ShortString::default(), self.dead_letters.clone())
            }
            Settlement::Redrive | Settlement::RedriveAs(_) if self.source.is_dead_letters() => match self.ordered {
                true => (self.base.clone(), ShortString::default()),
                false => (ShortString::default(), self.base.clone()),
            },
            other => return Err(Error::unsupported(format!("{other:?} on {}", self.source)).with_operation("settle")),
        };
        Ok(PlannedCopy { exchange, routing_key, carried, delay_queue })
    }

    /// Where a delayed copy goes in the end.
    ///
    /// The retries of ordered sources have no copies. Core holds such a message itself
    /// (`core/src/consume/settle/rules.rs`, `keep_in_place`), because the capabilities say `KeyHolder::Client`. So
    /// `Release` and `RetryAfter` never come here for the live messages of an ordered source.
    fn target(&self) -> PublishTarget {
        if self.ordered { PublishTarget::Slots(self.base.clone()) } else { PublishTarget::Queue(self.base.clone()) }
    }

    /// Whether a message goes back as a copy, for which the broker begins to count anew. Never on ordered sources,
    /// whose released messages core holds: see [`target`](Self::target).
    ///
    /// A classic queue does not count, so the copy carries the count. A quorum queue that somebody else declared
    /// drops a message whose failures reach the queue's limit, 20 by default on RabbitMQ 4, and may have no dead
    /// letters.
    fn copied_back(&self, message: &NativeMessage, how: &Settlement) -> bool {
        let limit = self.consumer.limit.load(Ordering::Relaxed).saturating_sub(1).min(FAILURES_BEFORE_COPY);
        let many = self.copies_early && message.failed_deliveries >= limit;
        (self.copies_releases || many) && *how == Settlement::Release || many && *how == Settlement::GiveBack
    }

    /// Whether the settlement publishes a copy.
    fn is_copied(&self, message: &NativeMessage, how: &Settlement) -> bool {
        how.copies() || self.copied_back(message, how)
    }

    /// Publishes copies of the messages at the places `which`, and answers one result for each. Ok: the broker has
    /// confirmed the copy. A message that is no longer held is not copied.
    async fn publish_copies(
        &self,
        batch: &[SettleRequest],
        messages: &[&NativeMessage],
        which: &[usize],
    ) -> Vec<Result<()>> {
        let mut results: Vec<Result<()>> = Vec::with_capacity(which.len());
        // Place among the results, place in the batch, copy.
        let mut copies = Vec::new();
        for i in which {
            let copy = match self.is_held(messages[*i]) {
                true => self.plan_copy(messages[*i], &batch[*i]),
                false => Err(error::lock_lost("the channel that delivered the message is gone")),
            };
            results.push(copy.map(|copy| copies.push((results.len(), *i, copy))));
        }
        let delay_queues: Vec<Option<&DelayQueue>> =
            copies.iter().map(|(_, _, copy)| copy.delay_queue.as_ref()).collect();
        let published = self.publisher.publish(&delay_queues, |i| {
            let (_, i, copy) = &copies[i];
            let (head, body) = match &batch[*i].how {
                Settlement::RedriveAs(envelope) => self.replacement(&messages[*i].native, envelope, copy)?,
                _ => self.copy_request(copy, &batch[*i]).encode(&messages[*i].native, &copy.carried)?,
            };
            let (exchange, routing_key) = (copy.exchange.clone(), copy.routing_key.clone());
            Ok(PublishRequest { exchange, routing_key, mandatory: true, head, body })
        });
        let mut published = published.await;
        self.publish_smaller(batch, messages, &copies, &mut published).await;
        for (result, (at, ..)) in published.into_iter().zip(&copies) {
            results[*at] = result.map_err(|e| e.with_operation("settle"));
        }
        results
    }

    /// Publishes bare copies in place of those that the broker has refused as too large. A packed copy has a larger
    /// body than its original, which the broker once took.
    async fn publish_smaller(
        &self,
        batch: &[SettleRequest],
        messages: &[&NativeMessage],
        copies: &[(usize, usize, PlannedCopy)],
        published: &mut [Result<()>],
    ) {
        let mut smaller = Vec::new();
        for (at, result) in published.iter().enumerate() {
            let (_, i, copy) = &copies[at];
            if result.as_ref().is_err_and(|e| e.kind() == ErrorKind::PayloadTooLarge)
                && let Some(made) = self.smaller_copy(&messages[*i].native, copy, &batch[*i])
            {
                let id = &batch[*i].envelope.id;
                tracing::warn!(source = %self.source, %id, "no room at the broker: the copy carries nothing");
                smaller.push((at, made));
            }
        }
        if smaller.is_empty() {
            return;
        }
        let straight = vec![None; smaller.len()];
        let again = self.publisher.publish(&straight, |n| {
            let (at, (head, body)) = &smaller[n];
            let (_, _, copy) = &copies[*at];
            let (exchange, routing_key) = (copy.exchange.clone(), copy.routing_key.clone());
            Ok(PublishRequest { exchange, routing_key, mandatory: true, head: head.clone(), body: body.clone() })
        });
        for (result, (at, _)) in again.await.into_iter().zip(&smaller) {
            published[*at] = result;
        }
    }

    /// What the copy for a settlement is made for.
    fn copy_request(&self, to: &PlannedCopy, settle: &SettleRequest) -> CopyRequest<'_> {
        CopyRequest {
            user: &self.connections.config.user,
            frame_max: self.connections.frame_max(),
            slot: settle.envelope.key.as_deref().filter(|_| self.ordered).map(names::slot),
            live: to.delay_queue.is_none() && to.carried.dead_letter.is_none(),
            moves: matches!(settle.how, Settlement::DeadLetter { .. } | Settlement::Redrive),
        }
    }

    /// The bare copy of a message whose copy the broker has refused as too large. `None` where it would be no smaller,
    /// or where the settlement is none that may lose what polybus adds.
    fn smaller_copy(
        &self,
        native: &AmqpMessage,
        to: &PlannedCopy,
        settle: &SettleRequest,
    ) -> Option<(ContentHeader, Bytes)> {
        let request = self.copy_request(to, settle);
        let (_, refused) = request.encode(native, &to.carried).ok().filter(|_| request.moves)?;
        request.encode_bare(native).ok().filter(|(_, bare)| bare.len() < refused.len())
    }

    /// The header and body of the message that a redrive publishes in place of the original. It may be larger than was
    /// configured where the original is: the broker alone knows its limit then.
    fn replacement(
        &self,
        native: &AmqpMessage,
        envelope: &Envelope,
        to: &PlannedCopy,
    ) -> Result<(ContentHeader, Bytes)> {
        let mut head = envelope::encode(envelope, &to.carried, &self.connections.config.names)?;
        if let Some(key) = envelope.key.as_deref().filter(|_| self.ordered) {
            head.set_slot(names::slot(key));
        }
        let limit = native.replacement_limit(self.connections.config.max_message_size);
        head.check_sizes(envelope.data.len(), limit, self.connections.frame_max())?;
        Ok((head, envelope.data.clone()))
    }

    /// Settles without copies, each delivery on its own channel. Usually all are of one channel. After a reconnect
    /// some may be of an earlier one.
    async fn settle_plainly(
        &self,
        messages: &[&NativeMessage],
        mut left: Vec<(usize, SettleMethod)>,
        results: &mut [Result<()>],
    ) {
        while let Some((first, _)) = left.first() {
            let channel: &Arc<ConsumerChannel> = &messages[*first].channel;
            let (these, others): (Vec<_>, Vec<_>) =
                left.into_iter().partition(|(i, _)| Arc::ptr_eq(&messages[*i].channel, channel));
            let items: Vec<(u64, SettleMethod)> = these.iter().map(|(i, how)| (messages[*i].tag, *how)).collect();
            for ((i, _), settled) in these.iter().zip(channel.settle(&items).await) {
                results[*i] = settled;
            }
            left = others;
        }
    }

    /// Whether the delivery can still be settled, as far as is known without I/O.
    fn is_held(&self, message: &NativeMessage) -> bool {
        message.channel.alive() && !message.channel.acks().is_settled(message.tag)
    }
}

/// Where a copy goes, and what it carries.
struct PlannedCopy {
    exchange: ShortString,
    routing_key: ShortString,
    carried: CopyState,
    delay_queue: Option<DelayQueue>,
}

#[async_trait]
impl Settler for RabbitmqSettler {
    /// Up to 1,000 settlements or 8 MiB of copies in a batch, and one batch at a time: fewer frames with more acks
    /// each are faster than two batches at once.
    fn batching(&self) -> Batching {
        Batching::new(1_000, 8 << 20, 1)
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let mut messages = Vec::with_capacity(batch.len());
        for settle in batch {
            match settle.token.get::<NativeMessage>() {
                Ok(found) => messages.push(found),
                Err(e) => return e.for_each_of(batch.len()),
            }
        }
        let mut results: Vec<Result<()>> = batch.iter().map(|_| Ok(())).collect();
        let copied = |i: &usize| self.is_copied(messages[*i], &batch[*i].how);
        let (copies, plain): (Vec<usize>, Vec<usize>) = (0..batch.len()).partition(copied);
        let mut settled = Vec::with_capacity(plain.len());
        for i in plain {
            match settle_method(&batch[i].how) {
                Some(how) => settled.push((i, how)),
                None => results[i] = Err(Error::unsupported(format!("{:?}", batch[i].how)).with_operation("settle")),
            }
        }
        self.settle_plainly(&messages, settled, &mut results).await;
        if !copies.is_empty() {
            let mut made = Vec::with_capacity(copies.len());
            for (i, result) in copies.iter().zip(self.publish_copies(batch, &messages, &copies).await) {
                match (result, &batch[*i].how) {
                    (Ok(()), _) => made.push((*i, SettleMethod::Ack)),
                    // A release whose copy failed is requeued instead: the attempt is not counted, and nothing is lost.
                    (Err(e), Settlement::Release | Settlement::GiveBack) if e.kind() != ErrorKind::LockLost => {
                        made.push((*i, SettleMethod::Reject))
                    }
                    (Err(e), _) => results[*i] = Err(e),
                }
            }
            let acked: Vec<usize> = made.iter().filter(|(_, how)| *how == SettleMethod::Ack).map(|(i, _)| *i).collect();
            self.settle_plainly(&messages, made, &mut results).await;
            // The copy is at the broker and the original is not acknowledged: core must not copy again.
            for i in acked {
                if let Err(e) = &results[i] {
                    results[i] = Err(e.clone().with_kept_copy());
                }
            }
        }
        results
    }

    fn holds(&self, token: &DriverToken) -> bool {
        token.get::<NativeMessage>().is_ok_and(|message| message.channel.alive())
    }

    async fn close(&self) -> Result<()> {
        self.consumer.closed.store(true, Ordering::Release);
        let current = self.consumer.current().take();
        if let Some(channel) = current {
            channel.close().await;
        }
        self.publisher.close().await;
        Ok(())
    }
}

/// The AMQP method for a settlement without a copy; `None` for a settlement that this driver does not know.
///
/// A release is `basic.reject` and a give-back is `basic.nack`, since RabbitMQ 4.3 counts only the former as a failure.
fn settle_method(settlement: &Settlement) -> Option<SettleMethod> {
    match settlement {
        Settlement::Ack => Some(SettleMethod::Ack),
        Settlement::Release => Some(SettleMethod::Reject),
        Settlement::GiveBack => Some(SettleMethod::Nack),
        _ => None,
    }
}
