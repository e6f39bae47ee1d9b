//! One lane: drains one address of a quarter of the slots, pass by pass, until nothing is left.
//!
//! The slots are in four groups, each with a lane of its own per address, so that one group is read and deleted while
//! another is published. A key is in one slot, so in one lane.

use std::{collections::HashSet, future::Future};

use polybus_core::{Address, Envelope, Error, Result, RetrySafety};
use tokio::{sync::SemaphorePermit, time::Instant};

use super::{
    RelayShared,
    address_state::{AddressState, Permission},
    budget::{Budget, SMALL_READ},
    settle::Settling,
    stopping::Stopping,
    verdict::{Verdict, verdict},
};
use crate::{
    store::{ReadRows, StoredRow, calls::in_time},
    stored_head::decode_head,
    telemetry,
};

/// The number of groups of slots.
pub(super) const GROUPS: i16 = 4;

/// The group of a slot.
pub(super) fn group_of(slot: i16) -> i16 {
    slot % GROUPS
}

/// The rows of one pass, and what it grows to where dead rows, not data, make the reads slow.
const ROWS: u32 = 500;
const ROWS_WHEN_SLOW: u32 = 5_000;
const SLOW_READ: std::time::Duration = std::time::Duration::from_millis(20);
const FEW_BYTES: usize = 1 << 20;

/// Why a lane ended.
pub(super) enum LaneEnd {
    /// Nothing is left.
    Drained,
    /// Nothing was looked at: this relay may use no slot of the group now, or it stops.
    NotTried,
    /// The address waits until then.
    Waits(Instant),
    /// Only held rows are left, the first one until then. New ones may come any time.
    Rests(Instant),
    /// The database failed.
    Database(Error),
    /// It panicked, with this text.
    Panicked(String),
    /// The bus was closed.
    Closed(Error),
}

/// How a lane ran.
pub(super) struct LaneRun {
    pub(super) end: LaneEnd,
    /// Rows were published, and the database took note of it.
    pub(super) went: bool,
}

/// Returns the right to probe when its pass ends, however it ends.
struct Probing<'a>(Option<&'a AddressState>);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        if let Some(state) = self.0 {
            state.probe_ended();
        }
    }
}

/// Drains the address until nothing is left or it has to wait. With `careful`, it begins with one row of each slot:
/// what it publishes may not be deleted once more.
pub(super) async fn drain(
    shared: &RelayShared,
    state: &AddressState,
    group: i16,
    careful: bool,
    stopping: &Stopping,
    budget: &Budget,
) -> LaneRun {
    let mut went = false;
    let end = drain_until(shared, state, group, careful, stopping, budget, &mut went).await;
    LaneRun { end, went }
}

async fn drain_until(
    shared: &RelayShared,
    state: &AddressState,
    group: i16,
    careful: bool,
    stopping: &Stopping,
    budget: &Budget,
    went: &mut bool,
) -> LaneEnd {
    let Ok(address) = state.address.parse::<Address>() else {
        let error = Error::invalid(format!("{:?} is no address", state.address));
        state.failed(&error, true);
        return waits(shared, state);
    };
    let ordered = shared.bus.topology().address(&address).settings.ordered;
    let lane = Lane { shared, state, address, ordered, careful, stopping, budget };
    let mut rows = if careful { 1 } else { ROWS };
    while !stopping.has_begun() {
        match lane.pass(group, &mut rows).await {
            Ok(Pass::Empty) => return state.first_held_until().map_or(LaneEnd::Drained, LaneEnd::Rests),
            Ok(Pass::NotTried) => return LaneEnd::NotTried,
            Ok(Pass::Went) => *went = true,
            Ok(Pass::Waits) => return waits(shared, state),
            Err(end) => return end,
        }
    }
    LaneEnd::NotTried
}

fn waits(shared: &RelayShared, state: &AddressState) -> LaneEnd {
    match state.permission() {
        Permission::Wait(until) => LaneEnd::Waits(until),
        Permission::Probe => {
            state.probe_ended();
            LaneEnd::Waits(Instant::now())
        }
        Permission::Go { .. } => {
            let soon = Instant::now() + shared.options.poll;
            LaneEnd::Rests(state.first_held_until().unwrap_or(soon))
        }
    }
}

pub(super) enum Pass {
    /// Nothing was there.
    Empty,
    /// See [`LaneEnd::NotTried`].
    NotTried,
    /// Rows went.
    Went,
    /// No row went, and it makes no sense to try at once.
    Waits,
}

pub(super) struct Lane<'a> {
    pub(super) shared: &'a RelayShared,
    pub(super) state: &'a AddressState,
    address: Address,
    ordered: bool,
    pub(super) careful: bool,
    pub(super) stopping: &'a Stopping,
    budget: &'a Budget,
}

impl Lane<'_> {
    async fn pass(&self, group: i16, rows: &mut u32) -> Result<Pass, LaneEnd> {
        let (window, probing) = match self.state.permission() {
            Permission::Go { window } => (window / GROUPS as usize, Probing(None)),
            Permission::Probe => (SMALL_READ, Probing(Some(self.state))),
            Permission::Wait(_) => return Ok(Pass::Waits),
        };
        let is_probe = probing.0.is_some();
        let reserved = self.stopping.unless_begun(self.budget.reserve(window)).await;
        let Some((max_bytes, _permit)) = reserved else { return Ok(Pass::NotTried) };
        let Some(slots) = self.shared.slots.enter(|slot| group_of(slot) == group) else { return Ok(Pass::NotTried) };
        let rows_per_slot = if is_probe { 1 } else { rows.div_ceil(slots.slots.len() as u32) };
        let started = Instant::now();
        let mut read = self.read(&slots.slots, rows_per_slot, max_bytes).await?;
        if read.is_empty() && is_probe && self.state.free_probed() {
            read = self.read(&slots.slots, rows_per_slot, max_bytes).await?;
        }
        let took = started.elapsed();
        telemetry::outbox_read(self.shared.control.system(), took);
        if read.is_empty() {
            return Ok(Pass::Empty);
        }
        let bytes: usize = read.iter().map(|row| row.head.len() + row.data.len()).sum();
        *rows = match *rows {
            few if few < ROWS => (few * 4).min(ROWS),
            _ if !is_probe && took > SLOW_READ && bytes < FEW_BYTES => ROWS_WHEN_SLOW,
            _ => ROWS,
        };
        if !slots.may_publish() {
            return Ok(Pass::Waits);
        }
        let settling = self.publish(read).await;
        self.settle(settling).await
    }

    /// Reads the first rows that are not held. None, if the relay stops.
    async fn read(&self, slots: &[i16], rows_per_slot: u32, max_bytes: usize) -> Result<Vec<StoredRow>, LaneEnd> {
        let (held_keys, held_rows) = self.state.held();
        let request = ReadRows {
            slots,
            address: &self.state.address,
            held_keys: &held_keys,
            held_rows: &held_rows,
            rows_per_slot,
            max_bytes,
        };
        let read = self.ask(self.shared.table.read(&request));
        self.stopping.unless_begun(read).await.unwrap_or_else(|| Ok(Vec::new()))
    }

    /// Publishes the rows, outside any transaction, and judges the answers.
    async fn publish(&self, rows: Vec<StoredRow>) -> Settling {
        let mut settling = Settling::default();
        let now = self.shared.bus.now();
        let mut sent: Vec<(StoredRow, Envelope)> = Vec::with_capacity(rows.len());
        // Keys that a row of this read will hold up.
        let mut stopped: HashSet<bytes::Bytes> = HashSet::new();
        for mut row in rows {
            if row.key.as_ref().is_some_and(|key| stopped.contains(key)) {
                continue;
            }
            match decode_head(&row.head, std::mem::take(&mut row.data)) {
                Err(e) => {
                    if self.shared.options.hold_key {
                        stopped.extend(row.key.clone());
                    }
                    settling.park.push((row, e.to_string(), true));
                }
                Ok(message) if message.expires_at.is_some_and(|at| at <= now) => {
                    settling.expired += 1;
                    if self.shared.options.park_expired {
                        settling.park.push((row, "expired".to_owned(), false));
                    } else {
                        settling.delete.push(row);
                    }
                }
                Ok(message) => sent.push((row, message)),
            }
        }
        let answers = self.shared.bus.publish_all(self.address.clone(), sent.iter().map(|(_, m)| m.clone())).await;
        for ((row, message), answer) in sent.into_iter().zip(answers) {
            if answer.as_ref().is_err_and(|e| e.retry() == RetrySafety::MayDuplicate) {
                settling.may_duplicate += 1;
            }
            let text = || answer.as_ref().err().map(Error::to_string).unwrap_or_default();
            match verdict(&answer, &message, self.ordered) {
                Verdict::Published => {
                    settling.published += 1;
                    settling.delete.push(row);
                }
                Verdict::NotTried => {}
                Verdict::Park => settling.park.push((row, text(), true)),
                Verdict::Uncertain => settling.uncertain.extend(answer.err().map(|error| (row, error))),
                verdict => {
                    let Err(error) = answer else { continue };
                    if verdict == Verdict::Closed {
                        settling.closed = Some(error);
                    } else {
                        let broken = verdict == Verdict::AddressBroken;
                        // One that needs a person is told rather than one that does not.
                        if broken || settling.failed.is_none() {
                            settling.failed = Some((error, broken));
                        }
                        settling.failed_rows.push(row);
                    }
                }
            }
        }
        settling
    }

    /// The right to call. Lanes whose last calls failed, perhaps since somebody has locked their rows, have no more
    /// than one turn together: so they leave one to the others.
    async fn turn(&self) -> (Option<SemaphorePermit<'_>>, Option<SemaphorePermit<'_>>) {
        let failing = if self.careful { self.shared.failing_calls.acquire().await.ok() } else { None };
        (failing, self.shared.lane_calls.acquire().await.ok())
    }

    /// Asks the database, with few others at once and within a limit.
    async fn ask<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T, LaneEnd> {
        let _turn = self.turn().await;
        in_time(self.shared.rows_limit(), call).await.map_err(LaneEnd::Database)
    }

    /// Writes to the database, in the same way.
    pub(super) async fn write<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T, LaneEnd> {
        let write = async {
            let _turn = self.turn().await;
            in_time(self.shared.rows_limit(), call).await
        };
        self.stopping.before_its_end(write).await.map_err(LaneEnd::Database)
    }
}
