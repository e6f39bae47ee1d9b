//! One lane: drains one address of a quarter of the slots, pass by pass, until nothing is left.
//!
//! The slots are in four groups, each with a lane of its own per address, so that one group is read and deleted while
//! another is published. A key is in one slot, so in one lane.

use std::{
    collections::HashSet,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use polybus_core::{Address, Envelope, Error, Result, RetrySafety};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{
    RelayShared,
    address_state::{AddressState, Permission},
    call_limits::{ROWS as ROWS_LIMIT, in_time},
    verdict::{Verdict, verdict},
};
use crate::{
    outbox::decode_head,
    store::{ReadRows, RowId, StoredRow},
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

/// How many attempts an uncertain row has while others of its address pass.
const MAX_ATTEMPTS: u32 = 10;

/// The bytes that all lanes together may have read, and what each may read at least.
const BUDGET: usize = 32 << 20;
const SMALL_READ: usize = 64 << 10;
const SMALL_READS: usize = 256;

/// The bytes under way in all lanes of a relay. It bounds the memory, whatever the number of addresses.
pub(super) struct Budget {
    large: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { large: Arc::new(Semaphore::new(BUDGET)), small: Arc::new(Semaphore::new(SMALL_READS)) }
    }
}

impl Budget {
    /// Up to `window` bytes if they are free, else a small read. So addresses that hold their windows for long cannot
    /// keep others from going on.
    async fn reserve(&self, window: usize) -> (usize, Option<OwnedSemaphorePermit>) {
        if let Ok(permit) = self.large.clone().try_acquire_many_owned(window as u32) {
            return (window, Some(permit));
        }
        (SMALL_READ.min(window), self.small.clone().acquire_owned().await.ok())
    }
}

/// Why a lane ended.
pub(super) enum LaneEnd {
    /// Nothing is left, or this relay has no slot of the group any more.
    Drained,
    /// The address waits until then.
    Waits(Instant),
    /// The database failed.
    Database(Error),
    /// The bus was closed.
    Closed(Error),
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

/// Drains the address until nothing is left or it has to wait.
pub(super) async fn drain(
    shared: &RelayShared,
    state: &AddressState,
    group: i16,
    stopping: &AtomicBool,
    budget: &Budget,
) -> LaneEnd {
    let Ok(address) = state.address.parse::<Address>() else {
        let error = Error::invalid(format!("{:?} is no address", state.address));
        state.failed(&error, true);
        return waits(shared, state);
    };
    let ordered = shared.bus.topology().address(&address).settings.ordered;
    let lane = Lane { shared, state, address, ordered, budget };
    let mut rows = ROWS;
    while !stopping.load(Ordering::Relaxed) {
        match lane.pass(group, &mut rows).await {
            Ok(Pass::Empty) => return LaneEnd::Drained,
            Ok(Pass::Went) => {}
            Ok(Pass::Waits) => return waits(shared, state),
            Err(end) => return end,
        }
    }
    LaneEnd::Drained
}

fn waits(shared: &RelayShared, state: &AddressState) -> LaneEnd {
    match state.permission() {
        Permission::Wait(until) => LaneEnd::Waits(until),
        Permission::Probe => {
            state.probe_ended();
            LaneEnd::Waits(Instant::now())
        }
        // Only held rows are left. New ones may come any time.
        Permission::Go { .. } => LaneEnd::Waits(Instant::now() + shared.options.poll),
    }
}

enum Pass {
    /// Nothing was there.
    Empty,
    /// Rows went.
    Went,
    /// No row went, and it makes no sense to try at once.
    Waits,
}

struct Lane<'a> {
    shared: &'a RelayShared,
    state: &'a AddressState,
    address: Address,
    ordered: bool,
    budget: &'a Budget,
}

/// What becomes of the rows of one pass.
#[derive(Default)]
struct Settling {
    delete: Vec<RowId>,
    published: u64,
    expired: u64,
    may_duplicate: u64,
    park: Vec<(RowId, String, bool)>,
    uncertain: Vec<(StoredRow, Error)>,
    failed: Option<(Error, bool)>,
    failed_rows: Vec<StoredRow>,
    closed: Option<Error>,
}

impl Lane<'_> {
    async fn pass(&self, group: i16, rows: &mut u32) -> Result<Pass, LaneEnd> {
        let (window, probing) = match self.state.permission() {
            Permission::Go { window } => (window / GROUPS as usize, Probing(None)),
            Permission::Probe => (SMALL_READ, Probing(Some(self.state))),
            Permission::Wait(_) => return Ok(Pass::Waits),
        };
        let (max_bytes, _permit) = self.budget.reserve(window).await;
        let Some(slots) = self.shared.slots.enter(|slot| group_of(slot) == group) else { return Ok(Pass::Empty) };
        let (held_keys, held_rows) = self.state.held();
        let is_probe = probing.0.is_some();
        let rows_per_slot = if is_probe { 1 } else { rows.div_ceil(slots.slots.len() as u32) };
        let request = ReadRows {
            slots: &slots.slots,
            address: &self.state.address,
            held_keys: &held_keys,
            held_rows: &held_rows,
            rows_per_slot,
            max_bytes,
        };
        let started = Instant::now();
        let read = self.call(self.shared.table.read(&request)).await?;
        let took = started.elapsed();
        telemetry::outbox_read(self.shared.control.system(), took);
        if read.is_empty() {
            return Ok(Pass::Empty);
        }
        let bytes: usize = read.iter().map(|row| row.head.len() + row.data.len()).sum();
        *rows = if !is_probe && took > SLOW_READ && bytes < FEW_BYTES { ROWS_WHEN_SLOW } else { ROWS };
        if !slots.may_publish() {
            return Ok(Pass::Waits);
        }
        let settling = self.publish(read).await;
        self.settle(settling).await
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
                        stopped.extend(row.key);
                    }
                    settling.park.push((row.id, e.to_string(), true));
                }
                Ok(message) if message.expires_at.is_some_and(|at| at <= now) => {
                    settling.expired += 1;
                    if self.shared.options.park_expired {
                        settling.park.push((row.id, "expired".to_owned(), false));
                    } else {
                        settling.delete.push(row.id);
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
                    settling.delete.push(row.id);
                }
                Verdict::NotTried => {}
                Verdict::Park => settling.park.push((row.id, text(), true)),
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

    /// Writes down what became of the rows.
    async fn settle(&self, settling: Settling) -> Result<Pass, LaneEnd> {
        let (shared, counts, address) = (self.shared, &self.shared.counts, &*self.state.address);
        let Settling { delete, published, expired, may_duplicate, park, uncertain, failed, failed_rows, closed } =
            settling;
        counts.may_duplicate.fetch_add(may_duplicate, Ordering::Relaxed);
        if may_duplicate > 0 {
            telemetry::outbox_settled(address, "may_duplicate", may_duplicate);
        }
        let went = !delete.is_empty() || !park.is_empty();
        if published > 0 {
            self.state.passed();
        }
        // What is remembered of the address comes before what the database may refuse.
        let mut failed = failed;
        let mut held = failed_rows;
        let mut counted = Vec::new();
        for (row, error) in uncertain {
            // It counts against the row only if others pass: else it is the address, or the broker.
            if published > 0 {
                counted.push((row, error));
            } else {
                failed = failed.or(Some((error, false)));
                held.push(row);
            }
        }
        if let Some((error, broken)) = &failed {
            // Where others pass, it is their keys that cannot go, not the address. What failed is held as well, so that
            // a probe tries other keys.
            held.iter().for_each(|row| self.state.hold(row, published == 0));
            if published == 0 {
                self.state.failed(error, *broken);
            }
        }
        if !delete.is_empty() {
            // Never repeated: on another connection the same ids may be rows that nobody has published.
            if let Err(e) = self.call(shared.table.delete(&delete)).await {
                counts.may_duplicate.fetch_add(published, Ordering::Relaxed);
                telemetry::outbox_settled(address, "may_duplicate", published);
                return Err(e);
            }
            delete.iter().for_each(|row| self.state.forget(*row));
            counts.published.fetch_add(published, Ordering::Relaxed);
            telemetry::outbox_settled(address, "published", published);
        }
        if expired > 0 {
            counts.expired.fetch_add(expired, Ordering::Relaxed);
            telemetry::outbox_settled(address, "expired", expired);
        }
        for (row, reason, is_poison) in park {
            self.park(row, &reason, is_poison && shared.options.hold_key).await?;
        }
        for (row, error) in counted {
            if row.attempts + 1 >= MAX_ATTEMPTS {
                self.park(row.id, &error.to_string(), shared.options.hold_key).await?;
            } else {
                self.call(shared.table.record_failure(row.id, &error.to_string())).await?;
                self.state.hold(&row, false);
            }
        }
        if let Some(error) = closed {
            return Err(LaneEnd::Closed(error));
        }
        if failed.is_some() && published == 0 {
            return Ok(Pass::Waits);
        }
        Ok(if went { Pass::Went } else { Pass::Waits })
    }

    /// Asks the database, with few others at once and within a limit.
    async fn call<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T, LaneEnd> {
        let _turn = self.shared.lane_calls.acquire().await;
        in_time(ROWS_LIMIT, call).await.map_err(LaneEnd::Database)
    }

    async fn park(&self, row: RowId, reason: &str, hold_key: bool) -> Result<(), LaneEnd> {
        self.call(self.shared.table.park(row, reason, hold_key)).await?;
        self.state.forget(row);
        self.shared.counts.parked.fetch_add(1, Ordering::Relaxed);
        telemetry::outbox_settled(&self.state.address, "parked", 1);
        tracing::error!(
            target: "polybus", address = %self.state.address, row = row.id, reason,
            "a row of the outbox can never be sent as it is, and was parked"
        );
        Ok(())
    }
}
