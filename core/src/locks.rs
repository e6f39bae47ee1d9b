//! The locks one consumer holds, renewed at half their time from receipt on.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::time::Instant;

use crate::{Error, Kind, Settler, Token, consumer::Consumer};

/// The locks of the deliveries that are not settled yet, buffered ones included.
#[derive(Default)]
pub(crate) struct Locks {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    serial: u64,
    renewing: bool,
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
    lost: bool,
}

/// A place in the table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockId {
    at: usize,
    serial: u64,
}

impl Locks {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a lock; true if a renewing task must be started.
    pub(crate) fn add(&self, token: Token, until: Instant) -> (LockId, bool) {
        let mut table = self.lock();
        table.serial += 1;
        let serial = table.serial;
        let entry = Some(Entry { serial, token, until, lost: false });
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
        (LockId { at, serial }, !std::mem::replace(&mut table.renewing, true))
    }

    pub(crate) fn remove(&self, id: LockId) {
        let mut table = self.lock();
        if table.get(id).is_some() {
            table.free.push(id.at);
            let entry = table.entries[id.at].take();
            drop(table);
            drop(entry);
        }
    }

    /// When the lock ends; `None` once it is lost.
    pub(crate) fn until(&self, id: LockId) -> Option<Instant> {
        self.lock().get(id).filter(|e| !e.lost).map(|e| e.until)
    }

    pub(crate) fn set(&self, id: LockId, until: Instant) {
        if let Some(entry) = self.lock().get(id) {
            entry.until = until;
        }
    }

    pub(crate) fn set_lost(&self, id: LockId) {
        if let Some(entry) = self.lock().get(id) {
            entry.lost = true;
        }
    }

    /// Locks with less than `half` left, and when the next one will be there; nothing at all ends the renewing.
    fn due(&self, half: Duration) -> Option<(Vec<(LockId, Token)>, Instant)> {
        let now = Instant::now();
        let mut table = self.lock();
        let mut due = Vec::new();
        let mut next = None;
        for (at, entry) in table.entries.iter().enumerate() {
            let Some(entry) = entry.as_ref().filter(|e| !e.lost) else { continue };
            let left = entry.until.saturating_duration_since(now);
            if left <= half {
                due.push((LockId { at, serial: entry.serial }, entry.token.clone()));
            } else {
                let at = now + (left - half);
                next = Some(next.map_or(at, |n: Instant| n.min(at)));
            }
        }
        if due.is_empty() && next.is_none() {
            table.renewing = false;
            return None;
        }
        Some((due, next.unwrap_or(now)))
    }
}

/// Renews until nothing is held any more or the consumer is gone.
pub(crate) async fn renew(consumer: Weak<Consumer>, settler: Arc<dyn Settler>, lock: Duration) {
    // A margin of up to a quarter is off the lock already.
    let half = lock * 3 / 8;
    let batch = settler.batching().entries;
    loop {
        let Some(held) = consumer.upgrade() else { return };
        let Some((due, next)) = held.locks.due(half) else { return };
        let mut failed = false;
        for chunk in due.chunks(batch) {
            let tokens: Vec<Token> = chunk.iter().map(|(_, t)| t.clone()).collect();
            let answer = tokio::time::timeout(half, settler.extend(&tokens, lock)).await;
            let results = answer.unwrap_or_else(|_| {
                Error::new(Kind::Timeout, "no answer to the renewal of locks").for_each_of(tokens.len())
            });
            for ((id, _), result) in chunk.iter().zip(results) {
                match result {
                    Ok(until) => held.locks.set(*id, until),
                    Err(e) if e.kind() == Kind::LockLost => held.locks.set_lost(*id),
                    Err(e) => {
                        failed = true;
                        tracing::warn!(source = %held.entity.name, error = %e, "lock not renewed; trying again");
                    }
                }
            }
        }
        drop(held);
        if failed {
            tokio::time::sleep(lock / 16).await;
        } else if due.is_empty() {
            tokio::time::sleep_until(next).await;
        }
    }
}
