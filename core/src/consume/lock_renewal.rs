//! The locks that one consumer holds, and the task that renews each at half of its time, from receipt until it is
//! settled.
//!
//! The task runs while locks are held. It starts with the first lock and ends when none is left; [`LockTable::add`]
//! says when to start another one.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    Error, ErrorKind, Result,
    consume::consumer::Consumer,
    driver::{DriverToken, Settler, catch_panic::caught},
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
/// How often the task checks that its consumer still exists while no renewal is due.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// The locks of the deliveries that are not settled yet, buffered ones included.
pub(crate) struct LockTable {
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

impl LockTable {
    pub(crate) fn new() -> Self {
        Self { table: Mutex::default(), earlier_renewal: Arc::default() }
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

    /// Takes the locks that are to be renewed now, in the order in which they go: at most `max_calls` calls of at most
    /// `max_locks` locks. They are marked as under way.
    fn take_due(&self, max_locks: usize, max_calls: usize) -> DueRenewals {
        let now = Instant::now();
        let mut table = self.lock();
        table.asleep_until = None;
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for (at, entry) in table.entries.iter().enumerate() {
            // A lock that has run out is not renewed: the broker may have handed the message to another consumer.
            let Some(entry) = entry.as_ref().filter(|e| !e.lost && !e.calling && e.until > now) else { continue };
            if entry.renew_at <= now {
                due.push((entry.failed, entry.renew_at, LockId { at, serial: entry.serial }));
            } else {
                next = Some(next.map_or(entry.renew_at, |n| n.min(entry.renew_at)));
            }
        }
        // Locks whose renewal has failed go last, each in a call of its own: one that hangs must not hold up others.
        due.sort_unstable_by_key(|(failed, renew_at, _)| (*failed, *renew_at));
        let mut groups: Vec<Vec<LockId>> = Vec::new();
        let mut last_failed = true;
        for (failed, _, id) in due {
            let joins = groups.last().is_some_and(|group| !failed && !last_failed && group.len() < max_locks);
            if !joins {
                if groups.len() == max_calls {
                    break;
                }
                groups.push(Vec::new());
            }
            if let Some(group) = groups.last_mut() {
                group.push(id);
            }
            last_failed = failed;
        }
        let mut renewals = Vec::new();
        for ids in groups {
            let mut renewal = RenewalCall { ids, tokens: Vec::new(), limit: MAX_CALL_TIME };
            for id in &renewal.ids {
                let Some(entry) = table.get(*id) else { continue };
                entry.calling = true;
                renewal.tokens.push(entry.token.clone());
                let left = entry.until - now;
                renewal.limit = renewal.limit.min((entry.given / 8).max((left / 2).min(MIN_CALL_TIME)));
            }
            renewals.push(renewal);
        }
        DueRenewals { renewals, next }
    }

    /// Whether the renewing task may end, since no lock is held. A lock that is added after this starts another task:
    /// both happen under the lock of the table.
    fn stop_if_idle(&self) -> bool {
        let now = Instant::now();
        let mut table = self.lock();
        let any_held = table.entries.iter().flatten().any(|e| !e.lost && e.until > now);
        table.renewing = any_held;
        !any_held
    }

    /// Notes until when the renewing task sleeps. False if a lock is due before, so that the task must look again. The
    /// check and the note are one step under the lock of the table: a lock that is added after it wakes the task.
    fn note_sleep(&self, until: Option<Instant>) -> bool {
        let mut table = self.lock();
        let due = table.entries.iter().flatten().filter(|e| !e.lost && !e.calling && e.until > Instant::now());
        let first = due.map(|e| e.renew_at).min();
        if first.is_some_and(|first| until.is_none_or(|until| first < until)) {
            return false;
        }
        table.asleep_until = Some(until.unwrap_or_else(|| Instant::now() + MAX_SLEEP));
        true
    }

    fn renewal_failed(&self, id: LockId, pause: Duration) {
        if let Some(entry) = self.lock().get(id) {
            (entry.calling, entry.failed) = (false, true);
            entry.renew_at = Instant::now() + pause;
        }
    }
}

struct DueRenewals {
    renewals: Vec<RenewalCall>,
    /// When the next lock is due.
    next: Option<Instant>,
}

/// The locks of one call, and how long its answer is waited for.
struct RenewalCall {
    ids: Vec<LockId>,
    tokens: Vec<DriverToken>,
    limit: Duration,
}

/// Renews locks until none is held, or the consumer is gone.
///
/// As many calls as the driver takes are under way at once, and locks that fall due meanwhile do not wait for them. So
/// a call that hangs costs its own locks an eighth of their time, and the others nothing.
pub(crate) async fn renew_locks(weak_consumer: Weak<Consumer>, settler: Arc<dyn Settler>, lock: Duration) {
    let batching = settler.batching();
    let mut calls: JoinSet<Vec<(LockId, Result<Instant>)>> = JoinSet::new();
    loop {
        let Some(consumer) = weak_consumer.upgrade() else { return };
        let free = batching.in_flight.saturating_sub(calls.len());
        let due = consumer.locks.take_due(batching.entries, free);
        for renewal in due.renewals {
            calls.spawn(call_extend(settler.clone(), renewal, lock));
        }
        if calls.is_empty() && due.next.is_none() && consumer.locks.stop_if_idle() {
            return;
        }
        // With all calls in use, no lock can be renewed before one is answered.
        let wake = due.next.filter(|_| calls.len() < batching.in_flight);
        if calls.len() < batching.in_flight && !consumer.locks.note_sleep(wake) {
            continue;
        }
        let earlier_renewal = consumer.locks.earlier_renewal.clone();
        // Released while the task sleeps: the task must not keep the consumer alive.
        drop(consumer);
        let answered = tokio::select! {
            Some(answered) = calls.join_next() => answered.unwrap_or_default(),
            () = tokio::time::sleep_until(wake.unwrap_or_else(|| Instant::now() + MAX_SLEEP)) => continue,
            () = earlier_renewal.notified() => continue,
        };
        let Some(consumer) = weak_consumer.upgrade() else { return };
        for (id, result) in answered {
            match result {
                Ok(until) => consumer.locks.extended(id, until),
                Err(e) if e.kind() == ErrorKind::LockLost => consumer.locks.set_lost(id),
                Err(e) => {
                    // After a timeout the lock has waited already.
                    let pause =
                        if e.kind() == ErrorKind::Timeout { MIN_PAUSE } else { (lock / 16).min(MAX_RETRY_PAUSE) };
                    consumer.locks.renewal_failed(id, pause);
                    consumer.metrics.renewal_failed(&e);
                    tracing::warn!(source = %consumer.entity.name, error = %e, "lock not renewed; trying again");
                }
            }
        }
    }
}

/// Makes one call, bounded in time, and answers with the result of each of its locks.
async fn call_extend(
    settler: Arc<dyn Settler>,
    renewal: RenewalCall,
    lock: Duration,
) -> Vec<(LockId, Result<Instant>)> {
    let RenewalCall { ids, tokens, limit } = renewal;
    let answer = timeout(limit, caught(settler.extend(&tokens, lock))).await;
    let answer = answer.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "no answer to the renewal of locks")));
    let mut results = answer.unwrap_or_else(|e| e.for_each_of(ids.len()));
    results.resize_with(ids.len(), || Err(Error::new(ErrorKind::Unexpected, "the driver gave no answer")));
    ids.into_iter().zip(results).collect()
}
