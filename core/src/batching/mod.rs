//! Group commit, for publishes and settlements alike: what queues up while a batch is under way goes as the next batch.
//!
//! 1. A caller puts its work into a [`BatchBacklog`], under the lock of the [`BatchQueue`].
//! 2. It gets back at most one [`StartedBatch`], and runs that on its own task as far as it gets
//!    ([`poll_then_spawn`](crate::runtime::poll_then_spawn)).
//! 3. A run that has committed its batch takes the next one from the backlog, until the backlog is empty.
//!
//! So work never waits for a task of its own, and batches grow with the load. Users of it are `publish/batcher.rs` and
//! `consume/settle/batcher.rs`; the latter may wait for more settlements first, where the driver asks for that
//! ([`Batching::linger`](crate::driver::Batching::linger)).

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::runtime::{poll_then_spawn::BoxedRun, wait_until::wait_until};

/// The work that waits to be sent to the driver, and the rule for which of it goes into the next batch.
///
/// When a batch starts is the rule of this module: at once, if `next` gives one beside those under way, or else when a
/// batch under way has ended.
pub(crate) trait BatchBacklog: Send + 'static {
    type Batch: Send + 'static;

    /// Takes the next batch, which goes beside `others` that are under way. `None` if no work waits, or if no further
    /// batch may start.
    fn next(&mut self, others: usize) -> Option<Self::Batch>;
}

/// An object that commits the batches of one backlog.
pub(crate) trait GroupCommit: Sized + Send + Sync + 'static {
    type Backlog: BatchBacklog;

    fn queue(&self) -> &BatchQueue<Self::Backlog>;

    /// Where batches go on whose queue was left by a run that ended early, with a runtime that is not this one.
    fn runtime(&self) -> &tokio::runtime::Handle;

    /// Carries out one batch and answers each of its items, retries included.
    fn commit(self: Arc<Self>, batch: BatchOf<Self>) -> impl Future<Output = ()> + Send;

    /// Counts a batch as under way. The caller holds the lock of `state`, so that no other batch is counted in between.
    fn start(self: &Arc<Self>, state: &mut QueueState<Self::Backlog>, batch: BatchOf<Self>) -> StartedBatch<Self> {
        state.under_way += 1;
        StartedBatch { batch, slot: BatchSlot(self.clone()) }
    }

    /// Starts the next batch of the backlog, if one may start.
    fn start_next(self: &Arc<Self>, state: &mut QueueState<Self::Backlog>) -> Option<StartedBatch<Self>> {
        let batch = state.backlog.next(state.under_way)?;
        Some(self.start(state, batch))
    }

    /// As [`start_next`](Self::start_next), for a caller that does not hold the lock.
    fn start_another(self: &Arc<Self>) -> Option<StartedBatch<Self>> {
        self.start_next(&mut self.queue().lock())
    }
}

type BatchOf<G> = <<G as GroupCommit>::Backlog as BatchBacklog>::Batch;

/// A backlog, and how many of its batches are under way.
pub(crate) struct BatchQueue<B> {
    state: Mutex<QueueState<B>>,
    /// Notified whenever a run has ended.
    ended: Notify,
}

pub(crate) struct QueueState<B> {
    pub(crate) backlog: B,
    pub(crate) under_way: usize,
    /// A slot that was given back starts the next batches.
    restarting: bool,
}

impl<B: BatchBacklog> BatchQueue<B> {
    pub(crate) fn new(backlog: B) -> Self {
        Self { state: Mutex::new(QueueState { backlog, under_way: 0, restarting: false }), ended: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, QueueState<B>> {
        self.state.lock()
    }

    /// Waits until `is_idle` holds. It is asked again whenever a run has ended.
    pub(crate) async fn until_idle(&self, is_idle: impl Fn(&QueueState<B>) -> bool) {
        wait_until(&self.ended, || is_idle(&self.lock())).await;
    }
}

/// The place of one batch among those under way. Dropping it gives the place back, wherever its run was.
struct BatchSlot<G: GroupCommit>(Arc<G>);

impl<G: GroupCommit> Drop for BatchSlot<G> {
    fn drop(&mut self) {
        let mut state = self.0.queue().lock();
        state.under_way -= 1;
        self.0.queue().ended.notify_waiters();
        // What queued up between the last look of the run and this, or behind a run that was dropped. A runtime that
        // has ended drops what it is given at once, so the loop is the outermost drop's: inner ones must not nest.
        if std::mem::replace(&mut state.restarting, true) {
            return;
        }
        while let Some(another) = self.0.start_next(&mut state) {
            drop(state);
            self.0.runtime().spawn(another.run());
            state = self.0.queue().lock();
        }
        state.restarting = false;
    }
}

/// A batch that counts as under way and must be run.
#[must_use = "nothing is sent until it is run"]
pub(crate) struct StartedBatch<G: GroupCommit> {
    batch: BatchOf<G>,
    slot: BatchSlot<G>,
}

impl<G: GroupCommit> StartedBatch<G> {
    /// Commits the batch, and then the batches that have queued up meanwhile. It is boxed because a run may start
    /// another run of the same type.
    pub(crate) fn run(self) -> BoxedRun {
        Box::pin(async move {
            let Self { mut batch, slot } = self;
            let owner = slot.0.clone();
            loop {
                owner.clone().commit(batch).await;
                // With a driver that answers at once, this loop would never yield to other tasks.
                tokio::task::coop::consume_budget().await;
                let next = {
                    let mut state = owner.queue().lock();
                    // This run keeps its place, so it does not count among the others.
                    let others = state.under_way - 1;
                    state.backlog.next(others)
                };
                match next {
                    Some(next) => batch = next,
                    None => break,
                }
            }
            // The order matters. Work that queues up between the last look and this drop finds all places taken, so its
            // caller starts no batch. The look after the drop finds that work.
            drop(slot);
        })
    }
}
