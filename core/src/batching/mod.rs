//! Group commit, for publishes and settlements alike: what queued up while batches were under way goes as the next one.
//!
//! Callers put their work into a [`Backlog`] and get back at most one [`StartedBatch`], which they run on their own task as
//! far as it gets. A batch that has ended takes the next one from the backlog, so work never waits for a timer or a task of
//! its own. Dropping a started batch gives its place back, whatever it was doing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::runtime::poll_then_spawn::BoxedRun;

/// What waits to be sent to the driver, and the rule by which it forms batches.
pub(crate) trait Backlog: Send + 'static {
    type Batch: Send + 'static;

    /// Takes the next batch, which goes beside `others` that are under way. `None` if nothing waits, or no more may start.
    fn next(&mut self, others: usize) -> Option<Self::Batch>;
}

/// Something that commits the batches of one backlog.
pub(crate) trait GroupCommit: Sized + Send + Sync + 'static {
    type Backlog: Backlog;

    fn queue(&self) -> &BatchQueue<Self::Backlog>;

    /// Sees one batch through, retries included.
    fn commit(self: Arc<Self>, batch: Batch<Self>) -> impl Future<Output = ()> + Send;

    /// Starts a batch. The caller holds the lock of `state`, so that no other batch is counted in between.
    fn start(self: &Arc<Self>, state: &mut QueueState<Self::Backlog>, batch: Batch<Self>) -> StartedBatch<Self> {
        state.under_way += 1;
        StartedBatch { batch, slot: BatchSlot(self.clone()) }
    }

    /// Starts the next batch of the backlog, if one may start.
    fn start_next(self: &Arc<Self>, state: &mut QueueState<Self::Backlog>) -> Option<StartedBatch<Self>> {
        let batch = state.backlog.next(state.under_way)?;
        Some(self.start(state, batch))
    }

    /// Starts another batch of what waits, if one may start.
    fn more(self: &Arc<Self>) -> Option<StartedBatch<Self>> {
        self.start_next(&mut self.queue().lock())
    }
}

type Batch<G> = <<G as GroupCommit>::Backlog as Backlog>::Batch;

/// A backlog, and how many of its batches are under way.
pub(crate) struct BatchQueue<B> {
    state: Mutex<QueueState<B>>,
    /// Notified whenever a batch has ended.
    ended: Notify,
}

pub(crate) struct QueueState<B> {
    pub(crate) backlog: B,
    pub(crate) under_way: usize,
}

impl<B: Backlog> BatchQueue<B> {
    pub(crate) fn new(backlog: B) -> Self {
        Self { state: Mutex::new(QueueState { backlog, under_way: 0 }), ended: Notify::new() }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, QueueState<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `is_idle` holds. It is asked again whenever a batch has ended.
    pub(crate) async fn until_idle(&self, is_idle: impl Fn(&QueueState<B>) -> bool) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Before the look, so that a batch that ends right after it is not missed.
            ended.as_mut().enable();
            if is_idle(&self.lock()) {
                return;
            }
            ended.await;
        }
    }
}

/// The place of one batch among those under way.
struct BatchSlot<G: GroupCommit>(Arc<G>);

impl<G: GroupCommit> Drop for BatchSlot<G> {
    fn drop(&mut self) {
        self.0.queue().lock().under_way -= 1;
        self.0.queue().ended.notify_waiters();
    }
}

/// A batch that counts as under way and must be run.
#[must_use = "nothing is sent until it is run"]
pub(crate) struct StartedBatch<G: GroupCommit> {
    batch: Batch<G>,
    slot: BatchSlot<G>,
}

impl<G: GroupCommit> StartedBatch<G> {
    /// Commits the batch, and then whatever has queued up meanwhile. Boxed, since a run may start another one of its type.
    pub(crate) fn run(self) -> BoxedRun {
        Box::pin(async move {
            let Self { mut batch, slot } = self;
            let owner = slot.0.clone();
            loop {
                owner.clone().commit(batch).await;
                // A driver that answers at once would never yield.
                tokio::task::coop::consume_budget().await;
                let next = {
                    let mut state = owner.queue().lock();
                    let others = state.under_way - 1;
                    state.backlog.next(others)
                };
                match next {
                    Some(next) => batch = next,
                    None => break,
                }
            }
            drop(slot);
            // Work that queued up after the last look found every place taken, and nobody else starts it.
            if let Some(another) = owner.more() {
                tokio::spawn(another.run());
            }
        })
    }
}
