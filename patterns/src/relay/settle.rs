//! What becomes of the rows of one pass, and how it is written down.

use std::sync::atomic::Ordering;

use polybus_core::Error;

use super::lane::{Lane, LaneEnd, Pass};
use crate::{
    store::{RowId, StoredRow, calls::is_final},
    telemetry,
};

/// How many attempts an uncertain row has while others of its address pass.
const MAX_ATTEMPTS: u32 = 10;

/// A row that is parked, why, and whether it holds its key up if the relay is asked for that.
type ParkableRow = (StoredRow, String, bool);

/// What becomes of the rows of one pass.
#[derive(Default)]
pub(super) struct Settling {
    pub(super) delete: Vec<StoredRow>,
    pub(super) published: u64,
    pub(super) expired: u64,
    pub(super) may_duplicate: u64,
    pub(super) park: Vec<ParkableRow>,
    pub(super) uncertain: Vec<(StoredRow, Error)>,
    pub(super) failed: Option<(Error, bool)>,
    pub(super) failed_rows: Vec<StoredRow>,
    pub(super) closed: Option<Error>,
}

impl Lane<'_> {
    /// Writes down what became of the rows.
    pub(super) async fn settle(&self, settling: Settling) -> Result<Pass, LaneEnd> {
        let (counts, address) = (&self.shared.counts, &*self.state.address);
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
        // Where others pass, it is their keys that cannot go, not the address. What failed is held as well, so that a
        // probe tries other keys.
        let address_failed = failed.is_some() && published == 0 && !self.state.are_held_alone(&held);
        if let Some((error, broken)) = &failed {
            held.iter().for_each(|row| self.state.hold(row, address_failed));
            if address_failed {
                self.state.failed(error, *broken);
            }
        }
        if !delete.is_empty() {
            let deleted = self.delete(&delete, published).await?;
            // Another relay had the slot meanwhile. What it has deleted, it has published.
            let twice = (delete.len() as u64).saturating_sub(deleted).min(published);
            if twice > 0 {
                counts.may_duplicate.fetch_add(twice, Ordering::Relaxed);
                telemetry::outbox_settled(address, "may_duplicate", twice);
            }
            counts.published.fetch_add(published - twice, Ordering::Relaxed);
            telemetry::outbox_settled(address, "published", published - twice);
        }
        if expired > 0 {
            counts.expired.fetch_add(expired, Ordering::Relaxed);
            telemetry::outbox_settled(address, "expired", expired);
        }
        self.park_all(park).await?;
        self.count_all(counted).await?;
        if let Some(error) = closed {
            return Err(LaneEnd::Closed(error));
        }
        if address_failed {
            return Ok(Pass::Waits);
        }
        Ok(if went { Pass::Went } else { Pass::Waits })
    }

    /// Deletes rows, and answers how many were there.
    async fn delete(&self, rows: &[StoredRow], published: u64) -> Result<u64, LaneEnd> {
        let ids: Vec<RowId> = rows.iter().map(|row| row.id).collect();
        // Never repeated: on another connection the same ids may be rows that nobody has published.
        let deleted = self.write(self.shared.table.delete(&ids)).await;
        if deleted.is_ok() {
            ids.iter().for_each(|row| self.state.forget(*row));
            return deleted;
        }
        self.shared.counts.may_duplicate.fetch_add(published, Ordering::Relaxed);
        telemetry::outbox_settled(&self.state.address, "may_duplicate", published);
        if self.careful {
            // One of these few rows may be what cannot be deleted. They are held for longer than this lane waits, so
            // that it finds others then.
            rows.iter().flat_map(|row| [row, row]).for_each(|row| self.state.hold(row, false));
        }
        deleted
    }

    /// Parks rows. Those that the database does not take are held, so that others go on meanwhile.
    async fn park_all(&self, park: Vec<ParkableRow>) -> Result<(), LaneEnd> {
        let mut park = park.into_iter();
        while let Some((row, reason, is_poison)) = park.next() {
            let hold_key = is_poison && self.shared.options.hold_key;
            if let Err(e) = self.write(self.shared.table.park(row.id, &reason, hold_key)).await {
                self.state.hold(&row, false);
                park.for_each(|(row, ..)| self.state.hold(&row, false));
                return self.not_written(e);
            }
            self.parked(row.id, &reason);
        }
        Ok(())
    }

    /// Counts a failure of each of these rows, and parks those that have failed too often.
    async fn count_all(&self, rows: Vec<(StoredRow, Error)>) -> Result<(), LaneEnd> {
        let (park, count): (Vec<_>, Vec<_>) = rows.into_iter().partition(|(row, _)| row.attempts + 1 >= MAX_ATTEMPTS);
        count.iter().for_each(|(row, _)| self.state.hold(row, false));
        self.park_all(park.into_iter().map(|(row, error)| (row, error.to_string(), true)).collect()).await?;
        for (row, error) in count {
            if let Err(e) = self.write(self.shared.table.record_failure(row.id, &error.to_string())).await {
                return self.not_written(e);
            }
        }
        Ok(())
    }

    /// What could not be written about a row that is held. It is tried again with the row, and where the database is
    /// away, the next read finds out.
    fn not_written(&self, end: LaneEnd) -> Result<(), LaneEnd> {
        match end {
            LaneEnd::Database(e) if !is_final(&e) && !self.stopping.has_begun() => {
                tracing::warn!(
                    target: "polybus", address = %self.state.address, error = %e,
                    "a row of the outbox can be neither sent nor parked now, and is held; trying again"
                );
                Ok(())
            }
            end => Err(end),
        }
    }

    fn parked(&self, row: RowId, reason: &str) {
        self.state.forget(row);
        self.shared.counts.parked.fetch_add(1, Ordering::Relaxed);
        telemetry::outbox_settled(&self.state.address, "parked", 1);
        tracing::error!(
            target: "polybus", address = %self.state.address, row = row.id, reason,
            "a row of the outbox can never be sent as it is, and was parked"
        );
    }
}
