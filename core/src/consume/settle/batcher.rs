//! Settlements on their way to the driver, in batches. What copies has a line of its own, so that an ack never waits for a
//! round trip of a retry.

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
    batching::{Backlog, BatchQueue, GroupCommit, StartedBatch},
    connection::patience::{LEAST_AT_CLOSE, MOST_AT_CLOSE},
    consume::{settle::handling_record::HandlingRecord, unsettled::UnsettledDelivery},
    driver::{Batching, SettleRequest, Settlement, Settler, catch_panic::caught},
    error::{Error, ErrorKind, Result, RetrySafety},
    runtime::{backoff::Backoff, oneshot::ReplySender},
};

/// How long a driver may take for one batch, and a batch with its retries.
const LIMIT: Duration = Duration::from_secs(30);

/// Ok, or the error and the delivery, unless its lock is lost.
pub(crate) type SettleOutcome = Result<(), (Error, Option<UnsettledDelivery>)>;

pub(crate) struct PendingSettlement {
    pub(crate) held: UnsettledDelivery,
    pub(crate) how: Settlement,
    pub(crate) reply: Option<ReplySender<SettleOutcome>>,
    /// Where nobody waits for the answer, but somebody counts it.
    pub(crate) told: Option<HandlingRecord>,
    /// The copy was made: what is left is to ack. What the whole comes to.
    pub(crate) moved: Option<Box<Settlement>>,
    /// The pauses between the tries that follow a batch's own.
    pauses: Backoff,
}

impl PendingSettlement {
    pub(crate) fn new(held: UnsettledDelivery, how: Settlement, reply: Option<ReplySender<SettleOutcome>>) -> Self {
        Self { held, how, reply, told: None, moved: None, pauses: Backoff::default() }
    }
}

/// A batch that the driver can have, or the right to one that is still to be gathered.
pub(crate) enum SettlementBatch {
    Ready(Vec<PendingSettlement>),
    /// Waits for [`Batching::linger`], or until nothing more can be expected, and takes what waits then.
    Gathering,
}

/// The settlements that wait in one line.
pub(crate) struct SettlementBacklog {
    limits: Batching,
    waiting: VecDeque<PendingSettlement>,
    /// One of the batches under way is [`SettlementBatch::Gathering`], and takes what waits.
    gathering: bool,
}

impl SettlementBacklog {
    /// Whether a batch of so many may start beside others.
    fn may_start(&self, jobs: usize, others: usize) -> bool {
        let most = if jobs < self.limits.entries { self.limits.partial } else { usize::MAX };
        jobs > 0 && others < most.min(self.limits.in_flight)
    }

    fn take(&mut self) -> Vec<PendingSettlement> {
        let n = self.waiting.len().min(self.limits.entries);
        self.waiting.drain(..n).collect()
    }
}

impl Backlog for SettlementBacklog {
    type Batch = SettlementBatch;

    fn next(&mut self, others: usize) -> Option<SettlementBatch> {
        let n = self.waiting.len().min(self.limits.entries);
        self.may_start(n, others).then(|| SettlementBatch::Ready(self.take()))
    }
}

/// One line of settlements: those that copy, or those that do not.
pub(crate) struct SettlementLine {
    settler: Arc<dyn Settler>,
    progress: Arc<SettlementProgress>,
    queue: BatchQueue<SettlementBacklog>,
    /// Notified when a gathering batch has nothing more to wait for.
    gathered: Notify,
}

/// What the two lines of a consumer share.
struct SettlementProgress {
    /// Queued or under way.
    pending: AtomicUsize,
    /// How many were answered so far, well or not.
    answered: AtomicU64,
    idle: Notify,
    /// The consumer has waited for long enough: what is under way is given up, and nothing more is tried.
    cut: AtomicBool,
    cutting: Notify,
}

/// The settlements of one consumer.
pub(crate) struct SettlementBatcher {
    quick: Arc<SettlementLine>,
    copying: Arc<SettlementLine>,
    progress: Arc<SettlementProgress>,
}

impl SettlementBatcher {
    pub(crate) fn new(settler: &Arc<dyn Settler>) -> Self {
        let progress = Arc::new(SettlementProgress {
            pending: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            idle: Notify::new(),
            cut: AtomicBool::new(false),
            cutting: Notify::new(),
        });
        let line = || {
            let backlog = SettlementBacklog { limits: settler.batching(), waiting: VecDeque::new(), gathering: false };
            Arc::new(SettlementLine {
                settler: settler.clone(),
                progress: progress.clone(),
                queue: BatchQueue::new(backlog),
                gathered: Notify::new(),
            })
        };
        Self { quick: line(), copying: line(), progress }
    }

    /// Queues a settlement. What comes back, if anything, must be run.
    pub(crate) fn enqueue(&self, job: PendingSettlement) -> Option<StartedBatch<SettlementLine>> {
        self.progress.pending.fetch_add(1, Ordering::AcqRel);
        self.put(job)
    }

    /// Queues one that is counted already.
    fn put(&self, job: PendingSettlement) -> Option<StartedBatch<SettlementLine>> {
        let line = if job.how.copies() { &self.copying } else { &self.quick };
        line.put(job)
    }

    /// Waits until no settlement is queued or under way.
    pub(crate) async fn until_idle(&self) {
        self.progress.until_idle().await;
    }

    /// Waits for the settlements under way, until `until` and for as long as some are answered: a busy broker is waited
    /// for, one that is away is not. What has no answer by then is given up.
    pub(crate) async fn end(&self, until: Instant) {
        let progress = &self.progress;
        let mut until = until.max(Instant::now() + LEAST_AT_CLOSE);
        let mut answered = progress.answered.load(Ordering::Relaxed);
        while tokio::time::timeout_at(until, progress.until_idle()).await.is_err() {
            let now = progress.answered.load(Ordering::Relaxed);
            if now == answered {
                progress.cut.store(true, Ordering::Release);
                progress.cutting.notify_waiters();
                return progress.until_idle().await;
            }
            (answered, until) = (now, Instant::now() + MOST_AT_CLOSE);
        }
    }
}

impl SettlementProgress {
    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    async fn until_cut(&self) {
        wait_for(&self.cutting, || self.is_cut()).await;
    }

    async fn until_idle(&self) {
        wait_for(&self.idle, || self.pending.load(Ordering::Acquire) == 0).await;
    }

    fn answered(&self, count: usize) {
        self.answered.fetch_add(count as u64, Ordering::Relaxed);
        if self.pending.fetch_sub(count, Ordering::AcqRel) == count {
            self.idle.notify_waiters();
        }
    }
}

/// Waits until `holds`, which is asked again at each notification.
async fn wait_for(notify: &Notify, holds: impl Fn() -> bool) {
    loop {
        let notified = notify.notified();
        tokio::pin!(notified);
        // Before the look, so that a notification right after it is not missed.
        notified.as_mut().enable();
        if holds() {
            return;
        }
        notified.await;
    }
}

impl GroupCommit for SettlementLine {
    type Backlog = SettlementBacklog;

    fn queue(&self) -> &BatchQueue<SettlementBacklog> {
        &self.queue
    }

    async fn commit(self: Arc<Self>, batch: SettlementBatch) {
        let jobs = match batch {
            SettlementBatch::Ready(jobs) => jobs,
            SettlementBatch::Gathering => self.gather().await,
        };
        let count = jobs.len();
        if count > 0 {
            self.settle(jobs).await;
            self.progress.answered(count);
        }
    }
}

impl SettlementLine {
    fn put(self: &Arc<Self>, job: PendingSettlement) -> Option<StartedBatch<Self>> {
        let pending = self.progress.pending.load(Ordering::Acquire);
        let mut state = self.queue.lock();
        let backlog = &state.backlog;
        // Nobody can join soon: there is no time for it, or all that the consumer has in hand is here already.
        let alone = backlog.limits.linger.is_zero() || job.held.consumer.in_hand() <= pending;
        if backlog.waiting.is_empty() && backlog.may_start(1, state.under_way) {
            if alone || backlog.limits.entries == 1 {
                return Some(self.start(&mut state, SettlementBatch::Ready(vec![job])));
            }
            state.backlog.waiting.push_back(job);
            state.backlog.gathering = true;
            return Some(self.start(&mut state, SettlementBatch::Gathering));
        }
        state.backlog.waiting.push_back(job);
        if alone && std::mem::replace(&mut state.backlog.gathering, false) {
            self.gathered.notify_waiters();
        }
        // A full batch leaves the one that gathers to those that come next.
        self.start_next(&mut state)
    }

    async fn gather(&self) -> Vec<PendingSettlement> {
        let linger = self.queue.lock().backlog.limits.linger;
        // Dropped while it waits, with its runtime, it must not leave others waiting for it.
        let _ends = EndOfGathering(self);
        let _ = tokio::time::timeout(linger, wait_for(&self.gathered, || !self.queue.lock().backlog.gathering)).await;
        self.queue.lock().backlog.take()
    }

    async fn settle(self: &Arc<Self>, mut jobs: Vec<PendingSettlement>) {
        let mut backoff = Backoff::default();
        let deadline = Instant::now() + LIMIT;
        loop {
            let batch: Vec<SettleRequest> = jobs.iter().map(settle_of).collect();
            let settling = async {
                match self.progress.is_cut() {
                    true => None,
                    false => Some(tokio::time::timeout_at(deadline, caught(self.settler.settle(&batch))).await),
                }
            };
            let answer = tokio::select! {
                biased;
                answer = settling => answer,
                () = self.progress.until_cut() => None,
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
                    Error::new(ErrorKind::Timeout, "no answer to a settlement").may_duplicate().for_each_of(batch.len())
                }
            };
            drop(batch);
            let all_well = results.iter().all(Result::is_ok);
            let next = if all_well { deadline } else { Instant::now() + backoff.next() };
            let consumer = jobs.first().map(|job| job.held.consumer.clone());
            let mut again = Vec::new();
            for (job, result) in jobs.into_iter().zip(results) {
                match result {
                    Err(e) if next < deadline && passing(&e, &job) && !self.progress.is_cut() => again.push(job),
                    Err(e) if is_kept(&e) && job.moved.is_none() && self.may_go_on(&e, &job) => {
                        // Another try of the whole would move it twice.
                        let moved = Some(Box::new(job.how));
                        self.go_on(PendingSettlement { how: Settlement::Ack, moved, ..job }, e);
                    }
                    // What a worker has handled is settled as long as it is held: given up, it would be handled again. An
                    // ack that may have been carried out is not tried again, since the next one would find no lock.
                    Err(e)
                        if job.told.is_some()
                            && !is_kept(&e)
                            && (job.how != Settlement::Ack || e.retry() == RetrySafety::Safe)
                            && self.may_go_on(&e, &job) =>
                    {
                        self.go_on(job, e);
                    }
                    // Nothing was done, and there is nothing left to try it with.
                    Err(e) if lost_meanwhile(&e, &job) => {
                        let text = "the hold on the message ended before the broker could be told; it comes again";
                        self.finish(job, Err(Error::new(ErrorKind::LockLost, text).with_source(e)));
                    }
                    result => self.finish(job, result),
                }
            }
            // Once for all the places that they free.
            if let Some(consumer) = consumer {
                consumer.wake();
            }
            if again.is_empty() {
                return;
            }
            jobs = again;
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.progress.until_cut() => {}
            }
        }
    }

    /// Whether trying again can help, and there is something left to settle.
    fn may_go_on(&self, e: &Error, job: &PendingSettlement) -> bool {
        e.is_transient() && job.held.is_held() && !self.progress.is_cut()
    }

    /// Tries again after a pause, beside the batches that go meanwhile. It counts as pending all the time.
    fn go_on(self: &Arc<Self>, mut job: PendingSettlement, e: Error) {
        let pause = job.pauses.next();
        let (source, id) = (&job.held.consumer.entity.name, &*job.held.parts().envelope.id);
        tracing::warn!(%source, id, error = %e, "a message could not be settled; trying again");
        self.progress.pending.fetch_add(1, Ordering::AcqRel);
        let this = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = this.progress.until_cut() => {}
            }
            if !this.may_go_on(&e, &job) {
                this.finish(job, Err(e));
                return this.progress.answered(1);
            }
            let consumer = job.held.consumer.clone();
            if let Some(started) = consumer.settlements.put(job) {
                started.run().await;
            }
        });
    }

    fn finish(self: &Arc<Self>, job: PendingSettlement, result: Result<()>) {
        let PendingSettlement { held, how, reply, told, moved, .. } = job;
        let of_worker = told.is_some();
        let moving = moved.is_some();
        let how = moved.map_or(how, |whole| *whole);
        let consumer = held.consumer.clone();
        let e = match result {
            Ok(()) => {
                consumer.metrics.settled(&how, Ok(()));
                held.settled();
                if let Some(told) = told {
                    told.done(&how);
                }
                if let Some(reply) = reply {
                    let _ = reply.answer(Ok(()));
                }
                return;
            }
            Err(e) if moving && !is_kept(&e) => consumer.located(e.with_context("copy", "kept"), "settle"),
            Err(e) => consumer.located(e, "settle"),
        };
        consumer.metrics.settled(&how, Err(&e));
        if let (ErrorKind::LockLost, Some(lock)) = (e.kind(), held.parts().lock) {
            // The broker's word, whatever this side thought of the lock: what is behind it in its key must not overtake it.
            consumer.locks.set_lost(lock);
        }
        if let Some(told) = told {
            told.failed(&how, &e);
        }
        let (id, attempt) = (held.parts().envelope.id.clone(), held.parts().attempt);
        if e.kind() == ErrorKind::LockLost {
            consumer.note_handled(held.parts());
        }
        let back = (e.kind() != ErrorKind::LockLost).then_some(held);
        let unheard = match reply {
            Some(reply) => reply.answer(Err((e, back))).err(),
            None => Some(Err((e, back))),
        };
        let Some(Err((e, back))) = unheard else { return };
        tracing::warn!(source = %consumer.entity.name, %id, attempt, error = %e, "a settlement nobody waits for failed");
        let Some(held) = back.filter(|held| held.is_held()) else { return };
        // Unsettled and held by nobody, it would block its place until the connection ends.
        match how {
            // Released, it would be there twice; it comes again once the hold ends, if the broker is not back before.
            _ if is_kept(&e) => {}
            Settlement::Release | Settlement::GiveBack => {}
            // It comes back only to be refused again, so it must not come back at once.
            Settlement::DeadLetter { .. } => consumer.release_later(held),
            Settlement::RetryAfter(_) if of_worker => consumer.release_later(held),
            _ => consumer.settle_detached(held, Settlement::Release),
        }
    }
}

/// Ends the gathering of a line, however its batch ends.
struct EndOfGathering<'a>(&'a SettlementLine);

impl Drop for EndOfGathering<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().backlog.gathering = false;
    }
}

fn settle_of(job: &PendingSettlement) -> SettleRequest {
    let parts = job.held.parts();
    let mut settle = SettleRequest::new(parts.token.clone(), parts.envelope.clone(), parts.attempt, job.how.clone());
    match job.how {
        Settlement::DeadLetter { .. } => settle.time = job.held.consumer.connection.clock.now(),
        Settlement::Redrive | Settlement::RedriveAs(_) | Settlement::SetAside => {
            settle.mark = parts.rare().and_then(|rare| rare.stamp.clone());
        }
        _ => {}
    }
    settle
}

/// Whether a copy was made and the original not settled.
fn is_kept(e: &Error) -> bool {
    e.context("copy") == Some("kept")
}

/// Giving back is done once at most: it goes with closing, which must not wait, and the broker takes the message back anyway.
fn passing(e: &Error, job: &PendingSettlement) -> bool {
    changed_nothing(e, job) && job.held.is_held()
}

/// Whether there is nothing left to settle after an error that would have passed.
fn lost_meanwhile(e: &Error, job: &PendingSettlement) -> bool {
    changed_nothing(e, job) && job.moved.is_none() && !job.held.is_held()
}

fn changed_nothing(e: &Error, job: &PendingSettlement) -> bool {
    e.retry() == RetrySafety::Safe && job.how != Settlement::GiveBack && !is_kept(e) && e.is_transient()
}
