//! One address of a relay: whether it waits after a failure, how much of it may be under way, and which of its rows are
//! held.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::Mutex;
use polybus_core::driver::kit::backoff::Backoff;
use tokio::time::Instant;

use crate::{
    store::{RowId, StoredRow},
    telemetry,
};

/// The longest wait between two attempts at an address.
pub(super) const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// How much of one address may be under way at first, and at most. It doubles with each batch that passes, so an
/// address that never answers holds little of the bus' memory.
const FIRST_WINDOW: usize = 256 << 10;
const MAX_WINDOW: usize = 4 << 20;

/// How soon a lane asks again while another one probes.
const PROBE_ELSEWHERE: Duration = Duration::from_millis(200);

/// The most rows that are held one by one. Above that the whole address waits.
const MAX_HELD: usize = 1_000;

/// What a lane may do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    /// Publish up to so many bytes.
    Go { window: usize },
    /// Try with one row of each slot whether the address answers again. Report back by [`AddressState::probe_ended`].
    Probe,
    /// Come back later.
    Wait(Instant),
}

#[derive(Debug)]
pub(super) struct AddressState {
    pub(super) address: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    backoff: Backoff,
    /// Set while the address waits after a failure.
    failed_until: Option<Instant>,
    probing: bool,
    window: usize,
    /// The last error that was logged as one that needs a person.
    logged: Option<String>,
    held: HashMap<i64, HeldRow>,
}

#[derive(Debug)]
struct HeldRow {
    key: Option<Bytes>,
    /// It failed as a probe of the whole address, and goes on as soon as the address does.
    by_probe: bool,
    backoff: Backoff,
    until: Instant,
}

impl AddressState {
    pub(super) fn new(address: &str) -> Self {
        let state = State {
            backoff: Backoff::up_to(MAX_BACKOFF),
            failed_until: None,
            probing: false,
            window: FIRST_WINDOW,
            logged: None,
            held: HashMap::new(),
        };
        Self { address: address.into(), state: Mutex::new(state) }
    }

    /// Whether the address has nothing to remember.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.failed_until.is_none() && state.held.is_empty()
    }

    pub(super) fn permission(&self) -> Permission {
        let mut state = self.state.lock();
        let now = Instant::now();
        match state.failed_until {
            None if state.held.values().filter(|row| row.until > now).count() >= MAX_HELD => {
                let first = state.held.values().map(|row| row.until).filter(|until| *until > now).min();
                Permission::Wait(first.unwrap_or(now))
            }
            None => Permission::Go { window: state.window },
            Some(until) if until > now => Permission::Wait(until),
            Some(_) if state.probing => Permission::Wait(now + PROBE_ELSEWHERE),
            Some(_) => {
                state.probing = true;
                Permission::Probe
            }
        }
    }

    /// A probe ended, whatever it found; also one that was dropped.
    pub(super) fn probe_ended(&self) {
        self.state.lock().probing = false;
    }

    /// The broker took messages of this address.
    pub(super) fn passed(&self) {
        let mut state = self.state.lock();
        state.backoff.reset();
        state.logged = None;
        state.window = state.window.saturating_mul(2).min(MAX_WINDOW);
        if state.failed_until.take().is_some() {
            state.held.retain(|_, row| !row.by_probe);
            tracing::info!(target: "polybus", address = %self.address, "the outbox publishes to this address again");
            telemetry::outbox_blocked(&self.address, false);
        }
    }

    /// The address did not take messages. With `broken`, a person has to mend it.
    pub(super) fn failed(&self, error: &polybus_core::Error, broken: bool) {
        let mut state = self.state.lock();
        let now = Instant::now();
        // Lanes of one address fail together, and that counts once.
        if state.failed_until.is_some_and(|until| until > now) {
            return;
        }
        let wait = state.backoff.next_wait();
        state.failed_until = Some(now + wait);
        state.window = FIRST_WINDOW;
        telemetry::outbox_blocked(&self.address, true);
        let text = error.to_string();
        if state.logged.as_ref() == Some(&text) {
            return;
        }
        if broken {
            tracing::error!(
                target: "polybus", address = %self.address, error = %error,
                "the outbox cannot publish to this address before somebody mends it; its rows wait"
            );
        } else {
            tracing::warn!(
                target: "polybus", address = %self.address, error = %error,
                "the outbox cannot publish to this address now; its rows wait"
            );
        }
        state.logged = Some(text);
    }

    /// Keeps a row and its key back for a while, so that others are tried meanwhile. With `by_probe`, only until the
    /// address takes messages again.
    pub(super) fn hold(&self, row: &StoredRow, by_probe: bool) {
        let mut state = self.state.lock();
        let now = Instant::now();
        // Rows that somebody else has sent or parked meanwhile.
        state.held.retain(|_, row| row.until + MAX_BACKOFF * 2 > now);
        if state.held.len() >= MAX_HELD && !state.held.contains_key(&row.id.id) {
            return;
        }
        let fresh = || HeldRow { key: row.key.clone(), by_probe, backoff: Backoff::up_to(MAX_BACKOFF), until: now };
        let held = state.held.entry(row.id.id).or_insert_with(fresh);
        held.by_probe &= by_probe;
        held.until = now + held.backoff.next_wait();
    }

    /// Whether all of these rows have failed while others of the address passed. What becomes of them says nothing
    /// about the address.
    pub(super) fn are_held_alone(&self, rows: &[StoredRow]) -> bool {
        let state = self.state.lock();
        rows.iter().all(|row| state.held.get(&row.id.id).is_some_and(|held| !held.by_probe))
    }

    /// Lets the rows go on that were held by a probe. Answers whether there were any: where a probe finds no other
    /// rows, these are tried again, at the pace of the address and not at that of the polling.
    pub(super) fn free_probed(&self) -> bool {
        let mut state = self.state.lock();
        let before = state.held.len();
        state.held.retain(|_, row| !row.by_probe);
        state.held.len() < before
    }

    /// A row is gone from the outbox.
    pub(super) fn forget(&self, row: RowId) {
        self.state.lock().held.remove(&row.id);
    }

    /// The keys and the keyless rows that are held now.
    pub(super) fn held(&self) -> (Vec<Bytes>, Vec<i64>) {
        let state = self.state.lock();
        let now = Instant::now();
        let (mut keys, mut rows) = (Vec::new(), Vec::new());
        for (id, row) in state.held.iter().filter(|(_, row)| row.until > now) {
            match &row.key {
                Some(key) => keys.push(key.clone()),
                None => rows.push(*id),
            }
        }
        (keys, rows)
    }

    /// When the first held row goes on; `None` if none is held.
    pub(super) fn first_held_until(&self) -> Option<Instant> {
        let now = Instant::now();
        self.state.lock().held.values().map(|row| row.until).filter(|until| *until > now).min()
    }

    /// Forgets a failure whose wait is over, for an address that has no rows here any more.
    pub(super) fn expire(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.held.retain(|_, row| row.until > now);
        if state.failed_until.is_some_and(|until| until <= now) {
            state.failed_until = None;
            telemetry::outbox_blocked(&self.address, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use polybus_core::{Error, ErrorKind};

    use super::*;

    fn away() -> Error {
        Error::new(ErrorKind::Unavailable, "away")
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_one_probe_at_a_time() {
        let address = AddressState::new("queue:a");
        assert_eq!(address.permission(), Permission::Go { window: FIRST_WINDOW });
        address.passed();
        assert_eq!(address.permission(), Permission::Go { window: 2 * FIRST_WINDOW });
        address.failed(&away(), false);
        assert!(matches!(address.permission(), Permission::Wait(_)));
        tokio::time::advance(Duration::from_millis(51)).await;
        assert_eq!(address.permission(), Permission::Probe);
        assert!(matches!(address.permission(), Permission::Wait(_)), "one at a time");
        address.probe_ended();
        assert_eq!(address.permission(), Permission::Probe);
        address.probe_ended();
        address.passed();
        assert!(matches!(address.permission(), Permission::Go { .. }));
    }

    #[tokio::test(start_paused = true)]
    async fn the_waits_grow_to_their_limit_and_lanes_that_fail_together_count_once() {
        let address = AddressState::new("queue:a");
        for _ in 0..20 {
            address.failed(&away(), false);
            address.failed(&away(), false);
            let Permission::Wait(until) = address.permission() else { panic!("it waits") };
            assert!(until <= Instant::now() + MAX_BACKOFF);
            tokio::time::advance(until - Instant::now()).await;
        }
        address.failed(&away(), false);
        let Permission::Wait(until) = address.permission() else { panic!("it waits") };
        assert!(until >= Instant::now() + MAX_BACKOFF / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn held_rows_come_back_after_their_wait() {
        let address = AddressState::new("queue:a");
        let row = |id, key: Option<&'static str>| StoredRow {
            id: RowId { id, created_at: 0 },
            slot: 0,
            key: key.map(|k| Bytes::from_static(k.as_bytes())),
            head: String::new(),
            data: Bytes::new(),
            attempts: 0,
        };
        address.hold(&row(1, Some("k")), false);
        address.hold(&row(2, None), false);
        assert_eq!(address.held(), (vec![Bytes::from_static(b"k")], vec![2]));
        assert!(!address.is_idle() && address.are_held_alone(&[row(1, Some("k")), row(2, None)]));
        assert!(!address.are_held_alone(&[row(1, Some("k")), row(9, None)]));
        assert!(address.first_held_until().is_some_and(|until| until <= Instant::now() + Duration::from_millis(50)));
        tokio::time::advance(Duration::from_millis(51)).await;
        assert_eq!(address.held(), (vec![], vec![]));
        address.failed(&away(), false);
        address.hold(&row(3, Some("probed")), true);
        assert!(!address.are_held_alone(&[row(3, Some("probed"))]));
        assert!(address.free_probed() && !address.free_probed(), "it is the only one");
        address.hold(&row(3, Some("probed")), true);
        address.passed();
        assert_eq!(address.held(), (vec![], vec![]), "what was held by a probe goes on with the address");
        address.forget(RowId { id: 1, created_at: 0 });
        address.forget(RowId { id: 2, created_at: 0 });
        assert!(address.is_idle());
    }
}
