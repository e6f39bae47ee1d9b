//! The channel on which one source is consumed, and the state that outlives such channels.
//!
//! [`SourceConsumer`] lives as long as its receiver and settler and opens a new [`ConsumerChannel`] whenever the last
//! one is gone. A delivery belongs to the channel that brought it, and only that channel can settle it.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use lapin::{
    Channel, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions,
    },
    types::{FieldTable, ShortString},
};
use polybus_core::{
    ErrorKind, Result, Source, driver::kit::reconnect::SharedAttempt, message::cloudevents::CopyState, topology::Entity,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    config::CALL,
    consume::acks::AckTracker,
    error,
    message::envelope::AmqpMessage,
    topology::channel_operations::short,
    transport::connection::{BrokerConnection, ConnectionRole, DriverConnections, call},
};

/// One source's consumer, across all the channels it has had. Its receiver and its settler share it.
pub(crate) struct SourceConsumer {
    pub(crate) connections: Arc<DriverConnections>,
    /// The queues that are consumed: one, or the partitions of an ordered source.
    pub(crate) queues: Vec<String>,
    /// How many deliveries may be unsettled at once, in all queues together. At least 1.
    pub(crate) prefetch: usize,
    pub(crate) ordered: bool,
    /// The source as errors and connection names show it.
    pub(crate) name: String,
    /// After how many failed deliveries the broker drops a message, where that is fewer than on queues that polybus
    /// declared. `u32::MAX` until a look at the queue has found such a limit.
    pub(crate) limit: AtomicU32,
    /// Paces the attempts to make an ordered source's own connection. The connection itself is never shared.
    own_connection: SharedAttempt<BrokerConnection>,
    /// The channel that stands, if any.
    current: Mutex<Option<Arc<ConsumerChannel>>>,
    /// The receiver or settler was closed, so no channel is opened any more.
    pub(crate) closed: AtomicBool,
}

impl SourceConsumer {
    /// The consumer of a source whose messages these queues hold. The dead letters of an ordered source have no order.
    pub(crate) fn new(connections: Arc<DriverConnections>, queues: Vec<String>, from: &Entity<Source>) -> Self {
        connections.add_consumer(&queues);
        let (prefetch, name) = (from.prefetch.max(1), from.name.to_string());
        let ordered = from.settings.ordered && !from.name.is_dead_letters();
        let (own_connection, current) = (SharedAttempt::default(), Mutex::default());
        let (limit, closed) = (AtomicU32::new(u32::MAX), AtomicBool::new(false));
        Self { connections, queues, prefetch, ordered, name, limit, own_connection, current, closed }
    }

    /// The channel that stands, if any.
    pub(crate) fn current(&self) -> MutexGuard<'_, Option<Arc<ConsumerChannel>>> {
        self.current.lock()
    }

    /// Opens a channel and starts a consumer on each queue.
    ///
    /// An ordered source has a connection of its own, so that its socket can be dropped: only then does the broker
    /// requeue the unsettled deliveries in order.
    pub(crate) async fn open_channel(self: Arc<Self>) -> Result<(Arc<ConsumerChannel>, Vec<Consumer>)> {
        let connection = if self.ordered {
            let purpose = format!("consume {}", self.name);
            self.own_connection.get(|_| false, self.connections.open_own(&purpose)).await?
        } else {
            self.connections.get(ConnectionRole::Consume).await?
        };
        let channel = connection.channel().await?;
        let consumer_channel = Arc::new(ConsumerChannel {
            channel,
            connection,
            ordered: self.ordered,
            gone: AtomicBool::new(false),
            acks: Mutex::default(),
            burst: Mutex::new(SettlementBurst { frames: 0, last: Instant::now() }),
            settled: Notify::new(),
            unread: Mutex::default(),
        });
        let consumers = self.consume(&consumer_channel).await;
        match consumers {
            Ok(consumers) if !self.closed.load(Ordering::Acquire) => {
                *self.current() = Some(consumer_channel.clone());
                Ok((consumer_channel, consumers))
            }
            other => {
                consumer_channel.close().await;
                Err(other.err().unwrap_or_else(|| error::new(ErrorKind::Closed, "receive", "the consumer was closed")))
            }
        }
    }

    /// Sets the prefetch, shared evenly by the queues, and starts the consumers.
    async fn consume(&self, consumer_channel: &ConsumerChannel) -> Result<Vec<Consumer>> {
        let channel = &consumer_channel.channel;
        let share = self.prefetch.div_ceil(self.queues.len());
        let share = u16::try_from(share).unwrap_or(u16::MAX);
        consumer_channel.connection.call("consume", channel.basic_qos(share, BasicQosOptions::default())).await?;
        let mut consumers = Vec::with_capacity(self.queues.len());
        for queue in &self.queues {
            let (queue, options) = (short(queue)?, BasicConsumeOptions::default());
            let consume = channel.basic_consume(queue, ShortString::default(), options, FieldTable::default());
            match consumer_channel.connection.call("consume", consume).await {
                Ok(consumer) => consumers.push(consumer),
                Err(e) => {
                    // lapin cancels the consumers that are dropped here, which an ordered source must not do while the
                    // socket stands.
                    consumer_channel.connection.drop_socket_if(self.ordered);
                    return Err(e.with_context("source", &self.name));
                }
            }
        }
        Ok(consumers)
    }
}

impl Drop for SourceConsumer {
    fn drop(&mut self) {
        self.connections.remove_consumer(&self.queues);
    }
}

/// How many settlements the broker's channel sends to a quorum queue before the queue has carried them out. It keeps
/// the rest to itself and loses them if it is closed before it could send them, and what was settled comes again. No
/// AMQP method waits for that, so a channel is closed only [`BURST_TIME`] after a burst of this many settlements.
const BURST: usize = 32;
const BURST_TIME: Duration = Duration::from_millis(250);

/// How many settlements went out without a pause of [`BURST_TIME`], and when the last one did.
struct SettlementBurst {
    frames: usize,
    last: Instant,
}

impl SettlementBurst {
    fn add(&mut self, frames: usize) {
        let now = Instant::now();
        if now - self.last > BURST_TIME {
            self.frames = 0;
        }
        (self.frames, self.last) = (self.frames + frames, now);
    }

    /// When the broker has surely passed on the last burst; `None` if there was none.
    fn ends_at(&self) -> Option<Instant> {
        (self.frames >= BURST).then(|| self.last + BURST_TIME)
    }
}

/// A channel with the consumers of one source. Its deliveries can be settled as long as it lives.
pub(crate) struct ConsumerChannel {
    channel: Channel,
    pub(crate) connection: Arc<BrokerConnection>,
    ordered: bool,
    /// The deliveries are the broker's again: nothing may be settled on this channel any more.
    gone: AtomicBool,
    acks: Mutex<AckTracker>,
    burst: Mutex<SettlementBurst>,
    /// Notifies when something was settled, or the channel is gone.
    pub(crate) settled: Notify,
    /// Consumers of an ordered source that nobody reads any more. lapin cancels a consumer that is dropped, which
    /// must not happen before the socket is gone, so they are kept here.
    unread: Mutex<Vec<Consumer>>,
}

/// A message as it came from RabbitMQ, for what the portable envelope does not show.
/// `delivery.native::<NativeMessage>()` gives it.
pub struct NativeMessage {
    pub(crate) channel: Arc<ConsumerChannel>,
    pub(crate) tag: u64,
    pub(crate) native: AmqpMessage,
    /// The state that polybus sent along with a copy.
    pub(crate) carried: CopyState,
    /// How many failed deliveries of the message the broker has counted.
    pub(crate) failed_deliveries: u32,
}

impl NativeMessage {
    /// All properties and headers, including those that the broker and polybus have added.
    ///
    /// ```
    /// use polybus_core::Delivery;
    /// use polybus_rabbitmq::NativeMessage;
    ///
    /// fn priority(delivery: &Delivery) -> Option<u8> {
    ///     *delivery.native::<NativeMessage>()?.properties().priority()
    /// }
    /// ```
    pub fn properties(&self) -> &lapin::BasicProperties {
        &self.native.properties
    }

    /// The body as it came.
    pub fn body(&self) -> &[u8] {
        &self.native.body
    }

    /// The exchange that the message was published to, empty for the default exchange. For a retry or a dead letter
    /// this is where polybus published the copy.
    pub fn exchange(&self) -> &str {
        self.native.exchange.as_str()
    }

    /// The routing key that the message was published with. For a retry or a dead letter this is the copy's routing
    /// key.
    pub fn routing_key(&self) -> &str {
        self.native.routing_key.as_str()
    }
}

impl std::fmt::Debug for NativeMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NativeMessage")
            .field("exchange", &self.exchange())
            .field("routing_key", &self.routing_key())
            .finish()
    }
}

/// The AMQP method that settles a delivery without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SettleMethod {
    /// `basic.ack`: the message is done.
    Ack,
    /// `basic.reject`: the message is requeued, and the broker counts a failed delivery.
    Reject,
    /// `basic.nack`: the message is requeued unhandled. RabbitMQ 4.3 does not count it.
    Nack,
}

/// lapin's future of a frame that is being written to the socket.
type FrameWrite = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send>>;

impl ConsumerChannel {
    /// Whether the channel's deliveries can still be settled, as far as is known without I/O.
    pub(crate) fn alive(&self) -> bool {
        !self.gone.load(Ordering::Acquire) && self.channel.status().connected()
    }

    /// Which deliveries of the channel are settled.
    pub(crate) fn acks(&self) -> MutexGuard<'_, AckTracker> {
        self.acks.lock()
    }

    /// Settles deliveries of this channel, and answers one result per item, in order. Ok: the frames were written to
    /// the socket. The broker does not confirm them.
    pub(crate) async fn settle(&self, items: &[(u64, SettleMethod)]) -> Vec<Result<()>> {
        let (results, last) = self.queue_frames(items);
        let sent = match last {
            Some(last) => timeout(CALL, last).await,
            None => return results,
        };
        if !matches!(sent, Ok(Ok(()))) {
            // `gone` is set and the socket dropped before the answer: frames that did not go out in time must not go
            // out after it. A socket that takes nothing for so long is of no use to other channels either.
            self.gone.store(true, Ordering::Release);
            self.connection.drop_socket();
            return lost().for_each_of(items.len());
        }
        self.settled.notify_one();
        results
    }

    /// Queues the frames, and answers a future that is done when the last of them is written.
    ///
    /// lapin queues a frame when its future is polled for the first time. That happens here while `acks` is locked,
    /// so the frames and the state have the same order.
    fn queue_frames(&self, items: &[(u64, SettleMethod)]) -> (Vec<Result<()>>, Option<FrameWrite>) {
        let mut acks = self.acks();
        if !self.alive() {
            return (lost().for_each_of(items.len()), None);
        }
        let mut last = None;
        let mut ended = false;
        let mut frames = 0;
        let mut push = |mut sending: FrameWrite| {
            frames += 1;
            match sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => last = Some(sending),
                Poll::Ready(done) => ended |= done.is_err(),
            }
        };
        let mut acked = Vec::with_capacity(items.len());
        let mut results = Vec::with_capacity(items.len());
        for (tag, method) in items {
            if acks.is_settled(*tag) {
                results.push(Err(lost()));
                continue;
            }
            results.push(Ok(()));
            let (channel, tag) = (self.channel.clone(), *tag);
            match method {
                SettleMethod::Ack => {
                    acked.push(tag);
                    continue;
                }
                SettleMethod::Reject => {
                    push(Box::pin(async move { channel.basic_reject(tag, BasicRejectOptions { requeue: true }).await }))
                }
                SettleMethod::Nack => push(Box::pin(async move {
                    channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
                })),
            }
            acks.settle(tag);
        }
        for ack in acks.ack(acked) {
            let channel = self.channel.clone();
            push(Box::pin(async move { channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await }));
        }
        self.burst.lock().add(frames);
        if ended {
            return (lost().for_each_of(items.len()), None);
        }
        (results, last)
    }

    /// Asks the broker to end a consumer, and waits for the answer.
    pub(crate) async fn cancel(&self, consumer: &Consumer) -> Result<()> {
        call("cancel", self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await
    }

    /// Keeps consumers that are no longer read until the channel is dropped.
    pub(crate) fn keep_unread(&self, consumers: Vec<Consumer>) {
        self.unread.lock().extend(consumers);
    }

    /// Marks the channel as gone, so that nothing of it can be settled any more. An ordered source drops its socket.
    pub(crate) fn mark_gone(&self) {
        self.gone.store(true, Ordering::Release);
        self.connection.drop_socket_if(self.ordered);
        self.settled.notify_one();
    }

    /// Closes the channel, by which everything unsettled goes back to its queue.
    ///
    /// On an ordered source an orderly close of channel or connection would put what is held behind the other messages.
    /// There the socket is dropped, once the broker has carried out all acks.
    pub(crate) async fn close(&self) {
        let first = !self.gone.swap(true, Ordering::AcqRel);
        self.settled.notify_one();
        let over = self.burst.lock().ends_at();
        if let Some(over) = over.filter(|_| self.channel.status().connected()) {
            sleep_until(over).await;
        }
        if self.ordered {
            if first && self.channel.status().connected() {
                // The broker answers methods in order, so the answer to this one, which changes nothing, comes after
                // the acks have been carried out.
                let barrier = self.channel.basic_qos(1, BasicQosOptions::default());
                let _ = timeout(CALL, barrier).await;
            }
            self.connection.drop_socket();
        } else if self.channel.status().connected() {
            let _ = timeout(CALL, self.channel.close(200, "OK".into())).await;
        }
    }
}

impl Drop for ConsumerChannel {
    fn drop(&mut self) {
        self.connection.drop_socket_if(self.ordered);
    }
}

fn lost() -> polybus_core::Error {
    error::lock_lost("the channel that delivered the message is gone, or the message was settled before")
}
