//! The locks one consumer holds, renewed at half their time from receipt on.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    consume::consumer::Consumer,
    driver::catch_panic::caught,
    driver::{DriverToken, Settler},
    error::{Error, ErrorKind, Result},
};

/// Shortest pause before a lock is renewed: a broker that gives no time at all must not be asked without end.
const SHORTEST: Duration = Duration::from_millis(50);
/// Longest pause after a renewal that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a renewal. It is an eighth of the lock, so that several calls fit into what is left of it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// A call gets so much at least, as far as half of what is left allows: an eighth of a short lock is less than a round trip may take.
const SHORT_CALL: Duration = Duration::from_millis(500);
/// Where nothing is due, the task still looks from time to time whether its consumer is there.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// The locks of the deliveries that are not settled yet, buffered ones included.
pub(crate) struct LockTable {
    table: Mutex<LockEntries>,
    /// Wakes the renewing task for a lock that is due before what it sleeps for.
    sooner: Arc<Notify>,
}

#[derive(Default)]
struct LockEntries {
    entries: Vec<Option<LockEntry>>,
    free: Vec<usize>,
    serial: u64,
    renewing: bool,
    /// While the renewing task sleeps.
    asleep_until: Option<Instant>,
}

impl LockEntries {
    fn get(&mut self, id: LockId) -> Option<&mut LockEntry> {
        self.entries.get_mut(id.at)?.as_mut().filter(|e| e.serial == id.serial)
    }
}

struct LockEntry {
    /// Places are used again: a late answer must not be taken for another delivery's.
    serial: u64,
    token: DriverToken,
    until: Instant,
    /// How long it was given for.
    given: Duration,
    renew_at: Instant,
    /// The last renewal failed.
    failed: bool,
    /// A call for it is under way.
    calling: bool,
    lost: bool,
}

/// A place in the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockId {
    at: usize,
    serial: u64,
}

/// How long a lock is given for, and when to renew it: at half of that, whatever was asked for, since the broker's own length counts.
fn half(now: Instant, until: Instant) -> (Duration, Instant) {
    let given = until.saturating_duration_since(now);
    (given, now + (given / 2).max(SHORTEST))
}

impl LockTable {
    pub(crate) fn new() -> Self {
        Self { table: Mutex::default(), sooner: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, LockEntries> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_for(&self, table: &mut LockEntries, at: Instant) {
        if table.asleep_until.is_some_and(|until| at < until) {
            table.asleep_until = None;
            self.sooner.notify_one();
        }
    }

    /// Remembers a lock that came by `now`; true if a renewing task must be started.
    pub(crate) fn add(&self, token: DriverToken, until: Instant, now: Instant) -> (LockId, bool) {
        let (given, renew_at) = half(now, until);
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
        self.wake_for(&mut table, renew_at);
        (LockId { at, serial }, !std::mem::replace(&mut table.renewing, true))
    }

    /// When the lock that is removed ends; `None` if it is lost.
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

    pub(crate) fn set(&self, id: LockId, until: Instant) {
        let (given, renew_at) = half(Instant::now(), until);
        let mut table = self.lock();
        if let Some(entry) = table.get(id) {
            (entry.until, entry.given, entry.renew_at) = (until, given, renew_at);
            (entry.failed, entry.calling) = (false, false);
            self.wake_for(&mut table, renew_at);
        }
    }

    pub(crate) fn set_lost(&self, id: LockId) {
        if let Some(entry) = self.lock().get(id) {
            entry.lost = true;
        }
    }

    /// What is to be renewed now, in the order in which it is to go: each group in one call. What goes into a call is marked.
    fn due(&self, most: usize, calls: usize) -> DueRenewals {
        let now = Instant::now();
        let mut table = self.lock();
        table.asleep_until = None;
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for (at, entry) in table.entries.iter().enumerate() {
            // A lock that has run out is not asked for again: it would come back from the dead.
            let Some(entry) = entry.as_ref().filter(|e| !e.lost && !e.calling && e.until > now) else { continue };
            if entry.renew_at <= now {
                due.push((entry.failed, entry.renew_at, LockId { at, serial: entry.serial }));
            } else {
                next = Some(next.map_or(entry.renew_at, |n| n.min(entry.renew_at)));
            }
        }
        // Those that have failed go last, and each for itself: one that hangs must not take others along.
        due.sort_unstable_by_key(|(failed, renew_at, _)| (*failed, *renew_at));
        let mut groups: Vec<Vec<LockId>> = Vec::new();
        let mut of_failed = true;
        for (failed, _, id) in due {
            let joins = groups.last().is_some_and(|group| !failed && !of_failed && group.len() < most);
            if !joins {
                if groups.len() == calls {
                    break;
                }
                groups.push(Vec::new());
            }
            if let Some(group) = groups.last_mut() {
                group.push(id);
            }
            of_failed = failed;
        }
        let mut renewals = Vec::new();
        for ids in groups {
            let mut renewal = RenewalCall { ids, tokens: Vec::new(), limit: LONGEST_WAIT };
            for id in &renewal.ids {
                let Some(entry) = table.get(*id) else { continue };
                entry.calling = true;
                renewal.tokens.push(entry.token.clone());
                let left = entry.until - now;
                renewal.limit = renewal.limit.min((entry.given / 8).max((left / 2).min(SHORT_CALL)));
            }
            renewals.push(renewal);
        }
        DueRenewals { renewals, next }
    }

    /// Whether the renewing task may end: nothing is held. A lock that is added from then on starts another.
    fn ends(&self) -> bool {
        let now = Instant::now();
        let mut table = self.lock();
        let held = table.entries.iter().flatten().any(|e| !e.lost && e.until > now);
        table.renewing = held;
        !held
    }

    /// Notes until when the renewing task sleeps; false if something is due before.
    fn sleeps_until(&self, until: Option<Instant>) -> bool {
        let mut table = self.lock();
        let due = table.entries.iter().flatten().filter(|e| !e.lost && !e.calling && e.until > Instant::now());
        let first = due.map(|e| e.renew_at).min();
        if first.is_some_and(|first| until.is_none_or(|until| first < until)) {
            return false;
        }
        table.asleep_until = Some(until.unwrap_or_else(|| Instant::now() + LONGEST_SLEEP));
        true
    }

    fn failed(&self, id: LockId, retry: Duration) {
        if let Some(entry) = self.lock().get(id) {
            (entry.calling, entry.failed) = (false, true);
            entry.renew_at = Instant::now() + retry;
        }
    }
}

struct DueRenewals {
    renewals: Vec<RenewalCall>,
    /// When the next one is due.
    next: Option<Instant>,
}

/// One call.
struct RenewalCall {
    ids: Vec<LockId>,
    tokens: Vec<DriverToken>,
    limit: Duration,
}

/// Renews until nothing is held any more or the consumer is gone.
///
/// Calls go side by side, as many as the driver takes. None is waited for by those that are due meanwhile, so that one that hangs costs
/// its own locks an eighth of their time, and the others nothing.
pub(crate) async fn renew(consumer: Weak<Consumer>, settler: Arc<dyn Settler>, lock: Duration) {
    let batching = settler.batching();
    let mut calls: JoinSet<Vec<(LockId, Result<Instant>)>> = JoinSet::new();
    loop {
        let Some(held) = consumer.upgrade() else { return };
        let free = batching.in_flight.saturating_sub(calls.len());
        let due = held.locks.due(batching.entries, free);
        for renewal in due.renewals {
            calls.spawn(extend(settler.clone(), renewal, lock));
        }
        if calls.is_empty() && due.next.is_none() && held.locks.ends() {
            return;
        }
        // With every call in use, only an answer lets anything go on.
        let wake = due.next.filter(|_| calls.len() < batching.in_flight);
        if calls.len() < batching.in_flight && !held.locks.sleeps_until(wake) {
            continue;
        }
        let sooner = held.locks.sooner.clone();
        drop(held);
        let answered = tokio::select! {
            Some(answered) = calls.join_next() => answered.unwrap_or_default(),
            () = tokio::time::sleep_until(wake.unwrap_or_else(|| Instant::now() + LONGEST_SLEEP)) => continue,
            () = sooner.notified() => continue,
        };
        let Some(held) = consumer.upgrade() else { return };
        for (id, result) in answered {
            match result {
                Ok(until) => held.locks.set(id, until),
                Err(e) if e.kind() == ErrorKind::LockLost => held.locks.set_lost(id),
                Err(e) => {
                    // Who waited for an answer has waited already.
                    let pause = if e.kind() == ErrorKind::Timeout { SHORTEST } else { (lock / 16).min(LONGEST_PAUSE) };
                    held.locks.failed(id, pause);
                    held.metrics.renewal_failed(&e);
                    tracing::warn!(source = %held.entity.name, error = %e, "lock not renewed; trying again");
                }
            }
        }
    }
}

/// One call for some locks, bounded in time: what became of each.
async fn extend(settler: Arc<dyn Settler>, renewal: RenewalCall, lock: Duration) -> Vec<(LockId, Result<Instant>)> {
    let RenewalCall { ids, tokens, limit } = renewal;
    let answer = timeout(limit, caught(settler.extend(&tokens, lock))).await;
    let answer = answer.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, "no answer to the renewal of locks")));
    let mut results = answer.unwrap_or_else(|e| e.for_each_of(ids.len()));
    results.resize_with(ids.len(), || Err(Error::new(ErrorKind::Unexpected, "the driver gave no answer")));
    ids.into_iter().zip(results).collect()
}
