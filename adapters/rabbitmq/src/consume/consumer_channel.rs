//! A consumer's channel while it stands: the generation that receipts belong to.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use lapin::{
    Channel, Consumer,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions,
    },
    types::{FieldTable, ShortString},
};
use polybus_core::{ErrorKind, Result, driver::kit::reconnect::SharedAttempt, message::cloudevents::CopyState};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    config::CALL,
    consume::acks::Acks,
    error,
    message::envelope::Native,
    topology::channel_operations::short,
    transport::connection::{Link, Links, Role, call},
};

/// What a consumer takes from.
pub(crate) struct Feed {
    pub(crate) links: Arc<Links>,
    /// The queues: one, or an ordered source's partitions.
    pub(crate) queues: Vec<String>,
    /// Deliveries that may be unsettled at once, all queues together.
    pub(crate) prefetch: usize,
    pub(crate) ordered: bool,
    /// For errors and connection names.
    pub(crate) name: String,
    /// After how many failed deliveries the broker drops a message, if sooner than polybus' own queues do.
    pub(crate) limit: AtomicU32,
    /// The pace at which an ordered source's own connection is made anew. What is made is never shared.
    own: SharedAttempt<Link>,
    /// The generation that stands.
    current: Mutex<Option<Arc<Attachment>>>,
    pub(crate) closed: AtomicBool,
}

impl Feed {
    pub(crate) fn new(links: Arc<Links>, queues: Vec<String>, prefetch: usize, ordered: bool, name: String) -> Self {
        links.begin_holding(&queues);
        let prefetch = prefetch.max(1);
        let (own, current) = (SharedAttempt::default(), Mutex::default());
        let (limit, closed) = (AtomicU32::new(u32::MAX), AtomicBool::new(false));
        Self { links, queues, prefetch, ordered, name, limit, own, current, closed }
    }

    pub(crate) fn current(&self) -> MutexGuard<'_, Option<Arc<Attachment>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a channel and consumes. An ordered source has a connection of its own, whose socket can be dropped.
    pub(crate) async fn attach(self: Arc<Self>) -> Result<(Arc<Attachment>, Vec<Consumer>)> {
        let link = if self.ordered {
            let purpose = format!("consume {}", self.name);
            self.own.get(|_| false, self.links.own(&purpose)).await?
        } else {
            self.links.get(Role::Consume).await?
        };
        let channel = link.channel().await?;
        let attachment = Arc::new(Attachment {
            channel,
            link,
            ordered: self.ordered,
            gone: AtomicBool::new(false),
            acks: Mutex::default(),
            lately: Mutex::new(Lately { frames: 0, last: Instant::now() }),
            settled: Notify::new(),
            parked: Mutex::default(),
        });
        let consumers = self.consume(&attachment).await;
        match consumers {
            Ok(consumers) if !self.closed.load(Ordering::Acquire) => {
                *self.current() = Some(attachment.clone());
                Ok((attachment, consumers))
            }
            other => {
                attachment.end().await;
                Err(other.err().unwrap_or_else(|| error::new(ErrorKind::Closed, "receive", "the consumer was closed")))
            }
        }
    }

    async fn consume(&self, attachment: &Attachment) -> Result<Vec<Consumer>> {
        let channel = &attachment.channel;
        let share = self.prefetch.max(1).div_ceil(self.queues.len());
        let share = u16::try_from(share).unwrap_or(u16::MAX);
        attachment.link.call("consume", channel.basic_qos(share, BasicQosOptions::default())).await?;
        let mut consumers = Vec::with_capacity(self.queues.len());
        for queue in &self.queues {
            let (queue, options) = (short(queue)?, BasicConsumeOptions::default());
            let consume = channel.basic_consume(queue, ShortString::default(), options, FieldTable::default());
            match attachment.link.call("consume", consume).await {
                Ok(consumer) => consumers.push(consumer),
                Err(e) => {
                    // Dropping the others would cancel them.
                    attachment.link.kill_if(self.ordered);
                    return Err(e.with_context("source", &self.name));
                }
            }
        }
        Ok(consumers)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.links.end_holding(&self.queues);
    }
}

/// A channel sends a quorum queue 32 settlements ahead of their being carried out, and keeps the rest to itself; closed
/// before it could send those, it loses them, and what was settled comes again. No method waits for that, so a burst gets
/// this much time.
const BURST: usize = 32;
const BURST_TIME: Duration = Duration::from_millis(250);

/// How many settlements went out lately.
struct Lately {
    frames: usize,
    last: Instant,
}

impl Lately {
    fn add(&mut self, frames: usize) {
        let now = Instant::now();
        if now - self.last > BURST_TIME {
            self.frames = 0;
        }
        (self.frames, self.last) = (self.frames + frames, now);
    }

    /// When a burst is over.
    fn over(&self) -> Option<Instant> {
        (self.frames >= BURST).then(|| self.last + BURST_TIME)
    }
}

/// One generation of a consumer.
pub(crate) struct Attachment {
    channel: Channel,
    link: Arc<Link>,
    ordered: bool,
    gone: AtomicBool,
    acks: Mutex<Acks>,
    lately: Mutex<Lately>,
    /// Something was settled.
    pub(crate) settled: Notify,
    /// Consumers that nobody reads any more. lapin cancels one that is dropped, which on an ordered source comes only after
    /// the socket is gone.
    parked: Mutex<Vec<Consumer>>,
}

/// A message as it came: what `delivery.native::<polybus_rabbitmq::Message>()` gives.
pub struct Message {
    pub(crate) attachment: Arc<Attachment>,
    pub(crate) tag: u64,
    pub(crate) native: Native,
    /// What polybus sent along.
    pub(crate) carried: CopyState,
    /// How many failed deliveries the broker counts.
    pub(crate) returns: u32,
}

impl Message {
    /// All properties and headers, the broker's and polybus' own included.
    pub fn properties(&self) -> &lapin::BasicProperties {
        &self.native.properties
    }

    /// The body as it came.
    pub fn body(&self) -> &[u8] {
        &self.native.body
    }

    /// The exchange it was published to; empty for the default one. Of a copy that polybus made it is the copy's.
    pub fn exchange(&self) -> &str {
        self.native.exchange.as_str()
    }

    /// The routing key it was published with. Of a copy that polybus made it is the copy's.
    pub fn routing_key(&self) -> &str {
        self.native.routing_key.as_str()
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Message").field("exchange", &self.exchange()).field("routing_key", &self.routing_key()).finish()
    }
}

/// What settles without a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Ack,
    Reject,
    Nack,
}

type Sending = Pin<Box<dyn Future<Output = lapin::Result<()>> + Send>>;

impl Attachment {
    /// Whether its deliveries are still this consumer's, as far as is known.
    pub(crate) fn alive(&self) -> bool {
        !self.gone.load(Ordering::Acquire) && self.channel.status().connected()
    }

    pub(crate) fn acks(&self) -> MutexGuard<'_, Acks> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Settles deliveries of this channel. Ok: the frames went out on it.
    pub(crate) async fn settle(&self, items: &[(u64, How)]) -> Vec<Result<()>> {
        let (results, last) = self.frames(items);
        let sent = match last {
            Some(last) => timeout(CALL, last).await,
            None => return results,
        };
        if !matches!(sent, Ok(Ok(()))) {
            // What did not go out within the limit must not go out later, when the answer has been given; and a socket that
            // takes nothing for so long is of no use to others either.
            self.gone.store(true, Ordering::Release);
            self.link.kill();
            return lost().for_each_of(items.len());
        }
        self.settled.notify_one();
        results
    }

    /// Queues the frames; the future is done when the last of them is written. lapin queues a frame when its future is
    /// first polled, so under the lock frames and state keep one order.
    fn frames(&self, items: &[(u64, How)]) -> (Vec<Result<()>>, Option<Sending>) {
        let mut acks = self.acks();
        if !self.alive() {
            return (lost().for_each_of(items.len()), None);
        }
        let mut last = None;
        let mut ended = false;
        let mut frames = 0;
        let mut push = |mut sending: Sending| {
            frames += 1;
            match sending.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Pending => last = Some(sending),
                Poll::Ready(done) => ended |= done.is_err(),
            }
        };
        let mut acked = Vec::with_capacity(items.len());
        let mut results = Vec::with_capacity(items.len());
        for (tag, how) in items {
            if acks.is_settled(*tag) {
                results.push(Err(lost()));
                continue;
            }
            results.push(Ok(()));
            let (channel, tag) = (self.channel.clone(), *tag);
            match how {
                How::Ack => {
                    acked.push(tag);
                    continue;
                }
                How::Reject => {
                    push(Box::pin(async move { channel.basic_reject(tag, BasicRejectOptions { requeue: true }).await }))
                }
                How::Nack => push(Box::pin(async move {
                    channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true }).await
                })),
            }
            acks.settle(tag);
        }
        for ack in acks.ack(acked) {
            let channel = self.channel.clone();
            push(Box::pin(async move { channel.basic_ack(ack.tag, BasicAckOptions { multiple: ack.multiple }).await }));
        }
        self.lately.lock().unwrap_or_else(PoisonError::into_inner).add(frames);
        if ended {
            return (lost().for_each_of(items.len()), None);
        }
        (results, last)
    }

    pub(crate) async fn cancel(&self, consumer: &Consumer) -> Result<()> {
        call("cancel", self.channel.basic_cancel(consumer.tag(), BasicCancelOptions::default())).await
    }

    /// Keeps consumers that are no longer read until it ends.
    pub(crate) fn park(&self, consumers: Vec<Consumer>) {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).extend(consumers);
    }

    /// The connection it is on.
    pub(crate) fn link(&self) -> &Link {
        &self.link
    }

    /// Marks it as gone at once: nothing of it can be settled any more.
    pub(crate) fn leave(&self) {
        self.gone.store(true, Ordering::Release);
        self.link.kill_if(self.ordered);
        self.settled.notify_one();
    }

    /// Gives everything unsettled back. On an ordered source any polite goodbye would put what is held behind the others, so
    /// there the socket is dropped once the broker has seen all acks.
    pub(crate) async fn end(&self) {
        let first = !self.gone.swap(true, Ordering::AcqRel);
        self.settled.notify_one();
        let over = self.lately.lock().unwrap_or_else(PoisonError::into_inner).over();
        if let Some(over) = over.filter(|_| self.channel.status().connected()) {
            sleep_until(over).await;
        }
        if self.ordered {
            if first && self.channel.status().connected() {
                // Any answer will do: it comes after the acks have been carried out. This one changes nothing.
                let barrier = self.channel.basic_qos(1, BasicQosOptions::default());
                let _ = timeout(CALL, barrier).await;
            }
            self.link.kill();
        } else if self.channel.status().connected() {
            let _ = timeout(CALL, self.channel.close(200, "OK".into())).await;
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.link.kill_if(self.ordered);
    }
}

fn lost() -> polybus_core::Error {
    error::lock_lost("the channel that delivered the message is gone, or the message was settled before")
}
