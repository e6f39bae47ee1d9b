//! The locks that one consumer holds, and the task that renews each at half of its time, from receipt until it is
//! settled.
//!
//! The task runs while locks are held. It starts with the first lock and ends when none is left; [`LockTable::add`]
//! says when to start another one. `driver/kit/renewal.rs` is the task itself.
//!
//! # When a lock is lost
//!
//! A lock is lost when the broker says so or when its time runs out. The broker then hands the message out again, maybe
//! to another consumer, so this one must not go on with it:
//!
//! - `settle/rules.rs` (`lock_lost_error`) refuses a settlement with `LockLost`, without a call to the driver.
//! - `hand_out.rs` drops a message that is still in the buffer.
//! - `consumer.rs` (`free_without_waking`) frees the message's place and key. On sources where core holds keys, it also
//!   discards the later messages of the key: they come again after the lost one and must not overtake it.
//! - `settle/batcher.rs` does not retry a settlement whose lock has gone. It answers `LockLost` if the driver surely
//!   did nothing, else the driver's error. If that error is `LockLost`, it marks the lock as lost.

use std::{sync::Arc, time::Duration};

use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, time::Instant};

use crate::{
    Error, ErrorKind, Result,
    consume::consumer::Consumer,
    driver::{
        Batching, DriverToken,
        kit::renewal::{MAX_SLEEP, RenewalCall, RenewalPlan, RenewedLocks, renew},
    },
};

/// The shortest pause before a lock is renewed. A broker that gives locks of no length must not be asked without pause.
const MIN_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause after a renewal that failed.
const MAX_RETRY_PAUSE: Duration = Duration::from_secs(5);
/// The longest wait for the answer to a renewal. The wait is an eighth of the lock, so that several calls fit into what
/// is left of it.
const MAX_CALL_TIME: Duration = Duration::from_secs(30);
/// The wait for an answer is at least this long, but no longer than half of what is left of the lock. An eighth of a
/// short lock may be less than a round trip takes.
const MIN_CALL_TIME: Duration = Duration::from_millis(500);

/// The locks of the deliveries that are not settled yet, buffered ones included.
pub(crate) struct LockTable {
    batching: Batching,
    table: Mutex<LockEntries>,
    /// Wakes the renewing task for a lock that is due before it would wake by itself.
    earlier_renewal: Arc<Notify>,
}

#[derive(Default)]
struct LockEntries {
    entries: Vec<Option<LockEntry>>,
    free: Vec<usize>,
    serial: u64,
    /// A renewing task runs.
    renewing: bool,
    /// Until when the renewing task sleeps; `None` while it does not.
    asleep_until: Option<Instant>,
}

impl LockEntries {
    fn get(&mut self, id: LockId) -> Option<&mut LockEntry> {
        self.entries.get_mut(id.at)?.as_mut().filter(|e| e.serial == id.serial)
    }
}

struct LockEntry {
    /// Tells the lock from an earlier one in the same place, whose answer may come late.
    serial: u64,
    token: DriverToken,
    until: Instant,
    /// For how long the lock was given.
    given: Duration,
    renew_at: Instant,
    /// The last renewal has failed.
    failed: bool,
    /// A renewal is under way.
    calling: bool,
    lost: bool,
}

/// A lock's place in the table, with its serial number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockId {
    at: usize,
    serial: u64,
}

/// For how long a lock is given, and when to renew it: at half of that. What counts is the length that the broker gave,
/// whatever was asked for.
fn renewal_time(now: Instant, until: Instant) -> (Duration, Instant) {
    let given = until.saturating_duration_since(now);
    (given, now + (given / 2).max(MIN_PAUSE))
}

/// What it means that the renewal of a lock failed.
#[derive(Debug, PartialEq, Eq)]
enum FailedRenewal {
    /// Nothing: the message is settled, or its lock is known to be lost.
    NotNeeded,
    TriedAgain,
    /// The lock has run out, or does before another renewal would be due.
    NoTimeLeft,
}

impl LockTable {
    pub(crate) fn new(batching: Batching) -> Self {
        Self { batching, table: Mutex::default(), earlier_renewal: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, LockEntries> {
        self.table.lock()
    }

    fn wake_if_earlier(&self, table: &mut LockEntries, at: Instant) {
        if table.asleep_until.is_some_and(|until| at < until) {
            table.asleep_until = None;
            self.earlier_renewal.notify_one();
        }
    }

    /// Adds a lock that has come by `now`. True if the caller must start a renewing task.
    pub(crate) fn add(&self, token: DriverToken, until: Instant, now: Instant) -> (LockId, bool) {
        let (given, renew_at) = renewal_time(now, until);
        let mut table = self.lock();
        table.serial += 1;
        let serial = table.serial;
        let entry =
            Some(LockEntry { serial, token, until, given, renew_at, failed: false, calling: false, lost: false });
        let at = match table.free.pop() {
            Some(at) => {
                table.entries[at] = entry;
                at
            }
            None => {
                table.entries.push(entry);
                table.entries.len() - 1
            }
        };
        self.wake_if_earlier(&mut table, renew_at);
        (LockId { at, serial }, !std::mem::replace(&mut table.renewing, true))
    }

    /// Removes a lock and answers when it ends; `None` if it is lost.
    pub(crate) fn remove(&self, id: LockId) -> Option<Instant> {
        let mut table = self.lock();
        table.get(id)?;
        table.free.push(id.at);
        let entry = table.entries[id.at].take();
        drop(table);
        entry.filter(|e| !e.lost).map(|e| e.until)
    }

    /// When the lock ends; `None` once it is lost.
    pub(crate) fn until(&self, id: LockId) -> Option<Instant> {
        self.lock().get(id).filter(|e| !e.lost).map(|e| e.until)
    }

    /// The lock was renewed and ends at `until`.
    pub(crate) fn extended(&self, id: LockId, until: Instant) {
        let (given, renew_at) = renewal_time(Instant::now(), until);
        let mut table = self.lock();
        if let Some(entry) = table.get(id) {
            (entry.until, entry.given, entry.renew_at) = (until, given, renew_at);
            (entry.failed, entry.calling) = (false, false);
            self.wake_if_earlier(&mut table, renew_at);
        }
    }

    /// The lock is lost: it is neither held nor renewed from now on.
    pub(crate) fn set_lost(&self, id: LockId) {
        if let Some(entry) = self.lock().get(id) {
            entry.lost = true;
        }
    }

    /// Takes the locks that are to be renewed now, in the order in which they go: at most as many calls as the driver
    /// takes beside those `under_way`. They are marked as under way.
    fn take_due(&self, under_way: usize) -> RenewalPlan<LockId, DriverToken> {
        let now = Instant::now();
        let max_calls = self.batching.in_flight.saturating_sub(under_way);
        let mut table = self.lock();
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        let mut any_held = false;
        for (at, entry) in table.entries.iter().enumerate() {
            // A lock that has run out is not renewed: the broker may have handed the message to another consumer.
            let Some(entry) = entry.as_ref().filter(|e| !e.lost && e.until > now) else { continue };
            any_held = true;
            if entry.calling {
                continue;
            }
            if entry.renew_at <= now {
                due.push((entry.failed, entry.renew_at, LockId { at, serial: entry.serial }));
            } else {
                next = Some(next.map_or(entry.renew_at, |n| n.min(entry.renew_at)));
            }
        }
        // Locks whose renewal has failed go last, each in a call of its own: one that hangs must not hold up others.
        due.sort_unstable_by_key(|(failed, renew_at, _)| (*failed, *renew_at));
        let mut calls: Vec<RenewalCall<LockId, DriverToken>> = Vec::new();
        let mut last_failed = true;
        for (failed, _, id) in due {
            let Some(entry) = table.get(id) else { continue };
            let joins =
                calls.last().is_some_and(|call| !failed && !last_failed && call.ids.len() < self.batching.entries);
            if !joins {
                if calls.len() == max_calls {
                    break;
                }
                calls.push(RenewalCall { ids: Vec::new(), tokens: Vec::new(), limit: MAX_CALL_TIME });
            }
            last_failed = failed;
            let Some(call) = calls.last_mut() else { continue };
            entry.calling = true;
            call.ids.push(id);
            call.tokens.push(entry.token.clone());
            call.limit = call.limit.min((entry.given / 8).max(((entry.until - now) / 2).min(MIN_CALL_TIME)));
        }
        let ends = under_way == 0 && !any_held;
        table.renewing = !ends;
        // With all calls in use, no lock can be renewed before one is answered.
        let next = next.filter(|_| calls.len() < max_calls);
        // One step with the look at the table, under its lock: a lock that is added from now on wakes the task.
        table.asleep_until = (calls.len() < max_calls).then(|| next.unwrap_or(now + MAX_SLEEP));
        RenewalPlan { calls, next, ends }
    }

    /// Takes note of a renewal that failed, and says what that means.
    fn renewal_failed(&self, id: LockId, e: &Error) -> FailedRenewal {
        let now = Instant::now();
        let mut table = self.lock();
        let Some(entry) = table.get(id) else { return FailedRenewal::NotNeeded };
        // After a timeout the lock has waited already.
        let pause = if e.kind() == ErrorKind::Timeout { MIN_PAUSE } else { (entry.given / 16).min(MAX_RETRY_PAUSE) };
        (entry.calling, entry.failed) = (false, true);
        entry.renew_at = now + pause.max(MIN_PAUSE);
        match (entry.lost, entry.renew_at < entry.until) {
            (true, _) => FailedRenewal::NotNeeded,
            (false, true) => FailedRenewal::TriedAgain,
            (false, false) => FailedRenewal::NoTimeLeft,
        }
    }
}

impl RenewedLocks for Consumer {
    type Id = LockId;
    type Token = DriverToken;

    fn plan(&self, under_way: usize) -> RenewalPlan<LockId, DriverToken> {
        self.locks.take_due(under_way)
    }

    fn answered(&self, id: LockId, result: Result<Instant>) {
        match result {
            Ok(until) => self.locks.extended(id, until),
            Err(e) if e.kind() == ErrorKind::LockLost => self.locks.set_lost(id),
            Err(e) => match self.locks.renewal_failed(id, &e) {
                FailedRenewal::NotNeeded => {
                    tracing::debug!(source = %self.entity.name, error = %e, "a lock was not renewed that nobody needs");
                }
                FailedRenewal::TriedAgain => {
                    self.metrics.renewal_failed(&e);
                    tracing::warn!(source = %self.entity.name, error = %e, "lock not renewed; trying again");
                }
                // Whoever settles the message is told, and it counts as lost then.
                FailedRenewal::NoTimeLeft => {
                    let text = "lock not renewed, and no time is left to try again; it is lost";
                    tracing::warn!(source = %self.entity.name, error = %e, "{text}");
                }
            },
        }
    }

    fn earlier(&self) -> &Arc<Notify> {
        &self.locks.earlier_renewal
    }
}

impl Consumer {
    /// Starts the task that renews the locks until none is held, or the consumer is gone.
    pub(crate) fn start_renewing(self: &Arc<Self>) {
        let (settler, lock) = (self.settler.clone(), self.entity.settings.lock);
        // On the consumer's runtime: the one that polls now may end before the consumer does.
        self.runtime.spawn(renew(Arc::downgrade(self), move |tokens: Vec<DriverToken>| {
            let settler = settler.clone();
            async move { settler.extend(&tokens, lock).await }
        }));
    }
}
