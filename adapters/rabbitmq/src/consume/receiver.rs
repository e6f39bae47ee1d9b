//! Taking messages from a queue, a subscription, dead letters, or an ordered source's partitions.

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
    consume::consumer_channel::{Attachment, Feed, How, Message},
    error,
    message::{
        envelope::{self, Native},
        packed_copies,
    },
    topology::channel_operations::Scratch,
};

/// How long the broker may take to say that a cancelled consumer gets no more.
const DRAIN: Duration = Duration::from_secs(5);

pub(crate) struct RabbitmqReceiver {
    feed: Arc<Feed>,
    reader: Reader,
    state: State,
}

enum State {
    Attached(Arc<Attachment>, Streams),
    /// In a task of its own: a consumer that was asked for must not be forgotten halfway.
    Attaching(JoinHandle<Result<(Arc<Attachment>, Vec<Consumer>)>>),
    Detached,
    /// The broker took the consumer away; whether the queue is still there is yet to be asked.
    Cancelled,
    Closed,
}

/// How deliveries become messages.
pub(crate) struct Reader {
    pub(crate) source: Source,
    /// The `source` of messages that name none.
    pub(crate) address: String,
    pub(crate) queue_type: QueueType,
    pub(crate) max_deliveries: u32,
}

impl RabbitmqReceiver {
    pub(crate) async fn open(feed: Arc<Feed>, reader: Reader) -> Result<Self> {
        let (attachment, consumers) = feed.clone().attach().await?;
        Ok(Self { feed, reader, state: State::Attached(attachment, Streams::new(consumers)) })
    }

    /// Leaves the generation. Its open receipts are `LockLost` from now on; what it had not settled goes back.
    fn detach(&mut self, to: State) {
        if let State::Attached(attachment, streams) = std::mem::replace(&mut self.state, to) {
            attachment.leave();
            self.feed.current().take();
            drop(streams);
            tokio::spawn(async move { attachment.end().await });
        }
    }

    /// How many more may be handed out. Partitions' shares add up to more than the prefetch if it does not divide.
    fn room(feed: &Feed, attachment: &Attachment) -> usize {
        match feed.ordered {
            true => feed.prefetch.saturating_sub(usize::try_from(attachment.acks().unsettled()).unwrap_or(usize::MAX)),
            false => usize::MAX,
        }
    }

    /// Until something is there: the next event, a delivery only if there is room for it.
    async fn next(feed: &Feed, attachment: &Attachment, streams: &mut Streams) -> Event {
        loop {
            let settled = attachment.settled.notified();
            let room = Self::room(feed, attachment) > 0;
            if let Some(delivery) = streams.stash.pop_front_if(|_| room) {
                return Event::Delivery(delivery);
            }
            if room {
                return streams.next().await;
            }
            // The end of the channel must be seen without room, too.
            tokio::select! {
                () = settled => {}
                event = streams.next() => match event {
                    Event::Delivery(delivery) => streams.stash.push_back(delivery),
                    end => return end,
                },
            }
        }
    }

    /// Stops reading. lapin cancels a consumer that is dropped, which an ordered one must not be yet.
    fn stop(&mut self) -> Option<(Arc<Attachment>, Streams)> {
        self.feed.closed.store(true, Ordering::Release);
        let State::Attached(attachment, mut streams) = std::mem::replace(&mut self.state, State::Closed) else {
            return None;
        };
        if self.feed.ordered {
            attachment.park(std::mem::take(&mut streams.consumers));
            return None;
        }
        Some((attachment, streams))
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
                State::Closed => return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed")),
                State::Detached => self.state = State::Attaching(tokio::spawn(self.feed.clone().attach())),
                State::Attaching(attaching) => {
                    let attached = attaching.await;
                    self.state = State::Detached;
                    let lost = |e| error::new(ErrorKind::Unexpected, "receive", format!("attaching failed: {e}"));
                    let (attachment, consumers) = attached.map_err(lost)??;
                    self.state = State::Attached(attachment, Streams::new(consumers));
                }
                State::Cancelled => {
                    let mut scratch = Scratch::new(&self.feed.links);
                    for queue in &self.feed.queues {
                        if scratch.find_queue(queue).await?.is_none() {
                            let text = format!("queue {queue:?} was deleted");
                            return Err(error::new(ErrorKind::NotFound, "receive", text)
                                .with_context("source", &self.feed.name));
                        }
                    }
                    scratch.finish().await;
                    self.state = State::Detached;
                }
                State::Attached(attachment, streams) => {
                    let mut event = Some(Self::next(&self.feed, attachment, streams).await);
                    let room = Self::room(&self.feed, attachment).clamp(1, max);
                    let mut messages = Vec::new();
                    let ended = loop {
                        match event.take() {
                            None => break None,
                            Some(Event::Delivery(delivery)) => {
                                attachment.acks().deliver(delivery.delivery_tag);
                                messages.push(self.reader.read(*delivery, attachment, &self.feed));
                            }
                            Some(end) => break Some(end),
                        }
                        if messages.len() < room {
                            event = streams.ready();
                        }
                    };
                    let alive = attachment.alive();
                    match ended {
                        None if alive => return Ok(messages),
                        // What a lost channel delivered will come again, and so could not be settled.
                        Some(Event::Failed(e)) => {
                            self.detach(State::Detached);
                            return Err(error::of(&e, "receive").with_context("source", &self.feed.name));
                        }
                        Some(_) => self.detach(State::Cancelled),
                        None => self.detach(State::Detached),
                    }
                }
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.feed.closed.store(true, Ordering::Release);
        if let State::Attaching(attaching) = &mut self.state {
            // It sees the flag, or hands over what it has.
            self.state = match attaching.await {
                Ok(Ok((attachment, consumers))) => State::Attached(attachment, Streams::new(consumers)),
                _ => State::Closed,
            };
        }
        if let Some((attachment, streams)) = self.stop().filter(|(attachment, _)| attachment.alive()) {
            give_back(&attachment, streams).await;
        }
        Ok(())
    }
}

/// Ends the consumer and requeues, in order, what it had delivered and nobody has received.
async fn give_back(attachment: &Attachment, mut streams: Streams) {
    for consumer in &streams.consumers {
        if attachment.cancel(consumer).await.is_err() {
            return;
        }
    }
    let mut left = Vec::new();
    let drain = async {
        while let Event::Delivery(delivery) = streams.next().await {
            attachment.acks().deliver(delivery.delivery_tag);
            left.push((delivery.delivery_tag, How::Nack));
        }
    };
    let drained = timeout(DRAIN, drain).await;
    if drained.is_err() {
        tracing::debug!("the broker did not end the consumer in time");
    }
    attachment.settle(&left).await;
}

impl Reader {
    fn read(&self, delivery: Delivery, attachment: &Arc<Attachment>, feed: &Feed) -> ReceivedMessage {
        let Delivery { delivery_tag: tag, redelivered, exchange, routing_key, properties, data, .. } = delivery;
        let properties = attachment.link().large.restore(properties);
        let arrived = OffsetDateTime::now_utc();
        let native = Native { properties, body: Bytes::from(data), exchange, routing_key, arrived };
        let native = packed_copies::unpack(native);
        let decoded = envelope::decode(&native, &self.address);
        let returns = returns(redelivered, self.queue_type, &native.properties);
        let dead = self.source.is_dead_letters();
        let mut carried = decoded.carried;
        let attempts = if dead { 0 } else { carried.attempts };
        let told = carried.dead_letter.take().or_else(|| {
            let mut told = envelope::death(&native.properties, &self.source)?;
            carried.tell_redriven(&mut told);
            Some(told)
        });
        let mark = carried.mark.clone();
        let token = DriverToken::new(Message { attachment: attachment.clone(), tag, native, carried, returns });
        let twin = token.clone();
        // The broker would drop it the next time, so core, which gives up what has too many attempts, shall do so now.
        let last = returns > 0 && returns >= feed.limit.load(Ordering::Relaxed) && !dead;
        let attempt = attempts.saturating_add(returns).saturating_add(1);
        let attempt = if last { attempt.max(self.max_deliveries.saturating_add(1)) } else { attempt };
        let mut received = ReceivedMessage::new(token, decoded.envelope, attempt);
        received.malformed = decoded.malformed;
        received.mark = mark;
        received.native = Some(twin);
        received.dead_letter = told.filter(|_| dead);
        received
    }
}

/// How often the broker says that a delivery of the message has failed. Where it was not redelivered the header is somebody else's; a
/// classic queue never writes it.
fn returns(redelivered: bool, queue_type: QueueType, properties: &BasicProperties) -> u32 {
    match (redelivered, queue_type) {
        (false, _) => 0,
        (true, QueueType::Classic) => 1,
        (true, QueueType::Quorum) => envelope::returns(properties).unwrap_or(1),
    }
}

/// What a consumer's stream brings.
enum Event {
    Delivery(Box<Delivery>),
    /// Cancelled by the broker, or by us.
    Ended,
    Failed(lapin::Error),
}

/// The consumers of one channel, asked in turn.
struct Streams {
    consumers: Vec<Consumer>,
    next: usize,
    /// Arrived while there was no room.
    stash: VecDeque<Box<Delivery>>,
}

impl Streams {
    fn new(consumers: Vec<Consumer>) -> Self {
        Self { consumers, next: 0, stash: VecDeque::new() }
    }

    async fn next(&mut self) -> Event {
        std::future::poll_fn(|cx| self.poll(cx)).await
    }

    /// What is there without waiting.
    fn ready(&mut self) -> Option<Event> {
        if let Some(delivery) = self.stash.pop_front() {
            return Some(Event::Delivery(delivery));
        }
        match self.poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(event) => Some(event),
            Poll::Pending => None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let count = self.consumers.len();
        for step in 0..count {
            let at = (self.next + step) % count;
            if let Poll::Ready(item) = Pin::new(&mut self.consumers[at]).poll_next(cx) {
                self.next = (at + 1) % count;
                return Poll::Ready(match item {
                    Some(Ok(delivery)) => Event::Delivery(Box::new(delivery)),
                    Some(Err(e)) => Event::Failed(e),
                    None => Event::Ended,
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
            assert_eq!(returns(redelivered, queue_type, &properties), failed, "{what}");
        }
    }

    #[test]
    fn what_counts_at_the_broker_stays_behind_in_copies() {
        for name in ["x-delivery-count", "x-acquired-count", "x-death", "x-first-death-queue"] {
            assert!(envelope::is_brokers(name), "{name}");
        }
    }
}
