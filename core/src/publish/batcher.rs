//! The publishes of one address: sent in batches, and retried until each one's deadline.

use std::sync::Arc;

use tokio::{sync::Semaphore, time::Instant};

use crate::{
    Address, Error, ErrorKind, Receipt, Result, RetrySafety,
    batching::{BatchBacklog, BatchQueue, GroupCommit, StartedBatch},
    connection::close_timeout::{CLOSE_TIMEOUT, close_until},
    driver::{Batching, MessagingSystem, PreparedMessage, Sender, catch_panic::caught},
    publish::lanes::{PendingPublish, PublishBatch, PublishLanes},
    runtime::backoff::Backoff,
    telemetry::PublishMetrics,
    topology::Entity,
};

/// The group commit of one address.
pub(crate) struct PublishBatcher {
    pub(crate) entity: Entity<Address>,
    pub(crate) sender: Arc<dyn Sender>,
    pub(crate) backend: &'static str,
    pub(crate) system: Arc<MessagingSystem>,
    /// A permit for each byte that may wait, all addresses of the bus together.
    pub(crate) pending_bytes: Arc<Semaphore>,
    pub(crate) metrics: PublishMetrics,
    queue: BatchQueue<PublishBacklog>,
    runtime: tokio::runtime::Handle,
}

/// The messages that wait for one address, and why they wait.
pub(crate) struct PublishBacklog {
    waiting: PublishLanes,
    limits: Batching,
    /// The transient error of the last batch, `None` after a success. A publish that was never sent ends with it.
    last_error: Option<Error>,
}

impl BatchBacklog for PublishBacklog {
    type Batch = PublishBatch;

    fn next(&mut self, others: usize) -> Option<PublishBatch> {
        if others >= self.limits.in_flight {
            return None;
        }
        let batch = self.waiting.take_batch(&self.limits);
        (!batch.is_empty()).then_some(batch)
    }
}

impl GroupCommit for PublishBatcher {
    type Backlog = PublishBacklog;

    fn queue(&self) -> &BatchQueue<PublishBacklog> {
        &self.queue
    }

    fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    async fn commit(self: Arc<Self>, batch: PublishBatch) {
        self.send(batch).await;
    }
}

impl PublishBatcher {
    pub(crate) fn new(
        entity: Entity<Address>,
        sender: Arc<dyn Sender>,
        backend: &'static str,
        system: Arc<MessagingSystem>,
        pending_bytes: Arc<Semaphore>,
    ) -> Self {
        let waiting = PublishLanes::new(entity.settings.ordered);
        let queue = BatchQueue::new(PublishBacklog { waiting, limits: sender.batching(), last_error: None });
        let metrics = PublishMetrics::new(backend, &entity.name);
        Self {
            metrics,
            entity,
            sender,
            backend,
            system,
            pending_bytes,
            queue,
            runtime: tokio::runtime::Handle::current(),
        }
    }

    /// Queues messages. The batch that comes back, if any, must be run.
    pub(crate) fn enqueue(self: &Arc<Self>, batch: PublishBatch) -> Option<StartedBatch<Self>> {
        let mut state = self.queue.lock();
        for (prepared, pending) in batch.prepared.into_iter().zip(batch.pending) {
            state.backlog.waiting.push(prepared, pending);
        }
        self.start_next(&mut state)
    }

    /// Queues one message. The batch that comes back, if any, must be run.
    pub(crate) fn enqueue_one(
        self: &Arc<Self>,
        prepared: PreparedMessage,
        pending: PendingPublish,
    ) -> Option<StartedBatch<Self>> {
        let mut state = self.queue.lock();
        // The common case: no message waits and a batch may start, so the message does not pass through the backlog.
        if state.backlog.waiting.can_be_bypassed() && state.under_way < state.backlog.limits.in_flight {
            return Some(self.start(&mut state, PublishBatch::of(prepared, pending)));
        }
        state.backlog.waiting.push(prepared, pending);
        self.start_next(&mut state)
    }

    async fn send(self: &Arc<Self>, mut batch: PublishBatch) {
        let mut backoff = Backoff::default();
        loop {
            batch = self.answer_unsendable(batch);
            let Some(limit) = batch.pending.iter().map(|p| p.deadline).max() else { return };
            let results = match tokio::time::timeout_at(limit, caught(self.sender.send(&batch.prepared))).await {
                Ok(Ok(results)) if results.len() == batch.pending.len() => results,
                Ok(Ok(results)) => {
                    let (got, sent) = (results.len(), batch.pending.len());
                    let text = format!("the driver answered {got} results for {sent} messages");
                    Error::new(ErrorKind::Unexpected, text).may_duplicate().for_each_of(sent)
                }
                Ok(Err(panicked)) => panicked.for_each_of(batch.pending.len()),
                Err(_) => {
                    let e = self.sender.held_back().unwrap_or_else(|| {
                        Error::new(ErrorKind::Timeout, "no confirmation within the publish timeout")
                    });
                    e.may_duplicate().for_each_of(batch.pending.len())
                }
            };
            if results.iter().all(Result::is_ok) {
                return self.answer_all(batch, results);
            }
            let next = Instant::now() + backoff.next_wait();
            batch = self.answer_final(batch, results, next);
            if batch.is_empty() {
                return;
            }
            tokio::time::sleep_until(next).await;
        }
    }

    /// Answers a batch in which every message was taken.
    fn answer_all(&self, batch: PublishBatch, results: Vec<Result<Receipt>>) {
        let mut state = self.queue.lock();
        state.backlog.last_error = None;
        if self.entity.settings.ordered {
            batch.prepared.iter().for_each(|prepared| state.backlog.waiting.free_key(prepared));
        }
        drop(state);
        // Encoded messages are dropped before the answers, which give their permits back: so the permits bound the
        // encoded bytes in memory.
        drop(batch.prepared);
        for (pending, result) in batch.pending.into_iter().zip(results) {
            let _ = pending.reply.answer(result);
        }
    }

    /// Answers the messages whose result is final; returns those that are sent again at `next`.
    fn answer_final(
        self: &Arc<Self>,
        batch: PublishBatch,
        results: Vec<Result<Receipt>>,
        next: Instant,
    ) -> PublishBatch {
        let mut again = PublishBatch::default();
        let mut last_error = None;
        let mut answers = Vec::new();
        for ((prepared, mut pending), result) in batch.prepared.into_iter().zip(batch.pending).zip(results) {
            match result {
                Ok(receipt) => answers.push((prepared, pending, Ok(receipt))),
                Err(e) => {
                    pending.ambiguous |= e.retry() == RetrySafety::MayDuplicate;
                    let may_retry = match e.kind() {
                        ErrorKind::Unavailable | ErrorKind::Timeout => e.retry() != RetrySafety::Never,
                        // `Throttled` that may duplicate: some destinations refused the message and others took it.
                        // Each further attempt would give the latter one more copy.
                        ErrorKind::Throttled => e.retry() == RetrySafety::Safe,
                        _ => false,
                    };
                    if may_retry {
                        last_error = Some(e.clone());
                        if next < pending.deadline {
                            if !pending.ambiguous {
                                pending.reply.mark_unsent();
                            }
                            again.push(prepared, pending);
                            continue;
                        }
                    }
                    let e = self.final_error(e, pending.ambiguous);
                    answers.push((prepared, pending, Err(e)));
                }
            }
        }
        // Failures are recorded before their keys are free: the next message of the key, if it is of the same call,
        // must find its key among the failed ones.
        answers
            .iter()
            .filter(|(.., result)| result.is_err())
            .for_each(|(prepared, pending, _)| record_failure(prepared, pending));
        let mut state = self.queue.lock();
        state.backlog.last_error = last_error;
        answers.iter().for_each(|(prepared, ..)| state.backlog.waiting.free_key(prepared));
        drop(state);
        for (_, pending, result) in answers {
            let _ = pending.reply.answer(result);
        }
        // This run is about to sleep. Messages of the keys that it has freed need not wait for that.
        if !again.is_empty()
            && let Some(another) = self.start_another()
        {
            tokio::spawn(another.run());
        }
        again
    }

    /// Marks the messages of a batch as sent and returns those to send. The others are answered: those whose caller has
    /// given up, those past their deadline, and those that follow a failed message of their key.
    fn answer_unsendable(self: &Arc<Self>, batch: PublishBatch) -> PublishBatch {
        let now = Instant::now();
        let blocked = |prepared: &PreparedMessage, pending: &PendingPublish| {
            pending.failed_keys.as_ref().and_then(|keys| keys.failed_before(&prepared.message.envelope))
        };
        let is_sendable = |prepared: &PreparedMessage, pending: &PendingPublish| {
            pending.deadline > now && blocked(prepared, pending).is_none() && pending.reply.mark_sent()
        };
        let mut messages = batch.prepared.iter().zip(&batch.pending);
        let Some(first) = messages.position(|(prepared, pending)| !is_sendable(prepared, pending)) else {
            return batch;
        };
        let mut sendable = PublishBatch::default();
        for (at, (prepared, pending)) in batch.prepared.into_iter().zip(batch.pending).enumerate() {
            // `position` has asked the messages up to `first`. Each is asked once, since asking marks it as sent.
            if at < first || at > first && is_sendable(&prepared, &pending) {
                sendable.push(prepared, pending);
                continue;
            }
            let error = match blocked(&prepared, &pending) {
                Some(id) => self.after_failed(&id, pending.ambiguous),
                None => self.timed_out(pending.ambiguous),
            };
            record_failure(&prepared, &pending);
            self.queue.lock().backlog.waiting.free_key(&prepared);
            let _ = pending.reply.answer(Err(error));
        }
        sendable
    }

    /// The error of a message on an ordered address that is not sent because an earlier one of its key failed.
    pub(crate) fn after_failed(&self, id: &str, ambiguous: bool) -> Error {
        let text = "not sent: an earlier message of the same key failed";
        self.final_error(Error::new(ErrorKind::Unavailable, text).safe().with_context("after_failed", id), ambiguous)
    }

    /// The error of a publish whose deadline has passed: what keeps it waiting, where that is known, else `Timeout`.
    pub(crate) fn timed_out(&self, ambiguous: bool) -> Error {
        let known = self.queue.lock().backlog.last_error.clone().or_else(|| self.sender.held_back());
        let e = known.unwrap_or_else(|| Error::new(ErrorKind::Timeout, "not confirmed within the publish timeout"));
        self.final_error(e.safe(), ambiguous)
    }

    /// One attempt that may have stored the message makes the last error `MayDuplicate`.
    fn final_error(&self, e: Error, ambiguous: bool) -> Error {
        let e = self.located(e);
        if ambiguous && e.retry() != RetrySafety::MayDuplicate { e.may_duplicate() } else { e }
    }

    /// Adds the operation, the backend and the address to an error that does not name them yet.
    pub(crate) fn located(&self, e: Error) -> Error {
        let e = e.with_operation("publish");
        let e = if e.backend().is_empty() { e.with_backend(self.backend) } else { e };
        if e.context("address").is_some() { e } else { e.with_context("address", &self.entity.name) }
    }

    /// Waits for the messages that are queued or under way, and closes the sender. The bus accepts no more by then.
    pub(crate) async fn close(&self) -> Result<()> {
        self.queue.until_idle(|state| state.under_way == 0 && !state.backlog.waiting.is_ready()).await;
        close_until(Instant::now() + CLOSE_TIMEOUT, self.sender.close(), || {
            tracing::warn!(address = %self.entity.name, "the broker does not answer the close of a sender");
        })
        .await
    }
}

fn record_failure(prepared: &PreparedMessage, pending: &PendingPublish) {
    if let Some(keys) = &pending.failed_keys {
        keys.record(&prepared.message.envelope);
    }
}
