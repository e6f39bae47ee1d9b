//! Publishing to one address.
//!
//! The way of a message, from `Bus::publish` or [`Publisher::publish`] to the driver:
//!
//! 1. `publishers.rs` has one batcher for each address of a bus, opened by the first publish to it.
//! 2. [`Publisher`] (this file) checks the message (`connection/preflight.rs`), has the driver encode it, and reserves
//!    its bytes of [`BusOptions::max_pending_bytes`](crate::bus::BusOptions::max_pending_bytes).
//! 3. `lanes.rs` holds the messages that wait, one lane for each key of an ordered address, and forms batches.
//! 4. `batcher.rs` gives batches to the driver's [`Sender`](crate::driver::Sender), retries until the deadline, and
//!    answers each message.
//! 5. [`Publishing`] is the future that waits for the answer.

pub(crate) mod batcher;
pub(crate) mod lanes;
pub(crate) mod publishers;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, timeout_at},
};

use crate::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result,
    batching::GroupCommit,
    connection::BusConnection,
    driver::PreparedMessage,
    publish::{
        batcher::PublishBatcher,
        lanes::{FailedKeys, PendingPublish, PublishBatch},
    },
    runtime::{
        oneshot::{ReplyWaiter, reply},
        poll_then_spawn::poll_then_spawn,
    },
    telemetry::{publish_span, with_current},
};
use tracing::{Instrument, Span};

/// Publishes to one address. It is cheap to clone, and all clones share batches.
///
/// [`Bus::publisher`](crate::bus::Bus::publisher) opens it. Messages that are published at the same time go to the
/// broker together; a publish never waits for others to join it.
#[derive(Clone)]
pub struct Publisher {
    pub(crate) batcher: Arc<PublishBatcher>,
    pub(crate) connection: Arc<BusConnection>,
}

impl Publisher {
    /// Publishes one message. `Ok` means that the broker has taken durable responsibility for it.
    ///
    /// The call is checked and sent when the future is first polled. Transient errors are retried with the same id
    /// until [`BusOptions::publish_timeout`](crate::bus::BusOptions::publish_timeout) has passed since then (30 s by
    /// default). A message that must wait for room among the [pending bytes](crate::bus::BusOptions::max_pending_bytes)
    /// waits within the same time.
    ///
    /// A message on a topic that no subscription wants is dropped, and `publish` is Ok.
    ///
    /// # Errors
    /// Before any I/O:
    /// - `InvalidArgument`: the envelope breaks a [limit](crate::Envelope#limits), an ordered address got a message
    ///   without a key, or the message would expire before it is visible.
    /// - `PayloadTooLarge`, and `Unsupported` for a delay that this broker cannot do.
    /// - `Closed`: the bus was closed.
    ///
    /// After the publish timeout: the broker's last error, or `Timeout` if there was none. Other errors of the broker,
    /// such as `NotFound` and `PermissionDenied`, are answered at once.
    ///
    /// [`Error::retry`](crate::Error::retry) tells whether the message may be stored all the same:
    /// [`MayDuplicate`](crate::RetrySafety::MayDuplicate) says that it may, so publish it again only with the same id.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the answer. A message that was not sent yet is not published; one that was sent may
    /// or may not be.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let payments = bus.publisher(Address::queue("payments")).await?;
    /// payments.publish(Envelope::new("payment.made", r#"{"amount":7}"#)).await?;
    /// # Ok(()) }
    /// ```
    pub fn publish(&self, message: impl Into<Outgoing>) -> Publishing {
        let (this, message) = (self.clone(), with_caller_context(message.into()));
        Publishing(Box::pin(async move { this.publish_one(message, Instant::now()).await }))
    }

    /// Publishes many messages. Answers with one result for each, in their order.
    ///
    /// One message's failure does not fail others, with one exception: on an ordered address, the later messages of a
    /// failed key are not sent. They answer `Unavailable`, with the id of the failed message as context `after_failed`.
    ///
    /// # Errors
    /// Those of [`publish`](Self::publish), for each message.
    ///
    /// # Cancel safety
    /// That of [`publish`](Self::publish), for each message.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let payments = bus.publisher(Address::queue("payments")).await?;
    /// let messages = ["a", "b"].map(|id| Envelope::new("payment.made", "{}").id(id));
    /// for result in payments.publish_all(messages).await {
    ///     result?;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn publish_all<M: Into<Outgoing>>(&self, messages: impl IntoIterator<Item = M>) -> PublishingAll {
        let messages: Vec<Outgoing> = messages.into_iter().map(|m| with_caller_context(m.into())).collect();
        let this = self.clone();
        PublishingAll(Box::pin(async move { this.publish_many(messages, Instant::now()).await }))
    }

    /// The address that it publishes to.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Address, Bus, BusOptions, QueueSpec, Topology, memory::MemoryDriver};
    /// # let topology = Topology::new().queue("payments", QueueSpec::new());
    /// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
    /// # bus.declare().await?;
    /// let payments = bus.publisher(Address::queue("payments")).await?;
    /// assert_eq!(payments.address().to_string(), "queue:payments");
    /// # Ok(()) }
    /// ```
    pub fn address(&self) -> &Address {
        &self.batcher.entity.name
    }

    pub(crate) async fn publish_one(&self, message: Outgoing, started: Instant) -> Result<Receipt> {
        // With a driver that answers at once, a loop of publishes would never yield, and timers would starve.
        tokio::task::coop::consume_budget().await;
        let deadline = self.connection.deadline(started);
        let span = publish_span(&self.batcher.system, self.address(), &message.envelope);
        let result = self.send_one(message, deadline).instrument(span.clone()).await;
        self.record_result(&result, started, &span);
        result
    }

    async fn send_one(&self, message: Outgoing, deadline: Instant) -> Result<Receipt> {
        let prepared = self.prepare(message)?;
        let permits = self.reserve(&prepared, deadline).await?;
        let (pending, answer) = pending_publish(deadline, None, permits);
        if let Some(started) = self.batcher.enqueue_one(prepared, pending) {
            poll_then_spawn(started.run()).await;
        }
        self.await_answer(answer, deadline).await
    }

    pub(crate) async fn publish_many(&self, messages: Vec<Outgoing>, started: Instant) -> Vec<Result<Receipt>> {
        let deadline = self.connection.deadline(started);
        let spans: Vec<Span> =
            messages.iter().map(|m| publish_span(&self.batcher.system, self.address(), &m.envelope)).collect();
        let failed_keys = self.batcher.entity.settings.ordered.then(|| Arc::new(FailedKeys::default()));
        // Keys that failed before they were sent are kept apart from those that failed at the broker: earlier messages
        // of the key may still wait in a lane, and must go.
        let refused_keys = FailedKeys::default();
        let mut answers = Vec::with_capacity(messages.len());
        let mut batch = PublishBatch::default();
        for message in messages {
            if let Some(id) = refused_keys.failed_before(&message.envelope) {
                answers.push(Err(self.batcher.after_failed(&id, false)));
                continue;
            }
            let envelope = message.envelope.clone();
            let admitted = match self.prepare(message) {
                Ok(prepared) => match self.try_reserve(&prepared) {
                    Some(permits) => Ok((prepared, permits)),
                    None => {
                        // The messages of this call may hold the permits themselves: they are sent before the wait.
                        self.send_queued(std::mem::take(&mut batch)).await;
                        self.reserve(&prepared, deadline).await.map(|permits| (prepared, permits))
                    }
                },
                Err(e) => Err(e),
            };
            answers.push(match admitted {
                Ok((prepared, permits)) => {
                    let (pending, answer) = pending_publish(deadline, failed_keys.clone(), permits);
                    batch.push(prepared, pending);
                    Ok(answer)
                }
                Err(e) => {
                    if failed_keys.is_some() {
                        refused_keys.record(&envelope);
                    }
                    Err(e)
                }
            });
        }
        self.send_queued(batch).await;
        let mut results = Vec::with_capacity(answers.len());
        for (answer, span) in answers.into_iter().zip(spans) {
            let result = match answer {
                Ok(answer) => self.await_answer(answer, deadline).await,
                Err(e) => Err(e),
            };
            self.record_result(&result, started, &span);
            results.push(result);
        }
        results
    }

    fn record_result(&self, result: &Result<Receipt>, started: Instant, span: &Span) {
        match result {
            Ok(_) => self.batcher.metrics.ok(started.elapsed()),
            Err(e) => {
                span.record("error.type", e.kind().as_str());
                self.batcher.metrics.failed(e);
            }
        }
    }

    /// Queues messages and starts as many batches as may be under way.
    async fn send_queued(&self, batch: PublishBatch) {
        let mut next = self.batcher.enqueue(batch);
        while let Some(started) = next {
            poll_then_spawn(started.run()).await;
            next = self.batcher.start_another();
        }
    }

    async fn await_answer(&self, mut answer: ReplyWaiter<Result<Receipt>>, deadline: Instant) -> Result<Receipt> {
        if let Some(result) = answer.try_take() {
            return result;
        }
        // What is rare in a publish is boxed, so that the future of one that is answered at once stays small.
        match Box::pin(timeout_at(deadline, &mut answer)).await {
            Ok(Some(result)) => result,
            Ok(None) => {
                let e = Error::new(ErrorKind::Unexpected, "the driver ended without an answer").may_duplicate();
                Err(self.batcher.located(e))
            }
            Err(_) => answer.give_up().unwrap_or_else(|sent| Err(self.batcher.timed_out(sent))),
        }
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let located = |e| self.batcher.located(e);
        self.connection.ensure_open("publish").map_err(located)?;
        let message = self.connection.check_outgoing(&self.batcher.entity, message).map_err(located)?;
        self.batcher.sender.prepare(message).map_err(located)
    }

    fn try_reserve(&self, prepared: &PreparedMessage) -> Option<OwnedSemaphorePermit> {
        self.batcher.pending_bytes.clone().try_acquire_many_owned(self.connection.permits_for(prepared.size)).ok()
    }

    /// Waits until the message may queue up. This bounds memory while a broker is down or slow.
    async fn reserve(&self, prepared: &PreparedMessage, deadline: Instant) -> Result<OwnedSemaphorePermit> {
        if let Some(permits) = self.try_reserve(prepared) {
            return Ok(permits);
        }
        let count = self.connection.permits_for(prepared.size);
        let permits = self.batcher.pending_bytes.clone().acquire_many_owned(count);
        match Box::pin(timeout_at(deadline, permits)).await {
            Ok(Ok(permits)) => Ok(permits),
            Ok(Err(_)) => Err(self.batcher.located(Error::new(ErrorKind::Closed, "the bus was closed"))),
            Err(_) => Err(self.batcher.timed_out(false)),
        }
    }
}

fn pending_publish(
    deadline: Instant,
    failed_keys: Option<Arc<FailedKeys>>,
    permits: OwnedSemaphorePermit,
) -> (PendingPublish, ReplyWaiter<Result<Receipt>>) {
    let (reply, answer) = reply();
    (PendingPublish { deadline, ambiguous: false, failed_keys, reply, _permits: permits }, answer)
}

/// Adds the caller's conversation and trace. They are read where the publish is called, since the future may be polled elsewhere.
pub(crate) fn with_caller_context(mut message: Outgoing) -> Outgoing {
    message.envelope = with_current(message.envelope);
    message
}

/// The future of one publish. It is `Send + 'static`, so it can be spawned as it is. Nothing is sent before it is
/// polled.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Topology, memory::MemoryDriver};
/// # let topology = Topology::new().queue("payments", QueueSpec::new());
/// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
/// # bus.declare().await?;
/// let publishing = bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}"));
/// let task = tokio::spawn(publishing);
/// task.await??;
/// # Ok(()) }
/// ```
#[must_use = "nothing is published until it is polled"]
pub struct Publishing(pub(crate) Pin<Box<dyn Future<Output = Result<Receipt>> + Send>>);

impl Future for Publishing {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

/// The future of many publishes: one result for each message, in their order. It is `Send + 'static`.
#[must_use = "nothing is published until it is polled"]
pub struct PublishingAll(pub(crate) Pin<Box<dyn Future<Output = Vec<Result<Receipt>>> + Send>>);

impl Future for PublishingAll {
    type Output = Vec<Result<Receipt>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}
