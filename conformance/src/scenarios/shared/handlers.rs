//! What the scenarios of workers share.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use polybus_core::Envelope;
use tokio::{sync::Notify, time::Instant};

use crate::{Cx, Outcome, ensure};

/// Counts to a goal that others wait for. Clones share the count.
#[derive(Clone, Default)]
pub(super) struct Tally(Arc<(AtomicUsize, Notify)>);

impl Tally {
    pub(super) fn add(&self) -> usize {
        let n = self.0.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.1.notify_waiters();
        n
    }

    pub(super) fn get(&self) -> usize {
        self.0.0.load(Ordering::SeqCst)
    }

    /// Owned, so that it can be a worker's shutdown.
    pub(super) fn reaches(&self, goal: usize) -> impl Future<Output = ()> + Send + 'static {
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

/// One run of a handler: the message, its attempt, when it began.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) message: Envelope,
    pub(super) attempt: u32,
    pub(super) at: Instant,
}

/// What handlers saw, in order. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<Run>>>, pub(super) Tally);

impl Log {
    /// Notes a run, and tells how many there were of this message.
    pub(super) fn add(&self, message: &Envelope, attempt: u32) -> usize {
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        runs.push(Run { message: message.clone(), attempt, at: Instant::now() });
        let n = runs.iter().filter(|r| r.message.id == message.id).count();
        drop(runs);
        self.1.add();
        n
    }

    pub(super) fn all(&self) -> Vec<Run> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Waits until this holds, to the patience's end.
pub(super) async fn until(cx: &Cx, what: &str, check: impl Fn() -> bool) -> Outcome {
    let deadline = cx.deadline();
    while !check() {
        ensure!(Instant::now() < deadline, "not within {:?}: {what}", cx.patience());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
