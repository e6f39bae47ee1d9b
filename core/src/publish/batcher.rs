//! The publishes of one address, sent in batches, with retries until each one's deadline.

use std::sync::Arc;

use tokio::{sync::Semaphore, time::Instant};

use crate::{
    batching::{Backlog, BatchQueue, GroupCommit, StartedBatch},
    connection::patience::{MOST_AT_CLOSE, closed_by},
    driver::{Batching, MessagingSystem, PreparedMessage, Sender, catch_panic::caught},
    error::{Error, ErrorKind, Result, RetrySafety},
    message::Receipt,
    publish::backlog::{PendingPublish, PublishBacklog, PublishBatch},
    runtime::backoff::Backoff,
    telemetry::PublishMetrics,
    topology::{Address, Entity},
};

/// The batches of one address.
pub(crate) struct PublishBatcher {
    pub(crate) entity: Entity<Address>,
    pub(crate) sender: Arc<dyn Sender>,
    pub(crate) backend: &'static str,
    pub(crate) system: Arc<MessagingSystem>,
    /// The bytes that may wait, all addresses of the bus together.
    pub(crate) room: Arc<Semaphore>,
    pub(crate) metrics: PublishMetrics,
    queue: BatchQueue<PublishQueue>,
}

/// What waits for one address, and why.
pub(crate) struct PublishQueue {
    waiting: PublishBacklog,
    limits: Batching,
    /// Why messages are waiting, as the last failed batch told; so that a publish that was never sent can say it.
    trouble: Option<Error>,
}

impl Backlog for PublishQueue {
    type Batch = PublishBatch;

    fn next(&mut self, others: usize) -> Option<PublishBatch> {
        if others >= self.limits.in_flight {
            return None;
        }
        let batch = self.waiting.take(&self.limits);
        (!batch.is_empty()).then_some(batch)
    }
}

impl GroupCommit for PublishBatcher {
    type Backlog = PublishQueue;

    fn queue(&self) -> &BatchQueue<PublishQueue> {
        &self.queue
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
        room: Arc<Semaphore>,
    ) -> Self {
        let waiting = PublishBacklog::new(entity.settings.ordered);
        let queue = BatchQueue::new(PublishQueue { waiting, limits: sender.batching(), trouble: None });
        let metrics = PublishMetrics::new(backend, &entity.name);
        Self { metrics, entity, sender, backend, system, room, queue }
    }

    /// Queues messages. What comes back, if anything, must be run: a batch that can go now.
    pub(crate) fn enqueue(self: &Arc<Self>, batch: PublishBatch) -> Option<StartedBatch<Self>> {
        let mut state = self.queue.lock();
        for (prepared, item) in batch.prepared.into_iter().zip(batch.items) {
            state.backlog.waiting.push(prepared, item);
        }
        self.start_next(&mut state)
    }

    /// Queues one message. What comes back, if anything, must be run.
    pub(crate) fn enqueue_one(
        self: &Arc<Self>,
        prepared: PreparedMessage,
        item: PendingPublish,
    ) -> Option<StartedBatch<Self>> {
        let mut state = self.queue.lock();
        // The common case goes past the backlog.
        if state.backlog.waiting.is_free() && state.under_way < state.backlog.limits.in_flight {
            return Some(self.start(&mut state, PublishBatch::of(prepared, item)));
        }
        state.backlog.waiting.push(prepared, item);
        self.start_next(&mut state)
    }

    async fn send(self: &Arc<Self>, mut batch: PublishBatch) {
        let mut backoff = Backoff::default();
        loop {
            batch = self.weed(batch);
            let Some(limit) = batch.items.iter().map(|i| i.deadline).max() else { return };
            let results = match tokio::time::timeout_at(limit, caught(self.sender.send(&batch.prepared))).await {
                Ok(Ok(results)) if results.len() == batch.items.len() => results,
                Ok(Ok(results)) => {
                    let (got, sent) = (results.len(), batch.items.len());
                    let text = format!("the driver answered {got} results for {sent} messages");
                    Error::new(ErrorKind::Unexpected, text).may_duplicate().for_each_of(sent)
                }
                Ok(Err(panicked)) => panicked.for_each_of(batch.items.len()),
                Err(_) => {
                    let e = self.sender.held_back().unwrap_or_else(|| {
                        Error::new(ErrorKind::Timeout, "no confirmation within the publish timeout")
                    });
                    e.may_duplicate().for_each_of(batch.items.len())
                }
            };
            if results.iter().all(Result::is_ok) {
                return self.all_sent(batch, results);
            }
            let next = Instant::now() + backoff.next();
            batch = self.sort(batch, results, next);
            if batch.is_empty() {
                return;
            }
            tokio::time::sleep_until(next).await;
        }
    }

    fn all_sent(&self, batch: PublishBatch, results: Vec<Result<Receipt>>) {
        let mut state = self.queue.lock();
        state.backlog.trouble = None;
        if self.entity.settings.ordered {
            batch.prepared.iter().for_each(|prepared| state.backlog.waiting.free(prepared));
        }
        drop(state);
        // Before the answers, which make room for more: what may wait is a bound on what is encoded.
        drop(batch.prepared);
        for (item, result) in batch.items.into_iter().zip(results) {
            let _ = item.reply.answer(result);
        }
    }

    /// Answers what is decided; returns what goes again.
    fn sort(self: &Arc<Self>, batch: PublishBatch, results: Vec<Result<Receipt>>, next: Instant) -> PublishBatch {
        let mut again = PublishBatch::default();
        let mut trouble = None;
        let mut decided = Vec::new();
        for ((prepared, mut item), result) in batch.prepared.into_iter().zip(batch.items).zip(results) {
            match result {
                Ok(receipt) => decided.push((prepared, item, Ok(receipt))),
                Err(e) => {
                    item.ambiguous |= e.retry() == RetrySafety::MayDuplicate;
                    let passing = match e.kind() {
                        ErrorKind::Unavailable | ErrorKind::Timeout => e.retry() != RetrySafety::Never,
                        // Refused by some of those it goes to, and taken by others: each time again would be one more for these.
                        ErrorKind::Throttled => e.retry() == RetrySafety::Safe,
                        _ => false,
                    };
                    if passing {
                        trouble = Some(e.clone());
                        if next < item.deadline {
                            if !item.ambiguous {
                                item.reply.mark_unsent();
                            }
                            again.push(prepared, item);
                            continue;
                        }
                    }
                    let e = self.final_error(e, item.ambiguous);
                    decided.push((prepared, item, Err(e)));
                }
            }
        }
        // Before their keys are free: what follows in the same call must see it.
        decided.iter().filter(|(.., result)| result.is_err()).for_each(|(prepared, item, _)| fail_call(prepared, item));
        let mut state = self.queue.lock();
        state.backlog.trouble = trouble;
        decided.iter().for_each(|(prepared, ..)| state.backlog.waiting.free(prepared));
        drop(state);
        for (_, item, result) in decided {
            let _ = item.reply.answer(result);
        }
        // This run is about to wait; the keys it has freed need not.
        if !again.is_empty()
            && let Some(another) = self.more()
        {
            tokio::spawn(another.run());
        }
        again
    }

    /// What goes now, and is marked as sent: without what nobody waits for, what is past its time, and what follows a
    /// failed message of its key.
    fn weed(self: &Arc<Self>, batch: PublishBatch) -> PublishBatch {
        let now = Instant::now();
        let blocked = |p: &PreparedMessage, i: &PendingPublish| {
            i.call.as_ref().and_then(|c| c.failed_before(&p.message.envelope))
        };
        let goes =
            |p: &PreparedMessage, i: &PendingPublish| i.deadline > now && blocked(p, i).is_none() && i.reply.begin();
        let Some(first) = batch.prepared.iter().zip(&batch.items).position(|(p, i)| !goes(p, i)) else { return batch };
        let mut kept = PublishBatch::default();
        for (at, (prepared, item)) in batch.prepared.into_iter().zip(batch.items).enumerate() {
            // Those before the first were asked; what has begun is not asked again.
            if at < first || at > first && goes(&prepared, &item) {
                kept.push(prepared, item);
                continue;
            }
            let error = match blocked(&prepared, &item) {
                Some(id) => self.after_failed(&id, item.ambiguous),
                None => self.timed_out(item.ambiguous),
            };
            fail_call(&prepared, &item);
            self.queue.lock().backlog.waiting.free(&prepared);
            let _ = item.reply.answer(Err(error));
        }
        kept
    }

    /// What a message of an ordered address says that was not sent because an earlier one of its key failed.
    pub(crate) fn after_failed(&self, id: &str, ambiguous: bool) -> Error {
        let text = "not sent: an earlier message of the same key failed";
        self.final_error(Error::new(ErrorKind::Unavailable, text).safe().with_context("after_failed", id), ambiguous)
    }

    /// What a publish says whose time ran out: what keeps it waiting, where that is known.
    pub(crate) fn timed_out(&self, ambiguous: bool) -> Error {
        let trouble = self.queue.lock().backlog.trouble.clone().or_else(|| self.sender.held_back());
        let e = trouble.unwrap_or_else(|| Error::new(ErrorKind::Timeout, "not confirmed within the publish timeout"));
        self.final_error(e.safe(), ambiguous)
    }

    fn final_error(&self, e: Error, ambiguous: bool) -> Error {
        let e = self.located(e);
        if ambiguous && e.retry() != RetrySafety::MayDuplicate { e.may_duplicate() } else { e }
    }

    /// Adds where it happened.
    pub(crate) fn located(&self, e: Error) -> Error {
        let e = e.with_operation("publish");
        let e = if e.backend().is_empty() { e.with_backend(self.backend) } else { e };
        if e.context("address").is_some() { e } else { e.with_context("address", &self.entity.name) }
    }

    /// Waits for the messages that are on their way, and closes the sender. The bus lets no more in.
    pub(crate) async fn close(&self) -> Result<()> {
        self.queue.until_idle(|state| state.under_way == 0 && !state.backlog.waiting.is_ready()).await;
        closed_by(Instant::now() + MOST_AT_CLOSE, self.sender.close(), || {
            tracing::warn!(address = %self.entity.name, "the broker does not answer the close of a sender");
        })
        .await
    }
}

fn fail_call(prepared: &PreparedMessage, item: &PendingPublish) {
    if let Some(call) = &item.call {
        call.fail(&prepared.message.envelope);
    }
}
