//! The tasks that run handlers: at most as many as the concurrency, started when they are first needed.
//!
//! Deliveries go through one short queue that never holds more than there are free tasks, so that nothing waits in it for
//! a handler to end. A task that finishes takes the next one by itself; one that is woken and sees more wakes the next in
//! turn, and lets it run before its own handler.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    consume::settle::handling_record::HandlingCounts,
    consume::{Delivery, Subscription, consumer::Consumer},
    driver::MessagingSystem,
    error::{Error, ErrorKind},
    telemetry::HandleMetrics,
    worker::{
        WorkerReport,
        context::WorkerInfo,
        handling::{FailurePolicy, handle},
        runner::RunHandler,
    },
};

/// How long dropped handlers may take to notice: one that blocks its thread cannot be dropped sooner than it returns.
const GRACE: Duration = Duration::from_secs(1);

pub(crate) struct HandlerPool {
    pub(crate) about: Arc<WorkerInfo>,
    pub(crate) system: Arc<MessagingSystem>,
    pub(crate) policy: FailurePolicy,
    pub(crate) handler_timeout: Option<Duration>,
    pub(crate) metrics: HandleMetrics,
    pub(crate) tally: Arc<HandlingCounts>,
    concurrency: usize,
    /// Where every hand-over counts as an attempt.
    demand: OnceLock<Arc<Consumer>>,
    state: Mutex<PoolState>,
    /// Wakes one idle task.
    work: Notify,
    /// Wakes the feeder, which waits for a free task.
    room: Notify,
}

#[derive(Default)]
struct PoolState {
    queue: VecDeque<Delivery>,
    tasks: usize,
    busy: usize,
    feeder_waits: bool,
    stopped: bool,
}

impl HandlerPool {
    pub(crate) fn new(
        about: Arc<WorkerInfo>,
        system: Arc<MessagingSystem>,
        policy: FailurePolicy,
        handler_timeout: Option<Duration>,
        metrics: HandleMetrics,
        concurrency: usize,
    ) -> Self {
        Self {
            about,
            system,
            policy,
            handler_timeout,
            metrics,
            tally: Arc::default(),
            concurrency,
            demand: OnceLock::new(),
            state: Mutex::default(),
            work: Notify::new(),
            room: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self) -> WorkerReport {
        WorkerReport::of(&self.tally)
    }

    /// From now on the consumer fetches only what handlers are free for.
    pub(crate) fn fetch_for_free_handlers(&self, consumer: Arc<Consumer>) {
        consumer.set_free_handlers(self.concurrency);
        let _ = self.demand.set(consumer);
    }

    fn tell_free(&self, state: &PoolState) {
        if let Some(consumer) = self.demand.get() {
            consumer.set_free_handlers(self.concurrency.saturating_sub(state.busy + state.queue.len()));
        }
    }

    /// Takes deliveries as long as tasks are free. Ends only with the subscription, and answers why. Cancel safe.
    pub(crate) async fn feed<R: RunHandler>(
        self: &Arc<Self>,
        subscription: &mut Subscription,
        runner: &mut R,
        tasks: &mut JoinSet<()>,
    ) -> Error {
        loop {
            // A source that always has more would keep the shutdown from being seen.
            tokio::task::coop::consume_budget().await;
            let mut free = self.free().await;
            while free > 0 {
                // What is there already goes to the tasks in one go, when there is no more or no task is free.
                let next = {
                    let mut next = pin!(subscription.next());
                    poll_fn(|cx| {
                        let polled = next.as_mut().poll(cx);
                        if polled.is_pending() {
                            self.start(runner, tasks);
                        }
                        polled
                    })
                    .await
                };
                match next {
                    Some(Ok(delivery)) => {
                        let mut state = self.state();
                        state.queue.push_back(delivery);
                        self.tell_free(&state);
                    }
                    Some(Err(error)) => return error,
                    None => return Error::new(ErrorKind::Closed, "the subscription ended"),
                }
                free -= 1;
            }
            self.start(runner, tasks);
        }
    }

    /// Waits until there is a free task, and tells how many.
    async fn free(&self) -> usize {
        loop {
            {
                let mut state = self.state();
                let free = self.concurrency.saturating_sub(state.busy + state.queue.len());
                state.feeder_waits = free == 0;
                if free > 0 {
                    return free;
                }
            }
            self.room.notified().await;
        }
    }

    /// Makes sure that somebody takes what is queued.
    pub(crate) fn start<R: RunHandler>(self: &Arc<Self>, runner: &mut R, tasks: &mut JoinSet<()>) {
        let new = {
            let mut state = self.state();
            if state.queue.is_empty() {
                return;
            }
            let idle = state.tasks - state.busy;
            let new = state.queue.len().saturating_sub(idle).min(self.concurrency - state.tasks);
            state.tasks += new;
            new
        };
        self.work.notify_one();
        for _ in 0..new {
            while tasks.try_join_next().is_some() {}
            tasks.spawn(PoolTask { pool: self.clone(), busy: false }.run(runner.fork()));
        }
    }

    /// No more deliveries come: tasks end once the queue is empty.
    pub(crate) fn stop(&self, deadline: Instant) {
        self.about.stopping.send_replace(Some(deadline));
        self.state().stopped = true;
        self.work.notify_one();
    }

    /// Waits for the tasks up to the deadline, then drops what still runs.
    pub(crate) async fn drain(&self, tasks: &mut JoinSet<()>, deadline: Instant) {
        if timeout_at(deadline, all(tasks)).await.is_ok() {
            return;
        }
        let left = {
            let mut state = self.state();
            std::mem::take(&mut state.queue)
        };
        drop(left);
        tasks.abort_all();
        if timeout(GRACE, all(tasks)).await.is_err() {
            let text = "handlers block their threads past the drain timeout; left behind";
            tracing::warn!(target: "polybus", source = %self.about.source, handlers = tasks.len(), "{text}");
            tasks.detach_all();
        }
    }
}

/// Lets the other tasks of this thread run first. What a task wakes waits in a slot that no other thread takes from, until
/// that task waits: a handler that blocks its thread would hold up the feeder and its neighbours. It also keeps handlers
/// that never wait from keeping the thread. (`yield_now` looks for I/O first, which is too dear for each message.)
async fn step_back() {
    let mut stepped = false;
    poll_fn(|cx| match std::mem::replace(&mut stepped, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

async fn all(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// One of the pool's tasks; dropped, it gives its place back.
struct PoolTask {
    pool: Arc<HandlerPool>,
    busy: bool,
}

impl PoolTask {
    async fn run<R: RunHandler>(mut self, mut runner: R) {
        while let Some(delivery) = self.next().await {
            step_back().await;
            handle(&self.pool, &mut runner, delivery).await;
        }
    }

    /// Waits for the next delivery; `None` once the pool has stopped.
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            if let Poll::Ready(next) = self.take() {
                return next;
            }
            self.pool.work.notified().await;
        }
    }

    fn take(&mut self) -> Poll<Option<Delivery>> {
        let mut state = self.pool.state();
        if std::mem::take(&mut self.busy) {
            state.busy -= 1;
        }
        let next = state.queue.pop_front();
        if next.is_some() {
            state.busy += 1;
            self.busy = true;
        }
        self.pool.tell_free(&state);
        let more = !state.queue.is_empty();
        let stopped = state.stopped;
        // The feeder fills up in one go once all it brought has been taken.
        let room = !more && state.busy < self.pool.concurrency && std::mem::take(&mut state.feeder_waits);
        drop(state);
        if more || (stopped && next.is_none()) {
            self.pool.work.notify_one();
        }
        if room {
            self.pool.room.notify_one();
        }
        match next {
            None if !stopped => Poll::Pending,
            next => Poll::Ready(next),
        }
    }
}

impl Drop for PoolTask {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.tasks -= 1;
        if self.busy {
            state.busy -= 1;
            self.pool.tally.dropped();
        }
        self.pool.tell_free(&state);
        let room = std::mem::take(&mut state.feeder_waits);
        drop(state);
        if room {
            self.pool.room.notify_one();
        }
    }
}
