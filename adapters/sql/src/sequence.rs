//! What the databases share of sequence numbers.

use std::collections::HashMap;

use bytes::Bytes;
use polybus_core::{Error, ErrorKind, Result};
use polybus_patterns::store::{StoredGap, StoredProgress};

/// A row of a key of which numbers are missing: key, source, ordering key, first, next, missing, what
/// else is remembered, and where it stands still.
pub(crate) type GapRow = (Vec<u8>, String, Vec<u8>, i64, i64, Option<String>, String, i64);

/// The last numbers that were drawn, in the order of the keys.
///
/// # Errors
/// `Unexpected` where one is not there.
pub(crate) fn in_their_order(keys: &[(Bytes, i64)], drawn: HashMap<Vec<u8>, i64>) -> Result<Vec<i64>> {
    let last = |key: &Bytes| drawn.get(&key[..]).copied();
    let last: Option<Vec<i64>> = keys.iter().map(|(key, _)| last(key)).collect();
    last.ok_or_else(|| Error::new(ErrorKind::Unexpected, "the database did not tell the number that it drew"))
}

/// `None` for a row that no version of polybus writes.
pub(crate) fn gap((key, source, okey, first, next, missing, aside, told_at): GapRow) -> Option<StoredGap> {
    let okey = String::from_utf8_lossy(&okey).into_owned();
    Some(StoredGap::new(key.try_into().ok()?, source, okey, StoredProgress { first, next, missing, aside, told_at }))
}

/// The error of a statement that has waited for the handlers of a key until a limit ended it.
pub(crate) fn busy(error: sqlx::Error, system: &'static str, operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, "another transaction that handles a message of the key takes longer")
        .of_driver(system, operation)
        .with_context("sequence", "busy")
        .with_source(error)
}
