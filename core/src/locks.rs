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

use crate::{Error, Kind, Result, Settler, Token, caught::caught, consumer::Consumer};

/// Shortest pause before a lock is renewed: a broker that gives no time at all must not be asked without end.
const SHORTEST: Duration = Duration::from_millis(50);
/// Longest pause after a renewal that failed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a renewal.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The locks of the deliveries that are not settled yet, buffered ones included.
pub(crate) struct Locks {
    /// With so much left a lock is renewed, or with half of what there was, if that was less than twice as much.
    lead: Duration,
    table: Mutex<Table>,
    /// Wakes the renewing task for a lock that is due before what it sleeps for.
    sooner: Arc<Notify>,
}

#[derive(Default)]
struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    serial: u64,
    renewing: bool,
    /// While the renewing task sleeps.
    asleep_until: Option<Instant>,
}

impl Table {
    fn get(&mut self, id: LockId) -> Option<&mut Entry> {
        self.entries.get_mut(id.at)?.as_mut().filter(|e| e.serial == id.serial)
    }
}

struct Entry {
    /// Places are used again: a late answer must not be taken for another delivery's.
    serial: u64,
    token: Token,
    until: Instant,
    renew_at: Instant,
    lost: bool,
}

/// A place in the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockId {
    at: usize,
    serial: u64,
}

impl Locks {
    pub(crate) fn new(lock: Duration) -> Self {
        // Half of it, with a margin of up to a quarter off already.
        Self { lead: lock / 8 * 3, table: Mutex::default(), sooner: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When a lock that was given at `now` must be renewed.
    fn renew_at(&self, now: Instant, until: Instant) -> Instant {
        let given = until.saturating_duration_since(now);
        now + given.saturating_sub(self.lead.min(given / 2)).max(SHORTEST)
    }

    fn wake_for(&self, table: &mut Table, at: Instant) {
        if table.asleep_until.is_some_and(|until| at < until) {
            table.asleep_until = None;
            self.sooner.notify_one();
        }
    }

    /// Remembers a lock that came by `now`; true if a renewing task must be started.
    pub(crate) fn add(&self, token: Token, until: Instant, now: Instant) -> (LockId, bool) {
        let renew_at = self.renew_at(now, until);
        let mut table = self.lock();
        table.serial += 1;
        let serial = table.serial;
        let entry = Some(Entry { serial, token, until, renew_at, lost: false });
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
        let renew_at = self.renew_at(Instant::now(), until);
        let mut table = self.lock();
        if let Some(entry) = table.get(id) {
            (entry.until, entry.renew_at) = (until, renew_at);
            self.wake_for(&mut table, renew_at);
        }
    }

    pub(crate) fn set_lost(&self, id: LockId) {
        if let Some(entry) = self.lock().get(id) {
            entry.lost = true;
        }
    }

    /// What must be renewed now, or when to look again; nothing at all ends the renewing.
    fn due(&self) -> Option<Due> {
        let now = Instant::now();
        let mut table = self.lock();
        let mut due = Vec::new();
        let mut next: Option<Instant> = None;
        for (at, entry) in table.entries.iter().enumerate() {
            let Some(entry) = entry.as_ref().filter(|e| !e.lost) else { continue };
            if entry.renew_at <= now {
                due.push((LockId { at, serial: entry.serial }, entry.token.clone()));
            } else {
                next = Some(next.map_or(entry.renew_at, |n| n.min(entry.renew_at)));
            }
        }
        if !due.is_empty() {
            return Some(Due::Now(due));
        }
        table.asleep_until = next;
        table.renewing = next.is_some();
        next.map(Due::At)
    }
}

enum Due {
    Now(Vec<(LockId, Token)>),
    At(Instant),
}

/// Renews until nothing is held any more or the consumer is gone.
pub(crate) async fn renew(consumer: Weak<Consumer>, settler: Arc<dyn Settler>, lock: Duration) {
    let batching = settler.batching();
    let wait = (lock / 8 * 3).min(LONGEST_WAIT);
    loop {
        let Some(held) = consumer.upgrade() else { return };
        let due = match held.locks.due() {
            None => return,
            Some(Due::At(next)) => {
                let sooner = held.locks.sooner.clone();
                drop(held);
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = sooner.notified() => {}
                }
                continue;
            }
            Some(Due::Now(due)) => due,
        };
        // As many calls at once as settlements: one that is slow must not use up the others' time.
        let mut chunks = due.chunks(batching.entries);
        let mut calls = JoinSet::new();
        let mut failed = false;
        loop {
            while calls.len() < batching.in_flight
                && let Some(chunk) = chunks.next()
            {
                calls.spawn(extend(settler.clone(), chunk.to_vec(), lock, wait));
            }
            let Some(answered) = calls.join_next().await else { break };
            for (id, result) in answered.into_iter().flatten() {
                match result {
                    Ok(until) => held.locks.set(id, until),
                    Err(e) if e.kind() == Kind::LockLost => held.locks.set_lost(id),
                    Err(e) => {
                        failed = true;
                        tracing::warn!(source = %held.entity.name, error = %e, "lock not renewed; trying again");
                    }
                }
            }
        }
        drop(held);
        if failed {
            tokio::time::sleep((lock / 16).min(LONGEST_PAUSE)).await;
        }
    }
}

/// One call for some locks, bounded in time: what became of each.
async fn extend(
    settler: Arc<dyn Settler>,
    some: Vec<(LockId, Token)>,
    lock: Duration,
    wait: Duration,
) -> Vec<(LockId, Result<Instant>)> {
    let (ids, tokens): (Vec<LockId>, Vec<Token>) = some.into_iter().unzip();
    let answer = timeout(wait, caught(settler.extend(&tokens, lock))).await;
    let answer = answer.unwrap_or_else(|_| Err(Error::new(Kind::Timeout, "no answer to the renewal of locks")));
    let mut results = answer.unwrap_or_else(|e| e.for_each_of(ids.len()));
    results.resize_with(ids.len(), || Err(Error::new(Kind::Unexpected, "the driver gave no answer")));
    ids.into_iter().zip(results).collect()
}
