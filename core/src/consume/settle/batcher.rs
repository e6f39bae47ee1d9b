//! Settlements on their way: group commit, as for publishes. What copies has a queue of its own, so that an ack never
//! waits for a round trip.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    connection::patience::{LEAST_AT_CLOSE, MOST_AT_CLOSE},
    consume::settle::handling_record::Told,
    consume::unsettled::Held,
    driver::{Batching, SettleRequest, Settlement, Settler, catch_panic::caught},
    error::{Error, ErrorKind, Result, RetrySafety},
    runtime::{backoff::Backoff, oneshot::Reply, poll_then_spawn::Boxed},
};

/// How long a driver may take for one batch, and a batch with its retries.
const LIMIT: Duration = Duration::from_secs(30);

/// From here on one start in 2^6 lingers still, to find out whether it is worth it again.
const MOST_FRUITLESS: u32 = 6;

/// Ok, or the error and the delivery, unless its lock is lost.
pub(crate) type Outcome = Result<(), (Error, Option<Held>)>;

pub(crate) struct Job {
    pub(crate) held: Held,
    pub(crate) how: Settlement,
    pub(crate) reply: Option<Reply<Outcome>>,
    /// Where nobody waits for the answer, but somebody counts it.
    pub(crate) told: Option<Told>,
    /// The copy was made: what is left is to ack. What the whole comes to.
    pub(crate) moved: Option<Box<Settlement>>,
}

impl Job {
    pub(crate) fn new(held: Held, how: Settlement, reply: Option<Reply<Outcome>>) -> Self {
        Self { held, how, reply, told: None, moved: None }
    }
}

pub(crate) struct SettleQueue {
    settler: Arc<dyn Settler>,
    batching: Batching,
    quick: Mutex<Line>,
    copying: Mutex<Line>,
    jobs: AtomicUsize,
    idle: Notify,
    /// How many were answered so far, well or not.
    answered: AtomicU64,
    /// The consumer has waited for long enough: what is under way is given up, and nothing more is tried.
    cut: AtomicBool,
    cutting: Notify,
    /// Nothing more to linger for.
    gathered: Notify,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Job>,
    under_way: usize,
    /// One of those under way waits for company, and will take what is waiting.
    lingering: bool,
    /// How often in a row nobody came, and how many starts therefore do not linger.
    fruitless: u32,
    at_once: u32,
}

impl Line {
    /// What lingering has brought. Who settles one by one, with others in hand, must not wait each time.
    fn learn(&mut self, gathered: usize) {
        self.fruitless = if gathered == 1 { (self.fruitless + 1).min(MOST_FRUITLESS) } else { 0 };
        self.at_once = if self.fruitless > 0 { 1 << self.fruitless } else { 0 };
    }
}

/// The right to have one batch under way; given back on drop.
pub(crate) struct Slot {
    queue: Arc<SettleQueue>,
    copying: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut line = self.queue.line(self.copying);
        line.under_way -= 1;
        // Dropped while it lingered, with its runtime: those that wait must not wait for it.
        line.lingering &= line.under_way > 0;
    }
}

impl SettleQueue {
    pub(crate) fn new(settler: Arc<dyn Settler>) -> Self {
        Self {
            batching: settler.batching(),
            settler,
            quick: Mutex::default(),
            copying: Mutex::default(),
            jobs: AtomicUsize::new(0),
            idle: Notify::new(),
            answered: AtomicU64::new(0),
            cut: AtomicBool::new(false),
            cutting: Notify::new(),
            gathered: Notify::new(),
        }
    }

    fn line(&self, copying: bool) -> MutexGuard<'_, Line> {
        let line = if copying { &self.copying } else { &self.quick };
        line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a settlement. What comes back, if anything, must be run.
    pub(crate) fn enqueue(self: &Arc<Self>, job: Job) -> Option<(Vec<Job>, Slot)> {
        self.jobs.fetch_add(1, Ordering::AcqRel);
        let copying = job.how.copies();
        let alone = self.is_alone(&job);
        let mut line = self.line(copying);
        if line.waiting.is_empty() && self.may_start(1, line.under_way) {
            line.under_way += 1;
            let slot = Slot { queue: self.clone(), copying };
            if alone || self.batching.entries == 1 || line.at_once > 0 {
                line.at_once = line.at_once.saturating_sub(1);
                return Some((vec![job], slot));
            }
            line.waiting.push_back(job);
            line.lingering = true;
            return Some((Vec::new(), slot));
        }
        line.waiting.push_back(job);
        if alone && std::mem::replace(&mut line.lingering, false) {
            self.gathered.notify_waiters();
        }
        // A full batch leaves the one that lingers to those that come next.
        self.take(&mut line, copying)
    }

    /// Whether nobody could join this one soon: there is no time for it, or all that the consumer has in hand is here already.
    fn is_alone(&self, job: &Job) -> bool {
        self.batching.linger.is_zero() || job.held.consumer.in_hand() <= self.jobs.load(Ordering::Acquire)
    }

    /// Waits for company, and takes it along. Who ends this early says so in the line.
    async fn linger(&self, copying: bool) -> Vec<Job> {
        let until = Instant::now() + self.batching.linger;
        loop {
            let gathered = self.gathered.notified();
            tokio::pin!(gathered);
            gathered.as_mut().enable();
            if !self.line(copying).lingering || tokio::time::timeout_at(until, gathered).await.is_err() {
                break;
            }
        }
        let mut line = self.line(copying);
        line.lingering = false;
        let n = line.waiting.len().min(self.batching.entries);
        line.learn(n);
        line.waiting.drain(..n).collect()
    }

    fn take(self: &Arc<Self>, line: &mut Line, copying: bool) -> Option<(Vec<Job>, Slot)> {
        let jobs = self.next(line, line.under_way);
        if jobs.is_empty() {
            return None;
        }
        line.under_way += 1;
        Some((jobs, Slot { queue: self.clone(), copying }))
    }

    /// Whether a batch of so many may start beside the others.
    fn may_start(&self, jobs: usize, others: usize) -> bool {
        let most = if jobs < self.batching.entries { self.batching.partial } else { usize::MAX };
        jobs > 0 && others < most.min(self.batching.in_flight)
    }

    /// The next batch, to go beside the others; empty if none may.
    fn next(&self, line: &mut Line, others: usize) -> Vec<Job> {
        let n = line.waiting.len().min(self.batching.entries);
        if self.may_start(n, others) { line.waiting.drain(..n).collect() } else { Vec::new() }
    }

    pub(crate) async fn run(self: Arc<Self>, mut jobs: Vec<Job>, slot: Slot) {
        let copying = slot.copying;
        if jobs.is_empty() {
            jobs = self.linger(copying).await;
        }
        while !jobs.is_empty() {
            let count = jobs.len();
            self.settle(jobs).await;
            self.answered.fetch_add(count as u64, Ordering::Relaxed);
            if self.jobs.fetch_sub(count, Ordering::AcqRel) == count {
                self.idle.notify_waiters();
            }
            tokio::task::coop::consume_budget().await;
            jobs = {
                let mut line = self.line(copying);
                // What is left behind goes with the last of the others.
                let others = line.under_way - 1;
                self.next(&mut line, others)
            };
        }
        drop(slot);
        let more = self.take(&mut self.line(copying), copying);
        if let Some((jobs, slot)) = more {
            tokio::spawn(self.run_boxed(jobs, slot));
        }
    }

    /// Also breaks the type's recursion of a run that starts the next.
    pub(crate) fn run_boxed(self: Arc<Self>, jobs: Vec<Job>, slot: Slot) -> Boxed {
        Box::pin(self.run(jobs, slot))
    }

    async fn settle(self: &Arc<Self>, mut jobs: Vec<Job>) {
        let mut backoff = Backoff::default();
        let deadline = Instant::now() + LIMIT;
        loop {
            let batch: Vec<SettleRequest> = jobs.iter().map(settle_of).collect();
            let settling = async {
                match self.is_cut() {
                    true => None,
                    false => Some(tokio::time::timeout_at(deadline, caught(self.settler.settle(&batch))).await),
                }
            };
            let answer = tokio::select! {
                biased;
                answer = settling => answer,
                () = self.until_cut() => None,
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
            // One wake for all the room they make.
            let consumer = jobs.first().map(|job| job.held.consumer.clone());
            let hush = consumer.as_ref().map(|consumer| consumer.hush());
            let all_well = results.iter().all(Result::is_ok);
            let next = if all_well { deadline } else { Instant::now() + backoff.next() };
            let mut again = Vec::new();
            for (job, result) in jobs.into_iter().zip(results) {
                match result {
                    Err(e) if next < deadline && passing(&e, &job) && !self.is_cut() => again.push(job),
                    // What a worker has handled is acked as long as it is held: given up, it would be handled again, or be dead-lettered.
                    Err(e)
                        if job.how == Settlement::Ack && job.told.is_some() && passing(&e, &job) && !self.is_cut() =>
                    {
                        self.go_on(job);
                    }
                    // Another try of the whole would move it twice.
                    Err(e)
                        if is_kept(&e)
                            && job.moved.is_none()
                            && e.is_transient()
                            && job.held.is_held()
                            && !self.is_cut() =>
                    {
                        let moved = Some(Box::new(job.how));
                        self.go_on(Job { how: Settlement::Ack, moved, ..job });
                    }
                    // Nothing was done, and there is nothing left to try it with.
                    Err(e) if lost_meanwhile(&e, &job) => {
                        let text = "the hold on the message ended before the broker could be told; it comes again";
                        self.finish(job, Err(Error::new(ErrorKind::LockLost, text).with_source(e)));
                    }
                    result => self.finish(job, result),
                }
            }
            drop(hush);
            if again.is_empty() {
                return;
            }
            jobs = again;
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.until_cut() => {}
            }
        }
    }

    fn go_on(self: &Arc<Self>, job: Job) {
        if let Some((jobs, slot)) = self.enqueue(job) {
            tokio::spawn(self.clone().run_boxed(jobs, slot));
        }
    }

    fn finish(self: &Arc<Self>, job: Job, result: Result<()>) {
        let Job { held, how, reply, told, moved } = job;
        let moving = moved.is_some();
        let how = moved.map_or(how, |whole| *whole);
        let consumer = held.consumer.clone();
        let e = match result {
            Ok(()) => {
                consumer.metrics.settled(&how, Ok(()));
                drop(held);
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
            // It comes back only to be refused again.
            Settlement::DeadLetter { .. } => consumer.release_later(held),
            _ => consumer.settle_detached(held, Settlement::Release),
        }
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    async fn until_cut(&self) {
        loop {
            let cutting = self.cutting.notified();
            tokio::pin!(cutting);
            cutting.as_mut().enable();
            if self.is_cut() {
                return;
            }
            cutting.await;
        }
    }

    /// Waits for the settlements under way, until `until` and for as long as some are answered: a busy broker is waited for, one that
    /// is away is not. What has no answer by then is given up.
    pub(crate) async fn end(&self, until: Instant) {
        let mut until = until.max(Instant::now() + LEAST_AT_CLOSE);
        let mut answered = self.answered.load(Ordering::Relaxed);
        while tokio::time::timeout_at(until, self.idle()).await.is_err() {
            let now = self.answered.load(Ordering::Relaxed);
            if now == answered {
                self.cut.store(true, Ordering::Release);
                self.cutting.notify_waiters();
                return self.idle().await;
            }
            (answered, until) = (now, Instant::now() + MOST_AT_CLOSE);
        }
    }

    /// Waits until no settlement is under way.
    async fn idle(&self) {
        loop {
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.jobs.load(Ordering::Acquire) == 0 {
                return;
            }
            idle.await;
        }
    }
}

fn settle_of(job: &Job) -> SettleRequest {
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
fn passing(e: &Error, job: &Job) -> bool {
    changed_nothing(e, job) && job.held.is_held()
}

/// Whether there is nothing left to settle after an error that would have passed.
fn lost_meanwhile(e: &Error, job: &Job) -> bool {
    changed_nothing(e, job) && job.moved.is_none() && !job.held.is_held()
}

fn changed_nothing(e: &Error, job: &Job) -> bool {
    e.retry() == RetrySafety::Safe && job.how != Settlement::GiveBack && !is_kept(e) && e.is_transient()
}
