//! The settlements of one consumer: sent to the driver in batches, retried, and answered.
//!
//! Settlements that copy the message (retry, dead letter, redrive) have a queue of their own, so that an ack never
//! waits for their round trips.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    Error, ErrorKind, Result, RetrySafety,
    batching::{BatchBacklog, BatchQueue, GroupCommit, StartedBatch},
    connection::close_timeout::{CLOSE_TIMEOUT, MIN_STEP_TIMEOUT},
    consume::{settle::handling_record::HandlingRecord, unsettled::UnsettledDelivery},
    driver::{Batching, SettleRequest, Settlement, Settler, catch_panic::caught},
    runtime::{backoff::Backoff, oneshot::ReplySender, wait_until::wait_until},
};

/// How long one batch may take, its retries included.
const BATCH_TIMEOUT: Duration = Duration::from_secs(30);

/// `Ok`, or the error with the delivery. After `LockLost` there is no delivery.
pub(crate) type SettleOutcome = Result<(), (Error, Option<UnsettledDelivery>)>;

pub(crate) struct PendingSettlement {
    pub(crate) delivery: UnsettledDelivery,
    pub(crate) how: Settlement,
    pub(crate) reply: Option<ReplySender<SettleOutcome>>,
    /// Why the handler failed, for a driver that keeps it.
    pub(crate) failure: Option<Box<str>>,
    /// Of a worker's settlement: gets the answer, for which nobody waits.
    pub(crate) record: Option<HandlingRecord>,
    /// The settlement that was asked for, once its copy is made and only the ack is left to do. `how` is `Ack` then.
    pub(crate) copied_as: Option<Box<Settlement>>,
    /// The pauses between the attempts that follow those of its first batch.
    pauses: Backoff,
    pending: Option<Pending>,
}

/// One settlement that counts as pending, until this is dropped: wherever its run was.
struct Pending(Arc<SettlementProgress>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.record_done(1);
    }
}

impl PendingSettlement {
    pub(crate) fn new(delivery: UnsettledDelivery, how: Settlement, reply: Option<ReplySender<SettleOutcome>>) -> Self {
        Self {
            delivery,
            how,
            reply,
            failure: None,
            record: None,
            copied_as: None,
            pauses: Backoff::default(),
            pending: None,
        }
    }
}

/// A batch that can go to the driver, or one that is still to be gathered.
pub(crate) enum SettlementBatch {
    Ready(Vec<PendingSettlement>),
    /// Waits for [`Batching::linger`], or until no settlement can join soon, and takes what waits then.
    Gathering,
}

/// The settlements that wait in one queue.
pub(crate) struct SettlementBacklog {
    limits: Batching,
    waiting: VecDeque<PendingSettlement>,
    /// One of the batches under way is [`SettlementBatch::Gathering`]. It will take what waits.
    gathering: bool,
}

impl SettlementBacklog {
    /// Whether a batch of `jobs` settlements may start beside `others`.
    fn may_start(&self, jobs: usize, others: usize) -> bool {
        let most = if jobs < self.limits.entries { self.limits.partial } else { usize::MAX };
        jobs > 0 && others < most.min(self.limits.in_flight)
    }

    fn take(&mut self) -> Vec<PendingSettlement> {
        let n = self.waiting.len().min(self.limits.entries);
        self.waiting.drain(..n).collect()
    }
}

impl BatchBacklog for SettlementBacklog {
    type Batch = SettlementBatch;

    fn next(&mut self, others: usize) -> Option<SettlementBatch> {
        let n = self.waiting.len().min(self.limits.entries);
        self.may_start(n, others).then(|| SettlementBatch::Ready(self.take()))
    }
}

/// One of the two queues of a consumer: for settlements that copy, or for those that do not.
pub(crate) struct SettlementQueue {
    settler: Arc<dyn Settler>,
    progress: Arc<SettlementProgress>,
    queue: BatchQueue<SettlementBacklog>,
    /// Notified when the gathering batch has nothing more to wait for.
    gathered: Notify,
    runtime: tokio::runtime::Handle,
}

/// The progress of a consumer's settlements, in both queues together.
struct SettlementProgress {
    /// The settlements that are queued or under way.
    pending: AtomicUsize,
    /// How many were answered so far, by `Ok` or by an error.
    answered: AtomicU64,
    idle: Notify,
    /// The closing consumer has waited for long enough: settlements under way are given up, and none is retried.
    given_up: AtomicBool,
    giving_up: Notify,
}

/// The settlements of one consumer.
pub(crate) struct SettlementBatcher {
    non_copying: Arc<SettlementQueue>,
    copying: Arc<SettlementQueue>,
    progress: Arc<SettlementProgress>,
}

impl SettlementBatcher {
    pub(crate) fn new(settler: &Arc<dyn Settler>) -> Self {
        let progress = Arc::new(SettlementProgress {
            pending: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            idle: Notify::new(),
            given_up: AtomicBool::new(false),
            giving_up: Notify::new(),
        });
        let new_queue = || {
            let backlog = SettlementBacklog { limits: settler.batching(), waiting: VecDeque::new(), gathering: false };
            Arc::new(SettlementQueue {
                settler: settler.clone(),
                progress: progress.clone(),
                queue: BatchQueue::new(backlog),
                gathered: Notify::new(),
                runtime: tokio::runtime::Handle::current(),
            })
        };
        Self { non_copying: new_queue(), copying: new_queue(), progress }
    }

    /// Queues a settlement. The batch that comes back, if any, must be run.
    pub(crate) fn enqueue(&self, mut job: PendingSettlement) -> Option<StartedBatch<SettlementQueue>> {
        // Counted before it is queued: the queue compares the count with the deliveries that are handed out, this one
        // included.
        self.progress.pending.fetch_add(1, Ordering::AcqRel);
        job.pending = Some(Pending(self.progress.clone()));
        self.enqueue_counted(job)
    }

    /// Queues a settlement that counts as pending already.
    fn enqueue_counted(&self, job: PendingSettlement) -> Option<StartedBatch<SettlementQueue>> {
        let queue = if job.how.copies() { &self.copying } else { &self.non_copying };
        queue.enqueue(job)
    }

    /// Waits until no settlement is queued or under way.
    pub(crate) async fn until_idle(&self) {
        self.progress.until_idle().await;
    }

    /// Waits for the settlements under way until `until`, and then on as long as some are answered within each
    /// [`CLOSE_TIMEOUT`]. So a slow broker is waited for, and one that is away is not. Settlements without an answer by
    /// then are given up.
    pub(crate) async fn finish_by(&self, until: Instant) {
        let progress = &self.progress;
        let mut until = until.max(Instant::now() + MIN_STEP_TIMEOUT);
        let mut answered = progress.answered.load(Ordering::Relaxed);
        while tokio::time::timeout_at(until, progress.until_idle()).await.is_err() {
            let now = progress.answered.load(Ordering::Relaxed);
            if now == answered {
                progress.given_up.store(true, Ordering::Release);
                progress.giving_up.notify_waiters();
                return progress.until_idle().await;
            }
            (answered, until) = (now, Instant::now() + CLOSE_TIMEOUT);
        }
    }
}

impl SettlementProgress {
    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    async fn until_given_up(&self) {
        wait_until(&self.giving_up, || self.is_given_up()).await;
    }

    async fn until_idle(&self) {
        wait_until(&self.idle, || self.pending.load(Ordering::Acquire) == 0).await;
    }

    fn record_done(&self, count: usize) {
        if self.pending.fetch_sub(count, Ordering::AcqRel) == count {
            self.idle.notify_waiters();
        }
    }
}

impl GroupCommit for SettlementQueue {
    type Backlog = SettlementBacklog;

    fn queue(&self) -> &BatchQueue<SettlementBacklog> {
        &self.queue
    }

    fn runtime(&self) -> &tokio::runtime::Handle {
        &self.runtime
    }

    async fn commit(self: Arc<Self>, batch: SettlementBatch) {
        let jobs = match batch {
            SettlementBatch::Ready(jobs) => jobs,
            SettlementBatch::Gathering => self.gather().await,
        };
        if !jobs.is_empty() {
            self.settle(jobs).await;
        }
    }
}

impl SettlementQueue {
    fn enqueue(self: &Arc<Self>, job: PendingSettlement) -> Option<StartedBatch<Self>> {
        let pending = self.progress.pending.load(Ordering::Acquire);
        let mut state = self.queue.lock();
        let backlog = &state.backlog;
        // No settlement can join soon: the driver gives no time for it, or all deliveries that are handed out are
        // pending here already.
        let nobody_joins = backlog.limits.linger.is_zero() || job.delivery.consumer.handed_out() <= pending;
        if backlog.waiting.is_empty() && backlog.may_start(1, state.under_way) {
            if nobody_joins || backlog.limits.entries == 1 {
                return Some(self.start(&mut state, SettlementBatch::Ready(vec![job])));
            }
            state.backlog.waiting.push_back(job);
            state.backlog.gathering = true;
            return Some(self.start(&mut state, SettlementBatch::Gathering));
        }
        state.backlog.waiting.push_back(job);
        if nobody_joins && std::mem::replace(&mut state.backlog.gathering, false) {
            self.gathered.notify_waiters();
        }
        // If this one fills a batch, that batch starts, and the gathering one is left to the settlements that come
        // next.
        self.start_next(&mut state)
    }

    async fn gather(&self) -> Vec<PendingSettlement> {
        let linger = self.queue.lock().backlog.limits.linger;
        // If this future is dropped while it waits, later settlements must not wait for it.
        let _ends = EndOfGathering(self);
        let _ = tokio::time::timeout(linger, wait_until(&self.gathered, || !self.queue.lock().backlog.gathering)).await;
        self.queue.lock().backlog.take()
    }

    async fn settle(self: &Arc<Self>, mut jobs: Vec<PendingSettlement>) {
        let mut backoff = Backoff::default();
        let deadline = Instant::now() + BATCH_TIMEOUT;
        loop {
            let batch: Vec<SettleRequest> = jobs.iter().map(settle_request).collect();
            let settling = async {
                match self.progress.is_given_up() {
                    true => None,
                    false => Some(tokio::time::timeout_at(deadline, caught(self.settler.settle(&batch))).await),
                }
            };
            let answer = tokio::select! {
                biased;
                answer = settling => answer,
                () = self.progress.until_given_up() => None,
            };
            let results = match answer {
                None => {
                    let text = "the consumer was closed before the broker answered; the message may come again";
                    Error::new(ErrorKind::Unavailable, text).may_duplicate().for_each_of(batch.len())
                }
                Some(Ok(Ok(results))) if results.len() == batch.len() => results,
                Some(Ok(Ok(results))) => {
                    let text = format!("the driver answered {} results for {} settlements", results.len(), batch.len());
                    Error::new(ErrorKind::Unexpected, text).may_duplicate().for_each_of(batch.len())
                }
                Some(Ok(Err(panicked))) => panicked.for_each_of(batch.len()),
                Some(Err(_)) => {
                    let error = Error::new(ErrorKind::Timeout, "no answer to a settlement");
                    let is_repeatable = self.queue.lock().backlog.limits.is_repeatable;
                    let error = if is_repeatable { error.safe() } else { error.may_duplicate() };
                    error.for_each_of(batch.len())
                }
            };
            drop(batch);
            let all_ok = results.iter().all(Result::is_ok);
            let next = if all_ok { deadline } else { Instant::now() + backoff.next_wait() };
            let consumer = jobs.first().map(|job| job.delivery.consumer.clone());
            let mut again = Vec::new();
            for (job, result) in jobs.into_iter().zip(results) {
                match result {
                    Err(e) if next < deadline && can_retry_in_batch(&e, &job) && !self.progress.is_given_up() => {
                        again.push(job)
                    }
                    Err(e) if e.is_copy_kept() && job.copied_as.is_none() && self.can_retry(&e, &job) => {
                        // The copy is made. Retrying the whole settlement would make a second one, so only the ack is
                        // left.
                        let copied_as = Some(Box::new(job.how));
                        self.retry_later(PendingSettlement { how: Settlement::Ack, copied_as, ..job }, e);
                    }
                    // A worker's settlement is retried as long as the message is held, since the message would be
                    // handled again otherwise. An ack that may have been carried out is not: the second one would find
                    // no lock.
                    Err(e)
                        if job.record.is_some()
                            && !e.is_copy_kept()
                            && (job.how != Settlement::Ack || e.retry() == RetrySafety::Safe)
                            && self.can_retry(&e, &job) =>
                    {
                        self.retry_later(job, e);
                    }
                    // The broker did nothing, and the lock to retry with is gone.
                    Err(e) if lock_has_ended(&e, &job) => {
                        self.conclude(job, Err(hold_ended(e)));
                    }
                    result => self.conclude(job, result),
                }
            }
            // One wake for all the places that the batch has freed.
            if let Some(consumer) = consumer {
                consumer.wake_waiters();
            }
            if again.is_empty() {
                return;
            }
            jobs = again;
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.progress.until_given_up() => {}
            }
        }
    }

    /// Whether a retry can help: the error is transient, the message is still held, and the consumer has not given up.
    fn can_retry(&self, e: &Error, job: &PendingSettlement) -> bool {
        e.is_transient() && job.delivery.is_held() && !self.progress.is_given_up()
    }

    /// Retries one settlement after a pause, beside the batches that go meanwhile. It counts as pending all the time.
    fn retry_later(self: &Arc<Self>, mut job: PendingSettlement, e: Error) {
        let pause = job.pauses.next_wait();
        let (source, id) = (&job.delivery.consumer.entity.name, &*job.delivery.message().envelope.id);
        tracing::warn!(%source, id, error = %e, "a message could not be settled; trying again");
        let this = self.clone();
        let runtime = job.delivery.consumer.runtime.clone();
        runtime.spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = this.progress.until_given_up() => {}
            }
            if !this.can_retry(&e, &job) {
                let e = if job.delivery.is_held() || job.copied_as.is_some() { e } else { hold_ended(e) };
                return this.conclude(job, Err(e));
            }
            let consumer = job.delivery.consumer.clone();
            if let Some(started) = consumer.settlements.enqueue_counted(job) {
                started.run().await;
            }
        });
    }

    fn conclude(self: &Arc<Self>, job: PendingSettlement, result: Result<()>) {
        // One that is retried makes no progress: counted, it would keep a closing consumer waiting for ever.
        self.progress.answered.fetch_add(1, Ordering::Relaxed);
        let PendingSettlement { mut delivery, how, reply, record, copied_as, pending: _pending, .. } = job;
        let from_worker = record.is_some();
        let copied = copied_as.is_some();
        let how = copied_as.map_or(how, |settlement| *settlement);
        let consumer = delivery.consumer.clone();
        let e = match result {
            Ok(()) => {
                consumer.metrics.settled(&how, Ok(()));
                delivery.free_without_waking();
                if let Some(record) = record {
                    record.settled(&how);
                }
                if let Some(reply) = reply {
                    let _ = reply.answer(Ok(()));
                }
                return;
            }
            Err(e) if copied && !e.is_copy_kept() => consumer.located(e.with_kept_copy(), "settle"),
            Err(e) => consumer.located(e, "settle"),
        };
        consumer.metrics.settled(&how, Err(&e));
        if let (ErrorKind::LockLost, Some(lock)) = (e.kind(), delivery.message().lock) {
            // The lock counts as lost by the broker's answer, whatever its time here. Freeing the message then discards
            // those behind it in its key, which must not overtake it.
            consumer.locks.set_lost(lock);
        }
        if let Some(record) = record {
            record.failed(&how, &e);
        }
        let (id, attempt) = (delivery.message().envelope.id.clone(), delivery.message().attempt);
        if e.kind() == ErrorKind::LockLost {
            delivery.record_handled();
        }
        let returned = (e.kind() != ErrorKind::LockLost).then_some(delivery);
        let unread_answer = match reply {
            Some(reply) => reply.answer(Err((e, returned))).err(),
            None => Some(Err((e, returned))),
        };
        let Some(Err((e, returned))) = unread_answer else { return };
        tracing::warn!(source = %consumer.entity.name, %id, attempt, error = %e, "a settlement nobody waits for failed");
        let Some(mut delivery) = returned else { return };
        if !delivery.is_held() {
            return consumer.give_up_lost(delivery);
        }
        // The message comes again, whatever was asked for.
        delivery.record_handled();
        // Nobody has the delivery any more. Unsettled, the message would stay with this consumer until the connection
        // ends.
        match how {
            // Its copy is made: released, the message would be there twice. It comes again once its lock ends.
            _ if e.is_copy_kept() => {}
            // Part of closing, after which the broker takes the message back anyway.
            Settlement::GiveBack => {}
            // What was refused would be refused again at once.
            Settlement::Release | Settlement::DeadLetter { .. } => consumer.release_later(delivery),
            Settlement::RetryAfter(_) if from_worker => consumer.release_later(delivery),
            _ => consumer.settle_detached(delivery, Settlement::Release),
        }
    }
}

/// Marks the queue as not gathering when its batch ends or is dropped.
struct EndOfGathering<'a>(&'a SettlementQueue);

impl Drop for EndOfGathering<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().backlog.gathering = false;
    }
}

fn settle_request(job: &PendingSettlement) -> SettleRequest {
    let message = job.delivery.message();
    let mut request =
        SettleRequest::new(message.token.clone(), message.envelope.clone(), message.attempt, job.how.clone());
    match job.how {
        Settlement::RetryAfter(_) | Settlement::Release => request.failure = job.failure.clone(),
        Settlement::DeadLetter { .. } => request.time = job.delivery.consumer.connection.clock.now(),
        Settlement::Redrive | Settlement::RedriveAs(_) | Settlement::SetAside => {
            request.mark = message.rare().and_then(|rare| rare.copy_mark.clone());
        }
        _ => {}
    }
    request
}

fn hold_ended(e: Error) -> Error {
    let text = "the hold on the message ended before the broker could be told; it comes again";
    Error::new(ErrorKind::LockLost, text).with_source(e)
}

/// Whether the batch is sent again for this settlement: it had no effect, and the message is still held.
fn can_retry_in_batch(e: &Error, job: &PendingSettlement) -> bool {
    had_no_effect(e, job) && job.delivery.is_held()
}

/// Whether the message is no longer held after a transient error without effect.
fn lock_has_ended(e: &Error, job: &PendingSettlement) -> bool {
    had_no_effect(e, job) && job.copied_as.is_none() && !job.delivery.is_held()
}

/// Whether the error is transient and surely had no effect. `GiveBack` is never retried: it is part of closing, which
/// must not wait, and the broker takes the message back anyway.
fn had_no_effect(e: &Error, job: &PendingSettlement) -> bool {
    e.retry() == RetrySafety::Safe && job.how != Settlement::GiveBack && !e.is_copy_kept() && e.is_transient()
}
