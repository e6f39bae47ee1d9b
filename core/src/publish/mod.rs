//! Publishing to one address.

pub(crate) mod backlog;
pub(crate) mod batcher;
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
    batching::GroupCommit,
    connection::Connection,
    driver::PreparedMessage,
    error::{Error, ErrorKind, Result},
    message::{Outgoing, Receipt},
    publish::{
        backlog::{FailedKeys, PendingPublish, PublishBatch},
        batcher::PublishBatcher,
    },
    runtime::{
        oneshot::{ReplyWaiter, reply},
        poll_then_spawn::here_or_spawned,
    },
    telemetry::{publish_span, trace_outgoing},
    topology::Address,
};
use tracing::{Instrument, Span};

/// A resolved sender to one address. Cheap to clone; all clones share batches.
#[derive(Clone)]
pub struct Publisher {
    pub(crate) batcher: Arc<PublishBatcher>,
    pub(crate) connection: Arc<Connection>,
}

impl Publisher {
    /// Publishes one message: Ok once the broker has taken durable responsibility.
    ///
    /// Passing faults are retried with the same id until the bus' publish timeout. Dropping the future gives up the
    /// answer: the message is published or not.
    pub fn publish(&self, message: impl Into<Outgoing>) -> Publishing {
        let (this, message) = (self.clone(), traced(message.into()));
        Publishing(Box::pin(async move { this.one(message, Instant::now()).await }))
    }

    /// Publishes many: one result per message, in order. A failure never fails its neighbours; on an ordered address,
    /// later messages of a failed key are not sent and answer `Unavailable` with context `after_failed`.
    pub fn publish_all<M: Into<Outgoing>>(&self, messages: impl IntoIterator<Item = M>) -> PublishingAll {
        let (this, messages) = (self.clone(), messages.into_iter().map(|m| traced(m.into())).collect::<Vec<_>>());
        PublishingAll(Box::pin(async move { this.all(messages, Instant::now()).await }))
    }

    /// The address.
    pub fn address(&self) -> &Address {
        &self.batcher.entity.name
    }

    pub(crate) async fn one(&self, message: Outgoing, started: Instant) -> Result<Receipt> {
        // A driver that answers at once would never yield, and a loop of publishes would starve timers.
        tokio::task::coop::consume_budget().await;
        let deadline = self.connection.deadline(started);
        let span = publish_span(&self.batcher.system, self.address(), &message.envelope);
        let result = self.send_one(message, deadline).instrument(span.clone()).await;
        self.count(&result, started, &span);
        result
    }

    async fn send_one(&self, message: Outgoing, deadline: Instant) -> Result<Receipt> {
        let prepared = self.prepare(message)?;
        let room = self.room(&prepared, deadline).await?;
        let (item, waiting) = item(deadline, None, room);
        if let Some(started) = self.batcher.enqueue_one(prepared, item) {
            here_or_spawned(started.run()).await;
        }
        self.wait(waiting, deadline).await
    }

    pub(crate) async fn all(&self, messages: Vec<Outgoing>, started: Instant) -> Vec<Result<Receipt>> {
        let deadline = self.connection.deadline(started);
        let spans: Vec<Span> =
            messages.iter().map(|m| publish_span(&self.batcher.system, self.address(), &m.envelope)).collect();
        let call = self.batcher.entity.settings.ordered.then(|| Arc::new(FailedKeys::default()));
        // Apart from the failures of what was sent: messages from before a refusal may still wait, and must go.
        let refused = FailedKeys::default();
        let mut answers = Vec::with_capacity(messages.len());
        let mut batch = PublishBatch::default();
        for message in messages {
            if let Some(id) = refused.failed_before(&message.envelope) {
                answers.push(Err(self.batcher.after_failed(&id, false)));
                continue;
            }
            let envelope = message.envelope.clone();
            let admitted = match self.prepare(message) {
                Ok(prepared) => match self.try_room(&prepared) {
                    Some(room) => Ok((prepared, room)),
                    None => {
                        // What holds the room may be our own: send it before waiting.
                        self.go(std::mem::take(&mut batch)).await;
                        self.room(&prepared, deadline).await.map(|room| (prepared, room))
                    }
                },
                Err(e) => Err(e),
            };
            answers.push(match admitted {
                Ok((prepared, room)) => {
                    let (item, waiting) = item(deadline, call.clone(), room);
                    batch.push(prepared, item);
                    Ok(waiting)
                }
                Err(e) => {
                    if call.is_some() {
                        refused.fail(&envelope);
                    }
                    Err(e)
                }
            });
        }
        self.go(batch).await;
        let mut results = Vec::with_capacity(answers.len());
        for (answer, span) in answers.into_iter().zip(spans) {
            let result = match answer {
                Ok(waiting) => self.wait(waiting, deadline).await,
                Err(e) => Err(e),
            };
            self.count(&result, started, &span);
            results.push(result);
        }
        results
    }

    fn count(&self, result: &Result<Receipt>, started: Instant, span: &Span) {
        match result {
            Ok(_) => self.batcher.metrics.ok(started.elapsed()),
            Err(e) => {
                span.record("error.type", e.kind().as_str());
                self.batcher.metrics.failed(e);
            }
        }
    }

    /// Queues messages and starts as many batches as may be under way.
    async fn go(&self, batch: PublishBatch) {
        let mut next = self.batcher.enqueue(batch);
        while let Some(started) = next {
            here_or_spawned(started.run()).await;
            next = self.batcher.more();
        }
    }

    async fn wait(&self, waiting: ReplyWaiter<Result<Receipt>>, deadline: Instant) -> Result<Receipt> {
        let mut waiting = waiting;
        if let Some(answer) = waiting.try_take() {
            return answer;
        }
        // Boxed, as all that is rare here: a publish that is answered at once stays a small allocation.
        match Box::pin(timeout_at(deadline, &mut waiting)).await {
            Ok(Some(result)) => result,
            Ok(None) => {
                let e = Error::new(ErrorKind::Unexpected, "the driver ended without an answer").may_duplicate();
                Err(self.batcher.located(e))
            }
            Err(_) => waiting.give_up().unwrap_or_else(|sent| Err(self.batcher.timed_out(sent))),
        }
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.connection.ensure_open("publish").map_err(|e| self.batcher.located(e))?;
        let message = self.connection.admit(&self.batcher.entity, message).map_err(|e| self.batcher.located(e))?;
        self.batcher.sender.prepare(message).map_err(|e| self.batcher.located(e))
    }

    fn try_room(&self, prepared: &PreparedMessage) -> Option<OwnedSemaphorePermit> {
        self.batcher.room.clone().try_acquire_many_owned(self.connection.share(prepared.size)).ok()
    }

    /// Waits until the message may queue up: what bounds memory while a broker is down or slow.
    async fn room(&self, prepared: &PreparedMessage, deadline: Instant) -> Result<OwnedSemaphorePermit> {
        if let Some(room) = self.try_room(prepared) {
            return Ok(room);
        }
        let room = self.batcher.room.clone().acquire_many_owned(self.connection.share(prepared.size));
        match Box::pin(timeout_at(deadline, room)).await {
            Ok(Ok(room)) => Ok(room),
            Ok(Err(_)) => Err(self.batcher.located(Error::new(ErrorKind::Closed, "the bus was closed"))),
            Err(_) => Err(self.batcher.timed_out(false)),
        }
    }
}

fn item(
    deadline: Instant,
    call: Option<Arc<FailedKeys>>,
    room: OwnedSemaphorePermit,
) -> (PendingPublish, ReplyWaiter<Result<Receipt>>) {
    let (reply, waiting) = reply();
    (PendingPublish { deadline, ambiguous: false, call, reply, _room: room }, waiting)
}

/// The caller's trace, taken where the publish is called: its future may be polled elsewhere.
pub(crate) fn traced(mut message: Outgoing) -> Outgoing {
    message.envelope = trace_outgoing(message.envelope);
    message
}

/// A publish under way: `Send + 'static`, so that it can be spawned as it is.
#[must_use = "nothing is published until it is polled"]
pub struct Publishing(pub(crate) Pin<Box<dyn Future<Output = Result<Receipt>> + Send>>);

impl Future for Publishing {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

/// Many publishes under way.
#[must_use = "nothing is published until it is polled"]
pub struct PublishingAll(pub(crate) Pin<Box<dyn Future<Output = Vec<Result<Receipt>>> + Send>>);

impl Future for PublishingAll {
    type Output = Vec<Result<Receipt>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}
