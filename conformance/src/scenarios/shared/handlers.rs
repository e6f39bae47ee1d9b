//! What handlers saw, and counters that others wait for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use polybus_core::Envelope;
use tokio::{sync::Notify, time::Instant};

use crate::{Cx, Outcome, ensure};

/// A count that others can wait for. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct GoalCounter(Arc<(AtomicUsize, Notify)>);

impl GoalCounter {
    pub(crate) fn add(&self) -> usize {
        let n = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.notify_waiters();
        n
    }

    pub(crate) fn get(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    /// Waits until the count reaches `goal`. The future owns the count, so that it can be the shutdown of a worker.
    pub(crate) fn reaches(&self, goal: usize) -> impl Future<Output = ()> + Send + 'static {
        let this = self.clone();
        async move {
            loop {
                let changed = this.0.1.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if this.get() >= goal {
                    return;
                }
                changed.await;
            }
        }
    }
}

/// One run of a handler: the message, its attempt, and when it began.
#[derive(Clone, Debug)]
pub(crate) struct HandlerRun {
    pub(crate) message: Envelope,
    pub(crate) attempt: u32,
    pub(crate) at: Instant,
}

/// The runs of handlers, in order, and their count. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct HandlerLog(Arc<Mutex<Vec<HandlerRun>>>, pub(crate) GoalCounter);

impl HandlerLog {
    /// Adds a run, and returns how many there were of this message.
    pub(crate) fn add(&self, message: &Envelope, attempt: u32) -> usize {
        let mut runs = self.0.lock();
        runs.push(HandlerRun { message: message.clone(), attempt, at: Instant::now() });
        let n = runs.iter().filter(|r| r.message.id == message.id).count();
        drop(runs);
        self.1.add();
        n
    }

    pub(crate) fn all(&self) -> Vec<HandlerRun> {
        self.0.lock().clone()
    }
}

/// Waits with patience until `check` is true.
pub(crate) async fn wait_until(cx: &Cx, what: &str, check: impl Fn() -> bool) -> Outcome {
    let deadline = cx.deadline();
    while !check() {
        ensure!(Instant::now() < deadline, "not within {:?}: {what}", cx.patience());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
