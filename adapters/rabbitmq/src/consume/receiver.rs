//! The receiver of one source: a queue, a subscription, dead letters, or the partitions of an ordered source.
//!
//! It reads the consumers of the channel that stands, decodes what they bring, and opens another channel when that
//! one is gone.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;
use lapin::{BasicProperties, Consumer, message::Delivery};
use polybus_core::{
    ErrorKind, Result, Source,
    driver::{DriverToken, ReceivedMessage, Receiver},
};
use time::OffsetDateTime;
use tokio::{task::JoinHandle, time::timeout};

use crate::{
    config::QueueType,
    consume::consumer_channel::{ConsumerChannel, NativeMessage, SettleMethod, SourceConsumer},
    error,
    message::{
        envelope::{self, AmqpMessage},
        packed_copies,
    },
    topology::channel_operations::ProbeChannel,
};

/// How long the deliveries of a cancelled consumer are waited for. lapin ends its stream when the broker has confirmed.
const DRAIN: Duration = Duration::from_secs(5);

/// Takes messages from one source.
pub(crate) struct RabbitmqReceiver {
    consumer: Arc<SourceConsumer>,
    reader: DeliveryReader,
    state: ReceiverState,
}

/// Whether a channel stands.
enum ReceiverState {
    Consuming(Arc<ConsumerChannel>, ConsumerStreams),
    /// A channel is being opened, in a task of its own: a dropped `receive` must not leave half a consumer behind.
    Opening(JoinHandle<Result<(Arc<ConsumerChannel>, Vec<Consumer>)>>),
    /// The next `receive` opens a channel.
    NoChannel,
    /// The broker cancelled the consumer. The next `receive` first looks whether the queue still exists.
    Cancelled,
    Closed,
}

/// Turns deliveries into messages for core.
pub(crate) struct DeliveryReader {
    pub(crate) source: Source,
    /// The CloudEvents `source` of messages that name none.
    pub(crate) address: String,
    pub(crate) queue_type: QueueType,
    pub(crate) max_deliveries: u32,
}

impl RabbitmqReceiver {
    pub(crate) async fn open(consumer: Arc<SourceConsumer>, reader: DeliveryReader) -> Result<Self> {
        let (channel, consumers) = consumer.clone().open_channel().await?;
        Ok(Self { consumer, reader, state: ReceiverState::Consuming(channel, ConsumerStreams::new(consumers)) })
    }

    /// Leaves the channel. Its unsettled deliveries are `LockLost` from now on, and the broker requeues them.
    fn leave_channel(&mut self, to: ReceiverState) {
        if let ReceiverState::Consuming(channel, streams) = std::mem::replace(&mut self.state, to) {
            channel.mark_gone();
            self.consumer.current().take();
            drop(streams);
            tokio::spawn(async move { channel.close().await });
        }
    }

    /// How many more deliveries may be handed out. Only an ordered source needs a count: its partitions' shares of the
    /// prefetch are rounded up, so together they may exceed it.
    fn room(consumer: &SourceConsumer, channel: &ConsumerChannel) -> usize {
        match consumer.ordered {
            true => consumer.prefetch.saturating_sub(usize::try_from(channel.acks().unsettled()).unwrap_or(usize::MAX)),
            false => usize::MAX,
        }
    }

    /// Waits for the next event. A delivery is answered only when there is room for it.
    async fn next(
        consumer: &SourceConsumer,
        channel: &ConsumerChannel,
        streams: &mut ConsumerStreams,
    ) -> ConsumerEvent {
        loop {
            // Created before the room is counted, so that a settlement in between is not missed.
            let settled = channel.settled.notified();
            let room = Self::room(consumer, channel) > 0;
            if let Some(delivery) = streams.stash.pop_front_if(|_| room) {
                return ConsumerEvent::Delivery(delivery);
            }
            if room {
                return streams.next().await;
            }
            // Without room the streams are read all the same, since the end of the channel must be noticed.
            tokio::select! {
                () = settled => {}
                event = streams.next() => match event {
                    ConsumerEvent::Delivery(delivery) => streams.stash.push_back(delivery),
                    end => return end,
                },
            }
        }
    }

    /// Stops reading, and answers what the caller has to give back. lapin cancels a consumer that is dropped, which
    /// must not happen yet on an ordered source, so its consumers are kept by the channel.
    fn stop(&mut self) -> Option<(Arc<ConsumerChannel>, ConsumerStreams)> {
        self.consumer.closed.store(true, Ordering::Release);
        let ReceiverState::Consuming(channel, mut streams) = std::mem::replace(&mut self.state, ReceiverState::Closed)
        else {
            return None;
        };
        if self.consumer.ordered {
            channel.keep_unread(std::mem::take(&mut streams.consumers));
            return None;
        }
        Some((channel, streams))
    }
}

impl Drop for RabbitmqReceiver {
    fn drop(&mut self) {
        self.stop();
    }
}

#[async_trait]
impl Receiver for RabbitmqReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        loop {
            match &mut self.state {
                ReceiverState::Closed => {
                    return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed"));
                }
                ReceiverState::NoChannel => {
                    self.state = ReceiverState::Opening(tokio::spawn(self.consumer.clone().open_channel()))
                }
                ReceiverState::Opening(opening) => {
                    let attached = opening.await;
                    self.state = ReceiverState::NoChannel;
                    let lost = |e| error::new(ErrorKind::Unexpected, "receive", format!("attaching failed: {e}"));
                    let (channel, consumers) = attached.map_err(lost)??;
                    self.state = ReceiverState::Consuming(channel, ConsumerStreams::new(consumers));
                }
                ReceiverState::Cancelled => {
                    let mut probe = ProbeChannel::new(&self.consumer.connections);
                    for queue in &self.consumer.queues {
                        if probe.find_queue(queue).await?.is_none() {
                            let text = format!("queue {queue:?} was deleted");
                            return Err(error::new(ErrorKind::NotFound, "receive", text)
                                .with_context("source", &self.consumer.name));
                        }
                    }
                    probe.close().await;
                    self.state = ReceiverState::NoChannel;
                }
                ReceiverState::Consuming(channel, streams) => {
                    let mut event = Some(Self::next(&self.consumer, channel, streams).await);
                    let room = Self::room(&self.consumer, channel).clamp(1, max);
                    let mut messages = Vec::new();
                    let ended = loop {
                        match event.take() {
                            None => break None,
                            Some(ConsumerEvent::Delivery(delivery)) => {
                                channel.acks().deliver(delivery.delivery_tag);
                                messages.push(self.reader.read(*delivery, channel, &self.consumer));
                            }
                            Some(end) => break Some(end),
                        }
                        if messages.len() < room {
                            event = streams.ready();
                        }
                    };
                    let alive = channel.alive();
                    match ended {
                        None if alive => return Ok(messages),
                        // Messages of a lost channel are dropped: they could not be settled, and come again.
                        Some(ConsumerEvent::Failed(e)) => {
                            self.leave_channel(ReceiverState::NoChannel);
                            return Err(error::of(&e, "receive").with_context("source", &self.consumer.name));
                        }
                        Some(_) => self.leave_channel(ReceiverState::Cancelled),
                        None => self.leave_channel(ReceiverState::NoChannel),
                    }
                }
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.consumer.closed.store(true, Ordering::Release);
        if let ReceiverState::Opening(opening) = &mut self.state {
            // `closed` is set above, before this waits: the task either sees it, or hands over the channel it has
            // opened.
            self.state = match opening.await {
                Ok(Ok((channel, consumers))) => ReceiverState::Consuming(channel, ConsumerStreams::new(consumers)),
                _ => ReceiverState::Closed,
            };
        }
        if let Some((channel, streams)) = self.stop().filter(|(channel, _)| channel.alive()) {
            give_back(&channel, streams).await;
        }
        Ok(())
    }
}

/// Cancels the consumers, and requeues in order what they had delivered and `receive` has not returned.
async fn give_back(channel: &ConsumerChannel, mut streams: ConsumerStreams) {
    for consumer in &streams.consumers {
        if channel.cancel(consumer).await.is_err() {
            return;
        }
    }
    let mut left = Vec::new();
    let drain = async {
        while let ConsumerEvent::Delivery(delivery) = streams.next().await {
            channel.acks().deliver(delivery.delivery_tag);
            left.push((delivery.delivery_tag, SettleMethod::Nack));
        }
    };
    let drained = timeout(DRAIN, drain).await;
    if drained.is_err() {
        tracing::debug!("the broker did not end the consumer in time");
    }
    channel.settle(&left).await;
}

impl DeliveryReader {
    fn read(&self, delivery: Delivery, channel: &Arc<ConsumerChannel>, consumer: &SourceConsumer) -> ReceivedMessage {
        let Delivery { delivery_tag: tag, redelivered, exchange, routing_key, properties, data, .. } = delivery;
        let properties = channel.connection.large.restore(properties);
        let arrived = OffsetDateTime::now_utc();
        let native = AmqpMessage { properties, body: Bytes::from(data), exchange, routing_key, arrived };
        let native = packed_copies::unpack(native);
        let decoded = envelope::decode(&native, &self.address);
        let failed_deliveries = failed_deliveries(redelivered, self.queue_type, &native.properties);
        let dead = self.source.is_dead_letters();
        let mut carried = decoded.carried;
        let attempts = if dead { 0 } else { carried.attempts };
        let told = carried.dead_letter.take().or_else(|| {
            let mut told = envelope::broker_dead_letter(&native.properties, &self.source)?;
            carried.tell_redriven(&mut told);
            Some(told)
        });
        let mark = carried.mark.clone();
        let token =
            DriverToken::new(NativeMessage { channel: channel.clone(), tag, native, carried, failed_deliveries });
        let native_token = token.clone();
        // The broker would drop the message at its next failure. One attempt above `max_deliveries` makes core
        // dead-letter it now.
        let last = failed_deliveries > 0 && failed_deliveries >= consumer.limit.load(Ordering::Relaxed) && !dead;
        let attempt = attempts.saturating_add(failed_deliveries).saturating_add(1);
        let attempt = if last { attempt.max(self.max_deliveries.saturating_add(1)) } else { attempt };
        let mut received = ReceivedMessage::new(token, decoded.envelope, attempt);
        received.malformed = decoded.malformed;
        received.mark = mark;
        received.native = Some(native_token);
        received.dead_letter = told.filter(|_| dead);
        received
    }
}

/// How many deliveries of the message have failed, as far as the broker tells.
///
/// A quorum queue counts them in a header. A classic queue never writes that header and tells only that there was an
/// earlier delivery. On a message that is not delivered again the header is somebody else's.
fn failed_deliveries(redelivered: bool, queue_type: QueueType, properties: &BasicProperties) -> u32 {
    match (redelivered, queue_type) {
        (false, _) => 0,
        (true, QueueType::Classic) => 1,
        (true, QueueType::Quorum) => envelope::failed_deliveries(properties).unwrap_or(1),
    }
}

/// What the consumers of a channel bring next.
enum ConsumerEvent {
    Delivery(Box<Delivery>),
    /// A consumer ended: the broker or this program cancelled it.
    Ended,
    /// The channel or connection failed.
    Failed(lapin::Error),
}

/// The consumers of one channel, polled in turn so that none starves another.
struct ConsumerStreams {
    consumers: Vec<Consumer>,
    /// The consumer that is polled first the next time.
    next: usize,
    /// Deliveries that arrived while there was no room.
    stash: VecDeque<Box<Delivery>>,
}

impl ConsumerStreams {
    fn new(consumers: Vec<Consumer>) -> Self {
        Self { consumers, next: 0, stash: VecDeque::new() }
    }

    async fn next(&mut self) -> ConsumerEvent {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// The next event, if there is one without waiting.
    fn ready(&mut self) -> Option<ConsumerEvent> {
        if let Some(delivery) = self.stash.pop_front() {
            return Some(ConsumerEvent::Delivery(delivery));
        }
        match self.poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ConsumerEvent> {
        let count = self.consumers.len();
        for step in 0..count {
            let at = (self.next + step) % count;
            if let Poll::Ready(item) = Pin::new(&mut self.consumers[at]).poll_next(cx) {
                self.next = (at + 1) % count;
                return Poll::Ready(match item {
                    Some(Ok(delivery)) => ConsumerEvent::Delivery(Box::new(delivery)),
                    Some(Err(e)) => ConsumerEvent::Failed(e),
                    None => ConsumerEvent::Ended,
                });
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::{AMQPValue, FieldTable};

    /// <https://www.rabbitmq.com/docs/4.3/nack>
    #[test]
    fn failed_deliveries_are_counted_as_each_version_tells_them() {
        let (quorum, classic) = (QueueType::Quorum, QueueType::Classic);
        let count = AMQPValue::LongLongInt;
        for (redelivered, queue_type, headers, failed, what) in [
            (false, quorum, vec![], 0, "the first time"),
            (false, quorum, vec![("x-delivery-count", count(7))], 0, "somebody else's header"),
            (
                true,
                quorum,
                vec![("x-delivery-count", count(3))],
                3,
                "up to 4.2 whatever the reason, from 4.3 on rejects",
            ),
            (
                true,
                quorum,
                vec![("x-delivery-count", count(2)), ("x-acquired-count", count(9))],
                2,
                "4.3, 9 hand-overs",
            ),
            (true, quorum, vec![("x-acquired-count", count(2))], 0, "4.3: given back by basic.nack, none failed"),
            (true, quorum, vec![("x-delivery-count", AMQPValue::LongInt(1))], 1, "another type of integer"),
            (true, quorum, vec![("x-delivery-count", count(i64::MAX))], u32::MAX, "too many"),
            (true, quorum, vec![("x-delivery-count", count(-1))], 1, "no count: once at least"),
            (true, quorum, vec![], 1, "not told: once at least"),
            (true, classic, vec![], 1, "classic queues say no more than that"),
            (true, classic, vec![("x-delivery-count", count(7))], 1, "somebody else's header"),
            (false, classic, vec![], 0, "the first time"),
        ] {
            let mut table = FieldTable::default();
            for (name, value) in headers {
                table.insert(name.into(), value);
            }
            let properties = BasicProperties::default().with_headers(table);
            assert_eq!(failed_deliveries(redelivered, queue_type, &properties), failed, "{what}");
        }
    }

    #[test]
    fn what_counts_at_the_broker_stays_behind_in_copies() {
        for name in ["x-delivery-count", "x-acquired-count", "x-death", "x-first-death-queue"] {
            assert!(envelope::is_broker_header(name), "{name}");
        }
    }
}
