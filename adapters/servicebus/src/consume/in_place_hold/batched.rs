//! Holding messages in place over AMQP: one task renews and abandons all of a consumer, many locks in one request.

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};

use polybus_core::{Error, ErrorKind, Result, driver::kit::lease::LockLease};
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use crate::{
    amqp::{
        consumer::{AmqpConsumer, AmqpDelivery},
        locks::MessageLock,
        management::SettleStatus,
        receive_task::{Disposition, ReceiveTask},
    },
    error,
};

/// The messages that one consumer holds in place.
#[derive(Default)]
pub(crate) struct InPlaceHolds {
    state: Mutex<HoldState>,
    /// A message was added that may be due before all others.
    sooner: Notify,
    freed: Notify,
}

#[derive(Default)]
struct HoldState {
    held: Vec<InPlaceHold>,
    /// Whether the task runs. It ends when nothing is held.
    running: bool,
}

struct InPlaceHold {
    lock: MessageLock,
    task: Option<ReceiveTask>,
    until: Instant,
    lease: LockLease,
}

impl InPlaceHolds {
    fn state(&self) -> MutexGuard<'_, HoldState> {
        self.state.lock()
    }

    /// How many places of the prefetch are taken.
    pub(crate) fn len(&self) -> usize {
        self.state().held.len()
    }

    /// Resolves when a place becomes free after this was enabled.
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

/// Holds a message for `delay`. The settler abandons what is still held when it closes.
pub(crate) fn start(consumer: Arc<AmqpConsumer>, held: &AmqpDelivery, delay: Duration) -> Result<()> {
    let Some(from) = consumer.unsettled.hold_in_place(&held.lock.token) else { return Err(error::not_held()) };
    let lease = LockLease::new(consumer.lock_duration(), from);
    let hold = InPlaceHold { lock: held.lock, task: held.task.clone(), until: Instant::now() + delay, lease };
    let mut state = consumer.holds.state();
    state.held.push(hold);
    let start = !std::mem::replace(&mut state.running, true);
    drop(state);
    if start {
        tokio::spawn(run(consumer));
    } else {
        consumer.holds.sooner.notify_one();
    }
    Ok(())
}

async fn run(consumer: Arc<AmqpConsumer>) {
    let holds = &consumer.holds;
    loop {
        // The settler's close removes deliveries and abandons them itself.
        let gone = holds.take(|hold| !consumer.unsettled.contains(&hold.lock.token));
        if !gone.is_empty() {
            holds.freed.notify_waiters();
        }
        // Under one lock: `start` either adds to `held` before this looks, or sees that the task does not run.
        let next = {
            let mut state = holds.state();
            let next = state.held.iter().map(|hold| hold.until.min(hold.lease.due())).min();
            state.running = next.is_some();
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
            // In a task beside the renewals: a request that hangs must not cost the others their locks.
            let consumer = consumer.clone();
            tokio::spawn(async move {
                abandon(&consumer, over).await;
                consumer.holds.freed.notify_waiters();
            });
        }
        renew(&consumer).await;
    }
}

async fn abandon(consumer: &Arc<AmqpConsumer>, over: Vec<InPlaceHold>) {
    let locks: Vec<MessageLock> = over.iter().map(|hold| hold.lock).collect();
    let abandoned = consumer.settle_locks(&locks, &SettleStatus::Abandoned).await;
    for (hold, abandoned) in over.into_iter().zip(abandoned) {
        let info = consumer.remove_unsettled([hold.lock.token]);
        match (abandoned, hold.task) {
            (Ok(()), Some(task)) => drop(task.settle(info, Disposition::Released)),
            (Ok(()), None) => {}
            (Err(e), _) => {
                tracing::debug!(source = %consumer.source, error = %e, "a message that was held comes back when its lock ends");
            }
        }
    }
}

/// Once a renewal is due, renews it together with those that are due soon: fewer requests do.
async fn renew(consumer: &Arc<AmqpConsumer>) {
    let soon = Instant::now() + consumer.lock_duration() / 8;
    let due: Vec<MessageLock> = {
        let state = consumer.holds.state();
        if !state.held.iter().any(|hold| hold.lease.due() <= Instant::now()) {
            return;
        }
        state.held.iter().filter(|hold| hold.lease.due() <= soon).map(|hold| hold.lock).collect()
    };
    let renewed = consumer.renew_locks(&due).await;
    for (lock, renewed) in due.into_iter().zip(renewed) {
        match renewed {
            Ok(from) => update(consumer, lock, |lease| lease.renewed(from)),
            Err(e) if e.kind() == ErrorKind::LockLost => forget(consumer, lock, &e),
            Err(e) => {
                let mut over = false;
                update(consumer, lock, |lease| {
                    over = lease.is_over();
                    lease.failed();
                });
                if over {
                    forget(consumer, lock, &e);
                }
            }
        }
    }
}

fn update(consumer: &AmqpConsumer, lock: MessageLock, change: impl FnOnce(&mut LockLease)) {
    if let Some(hold) = consumer.holds.state().held.iter_mut().find(|hold| hold.lock == lock) {
        change(&mut hold.lease);
    }
}

fn forget(consumer: &AmqpConsumer, lock: MessageLock, e: &Error) {
    tracing::warn!(source = %consumer.source, error = %e, "a message that was held comes back early");
    consumer.holds.take(|hold| hold.lock == lock);
    consumer.remove_unsettled([lock.token]);
    consumer.holds.freed.notify_waiters();
}
