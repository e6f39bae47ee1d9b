//! Messages without a session that are kept under their locks until they may come again. They keep their place in the window, and one task renews
//! them all.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use polybus_core::{Error, ErrorKind, Result, driver::kit::lease::LockLease};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::amqp::{
    consumer::{Feed, Held},
    locks::{Lock, not_held},
    management::Status,
    receive_task::{Fate, Pump},
};

/// What one consumer holds.
#[derive(Default)]
pub(crate) struct Holds {
    state: Mutex<State>,
    /// Something is held that may be due before what was.
    sooner: Notify,
    freed: Notify,
}

#[derive(Default)]
struct State {
    held: Vec<InPlaceHold>,
    working: bool,
}

struct InPlaceHold {
    lock: Lock,
    pump: Option<Pump>,
    until: Instant,
    lease: LockLease,
}

impl Holds {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many places of the window are taken.
    pub(crate) fn len(&self) -> usize {
        self.state().held.len()
    }

    /// Done when a place has become free, after this was enabled.
    pub(crate) fn freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.freed.notified()
    }

    fn take(&self, which: impl Fn(&InPlaceHold) -> bool) -> Vec<InPlaceHold> {
        let mut state = self.state();
        let (taken, held) = std::mem::take(&mut state.held).into_iter().partition(which);
        state.held = held;
        taken
    }
}

/// Renews the lock until `delay` has passed, then abandons. When the settler closes it abandons what is held as well.
pub(crate) fn start(feed: Arc<Feed>, held: &Held, delay: Duration) -> Result<()> {
    let Some(from) = feed.keep_back(&held.lock.token) else { return Err(not_held()) };
    let lease = LockLease::new(feed.lock(), from);
    let hold = InPlaceHold { lock: held.lock, pump: held.pump.clone(), until: Instant::now() + delay, lease };
    let mut state = feed.holds.state();
    state.held.push(hold);
    let start = !std::mem::replace(&mut state.working, true);
    drop(state);
    if start {
        tokio::spawn(work(feed));
    } else {
        feed.holds.sooner.notify_one();
    }
    Ok(())
}

async fn work(feed: Arc<Feed>) {
    let holds = &feed.holds;
    loop {
        // What was settled otherwise, as at the close, is none of this any more.
        let gone = holds.take(|hold| !feed.is_open(&hold.lock.token));
        if !gone.is_empty() {
            holds.freed.notify_waiters();
        }
        let next = {
            let mut state = holds.state();
            let next = state.held.iter().map(|hold| hold.until.min(hold.lease.due())).min();
            state.working = next.is_some();
            next
        };
        let Some(next) = next else { return };
        tokio::select! {
            () = sleep_until(next) => {}
            () = holds.sooner.notified() => continue,
        }
        let now = Instant::now();
        let over = holds.take(|hold| hold.until <= now);
        if !over.is_empty() {
            // Beside the renewals: a call that hangs must not cost the others their locks.
            let feed = feed.clone();
            tokio::spawn(async move {
                abandon(&feed, over).await;
                feed.holds.freed.notify_waiters();
            });
        }
        renew(&feed).await;
    }
}

async fn abandon(feed: &Arc<Feed>, over: Vec<InPlaceHold>) {
    let locks: Vec<Lock> = over.iter().map(|hold| hold.lock).collect();
    let abandoned = feed.settle_locks(&locks, &Status::Abandoned).await;
    for (hold, abandoned) in over.into_iter().zip(abandoned) {
        let info = feed.let_go([hold.lock.token]);
        match (abandoned, hold.pump) {
            (Ok(()), Some(pump)) => drop(pump.forget(info, Fate::Released)),
            (Ok(()), None) => {}
            (Err(e), _) => {
                tracing::debug!(source = %feed.source, error = %e, "a message that was held comes back when its lock ends");
            }
        }
    }
}

/// Renews what is due, and what would be soon.
async fn renew(feed: &Arc<Feed>) {
    let soon = Instant::now() + feed.lock() / 8;
    let due: Vec<Lock> = {
        let state = feed.holds.state();
        if !state.held.iter().any(|hold| hold.lease.due() <= Instant::now()) {
            return;
        }
        state.held.iter().filter(|hold| hold.lease.due() <= soon).map(|hold| hold.lock).collect()
    };
    let renewed = feed.renew_locks(&due).await;
    for (lock, renewed) in due.into_iter().zip(renewed) {
        match renewed {
            Ok(from) => each(feed, lock, |lease| lease.renewed(from)),
            Err(e) if e.kind() == ErrorKind::LockLost => lost(feed, lock, &e),
            Err(e) => {
                let mut over = false;
                each(feed, lock, |lease| {
                    over = lease.is_over();
                    lease.failed();
                });
                if over {
                    lost(feed, lock, &e);
                }
            }
        }
    }
}

fn each(feed: &Feed, lock: Lock, change: impl FnOnce(&mut LockLease)) {
    if let Some(hold) = feed.holds.state().held.iter_mut().find(|hold| hold.lock == lock) {
        change(&mut hold.lease);
    }
}

fn lost(feed: &Feed, lock: Lock, e: &Error) {
    tracing::warn!(source = %feed.source, error = %e, "a message that was held comes back early");
    feed.holds.take(|hold| hold.lock == lock);
    feed.let_go([lock.token]);
    feed.holds.freed.notify_waiters();
}
