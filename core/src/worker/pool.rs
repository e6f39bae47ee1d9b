//! The tasks that run handlers: at most as many as the concurrency, started when they are first needed.
//!
//! Deliveries go through one short queue. It never holds more than there are free tasks, so no delivery waits in it for
//! a handler to end.
//!
//! | who | is woken by | does |
//! |---|---|---|
//! | the loop of [`take_deliveries`](HandlerPool::take_deliveries) | `task_freed`: a task is free | fills the queue |
//! | an idle task | `work` | takes a delivery; if more are queued, wakes the next idle task first |
//! | a task whose handler has ended | – | takes the next delivery by itself |

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    Delivery, Error, ErrorKind, Subscription,
    consume::{consumer::Consumer, settle::handling_record::WorkerCounts},
    driver::MessagingSystem,
    telemetry::HandleMetrics,
    worker::{
        WorkerReport,
        context::WorkerState,
        handling::{FailurePolicy, handle},
        runner::RunHandler,
    },
};

/// How long the pool waits for dropped handlers to end. A handler that blocks its thread is dropped only once it
/// returns.
const ABORT_GRACE: Duration = Duration::from_secs(1);

pub(crate) struct HandlerPool {
    pub(crate) info: Arc<WorkerState>,
    pub(crate) system: Arc<MessagingSystem>,
    pub(crate) policy: FailurePolicy,
    pub(crate) handler_timeout: Option<Duration>,
    pub(crate) metrics: HandleMetrics,
    pub(crate) counts: Arc<WorkerCounts>,
    concurrency: usize,
    /// The consumer, where every hand-over counts as an attempt: it fetches only what handlers are free for.
    fetch_limited: OnceLock<Arc<Consumer>>,
    state: Mutex<PoolState>,
    /// Wakes one idle task.
    work: Notify,
    /// Wakes the loop that takes deliveries, which waits for a free task.
    task_freed: Notify,
}

#[derive(Default)]
struct PoolState {
    queue: VecDeque<Delivery>,
    tasks: usize,
    /// The tasks that run a handler.
    busy: usize,
    /// The loop that takes deliveries waits for a free task.
    waits_for_task: bool,
    stopped: bool,
}

impl HandlerPool {
    pub(crate) fn new(
        info: Arc<WorkerState>,
        system: Arc<MessagingSystem>,
        policy: FailurePolicy,
        handler_timeout: Option<Duration>,
        metrics: HandleMetrics,
        concurrency: usize,
    ) -> Self {
        Self {
            info,
            system,
            policy,
            handler_timeout,
            metrics,
            counts: Arc::default(),
            concurrency,
            fetch_limited: OnceLock::new(),
            state: Mutex::default(),
            work: Notify::new(),
            task_freed: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock()
    }

    pub(crate) fn report(&self) -> WorkerReport {
        WorkerReport::of(&self.counts)
    }

    /// From now on the consumer fetches only what handlers are free for.
    pub(crate) fn fetch_for_free_handlers(&self, consumer: Arc<Consumer>) {
        consumer.set_free_handlers(self.concurrency);
        let _ = self.fetch_limited.set(consumer);
    }

    /// Tells the consumer how many handlers are free, where that limits what it fetches.
    fn report_free_handlers(&self, state: &PoolState) {
        if let Some(consumer) = self.fetch_limited.get() {
            consumer.set_free_handlers(self.concurrency.saturating_sub(state.busy + state.queue.len()));
        }
    }

    /// Takes deliveries of the subscription while tasks are free. Ends only with the subscription, and answers why.
    /// Cancel safe.
    pub(crate) async fn take_deliveries<R: RunHandler>(
        self: &Arc<Self>,
        subscription: &mut Subscription,
        runner: &mut R,
        tasks: &mut JoinSet<()>,
    ) -> Error {
        loop {
            // With a source that always has more, this loop would never yield, and the shutdown would not be seen.
            tokio::task::coop::consume_budget().await;
            let mut free = self.wait_for_free_tasks().await;
            while free > 0 {
                // Deliveries that are there already are queued first. Tasks start once there are no more, or no task is
                // free.
                let next = {
                    let mut next = pin!(subscription.next());
                    poll_fn(|cx| {
                        let polled = next.as_mut().poll(cx);
                        if polled.is_pending() {
                            self.start_tasks(runner, tasks);
                        }
                        polled
                    })
                    .await
                };
                match next {
                    Some(Ok(delivery)) => {
                        let mut state = self.state();
                        state.queue.push_back(delivery);
                        self.report_free_handlers(&state);
                    }
                    Some(Err(error)) => return error,
                    None => return Error::new(ErrorKind::Closed, "the subscription ended"),
                }
                free -= 1;
            }
            self.start_tasks(runner, tasks);
        }
    }

    /// Waits until a task is free, and answers how many are.
    async fn wait_for_free_tasks(&self) -> usize {
        loop {
            {
                let mut state = self.state();
                let free = self.concurrency.saturating_sub(state.busy + state.queue.len());
                state.waits_for_task = free == 0;
                if free > 0 {
                    return free;
                }
            }
            self.task_freed.notified().await;
        }
    }

    /// Wakes an idle task for the queue, and starts tasks for the deliveries that no idle task will take.
    pub(crate) fn start_tasks<R: RunHandler>(self: &Arc<Self>, runner: &mut R, tasks: &mut JoinSet<()>) {
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
            tasks.spawn(PoolTask { pool: self.clone(), busy: false }.run(runner.clone_for_task()));
        }
    }

    /// No more deliveries come: the tasks end once the queue is empty. Handlers that still run may go on until
    /// `deadline`.
    pub(crate) fn stop(&self, deadline: Instant) {
        self.info.stopping.send_replace(Some(deadline));
        self.state().stopped = true;
        self.work.notify_one();
    }

    /// Waits for the tasks until the deadline, then drops the handlers that still run.
    pub(crate) async fn drain(&self, tasks: &mut JoinSet<()>, deadline: Instant) {
        if timeout_at(deadline, join_all(tasks)).await.is_ok() {
            return;
        }
        let unhandled = {
            let mut state = self.state();
            std::mem::take(&mut state.queue)
        };
        drop(unhandled);
        tasks.abort_all();
        if timeout(ABORT_GRACE, join_all(tasks)).await.is_err() {
            let text = "handlers block their threads past the drain timeout; left behind";
            tracing::warn!(target: "polybus", source = %self.info.source, handlers = tasks.len(), "{text}");
            tasks.detach_all();
        }
    }
}

/// Lets the other tasks of this thread run first.
///
/// tokio keeps the task that was woken last in a slot from which no other thread takes it, until the current task
/// waits. So a handler that blocks its thread would hold up the loop that takes deliveries and the task that was woken
/// next. Yielding also keeps handlers that never wait from occupying the thread. `yield_now` polls for I/O first, which
/// costs too much per message.
async fn yield_to_other_tasks() {
    let mut yielded = false;
    poll_fn(|cx| match std::mem::replace(&mut yielded, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

async fn join_all(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// One of the pool's tasks. Dropping it gives its place back.
struct PoolTask {
    pool: Arc<HandlerPool>,
    busy: bool,
}

impl PoolTask {
    async fn run<R: RunHandler>(mut self, mut runner: R) {
        while let Some(delivery) = self.next().await {
            yield_to_other_tasks().await;
            handle(&self.pool, &mut runner, delivery).await;
        }
    }

    /// Waits for the next delivery. `None` once the pool has stopped.
    async fn next(&mut self) -> Option<Delivery> {
        loop {
            if let Poll::Ready(next) = self.take_next() {
                return next;
            }
            self.pool.work.notified().await;
        }
    }

    /// Takes a delivery of the queue. `None` once the pool has stopped and the queue is empty.
    fn take_next(&mut self) -> Poll<Option<Delivery>> {
        let mut state = self.pool.state();
        if std::mem::take(&mut self.busy) {
            state.busy -= 1;
        }
        let next = state.queue.pop_front();
        if next.is_some() {
            state.busy += 1;
            self.busy = true;
        }
        self.pool.report_free_handlers(&state);
        let more = !state.queue.is_empty();
        let stopped = state.stopped;
        // The loop that takes deliveries is woken once the queue is empty, so that it fills the queue in one go.
        let task_freed = !more && state.busy < self.pool.concurrency && std::mem::take(&mut state.waits_for_task);
        drop(state);
        // Each woken task wakes the next one: while deliveries are queued, and, once the pool has stopped, until all
        // have ended.
        if more || (stopped && next.is_none()) {
            self.pool.work.notify_one();
        }
        if task_freed {
            self.pool.task_freed.notify_one();
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
            self.pool.counts.dropped();
        }
        self.pool.report_free_handlers(&state);
        let task_freed = std::mem::take(&mut state.waits_for_task);
        drop(state);
        if task_freed {
            self.pool.task_freed.notify_one();
        }
    }
}
