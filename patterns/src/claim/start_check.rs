//! What a worker that redeems claims is refused at its start.

use std::time::Duration;

use polybus_core::{Error, Result, worker::WorkerInfo};

use crate::inbox::time_of_retries;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Refuses a retention that is shorter than all retries of the worker together and a day: payloads would be gone while
/// their messages are still tried. How long messages wait in the source and among its dead letters, nobody can ask a
/// broker; the retention must outlast that as well.
///
/// # Errors
/// `InvalidArgument` names both times.
///
/// ```
/// # use polybus_core::{Bus, BusOptions, QueueSpec, Source, Topology, memory::MemoryDriver, worker::WorkerInfo};
/// # fn main() -> polybus_core::Result<()> {
/// # let topology = Topology::new().queue("reports", QueueSpec::new());
/// # let bus = Bus::new(std::sync::Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
/// use polybus_patterns::claim::check_claim_retention;
/// use std::time::Duration;
///
/// let worker = WorkerInfo::of(&bus, Source::queue("reports"));
/// assert!(check_claim_retention(Duration::from_secs(30 * 24 * 3600), &worker).is_ok());
/// assert!(check_claim_retention(Duration::from_secs(3600), &worker).is_err());
/// # Ok(()) }
/// ```
pub fn check_claim_retention(retention: Duration, worker: &WorkerInfo) -> Result<()> {
    let retries = time_of_retries(worker);
    if retention < retries.saturating_add(DAY) {
        let text = format!(
            "claims: a retention of {retention:?} is shorter than all retries ({retries:?}) and a day: payloads would \
             be gone while their messages are tried. Raise Claims::retention, at the producers too"
        );
        return Err(Error::invalid(text).with_context("source", &worker.source));
    }
    Ok(())
}
