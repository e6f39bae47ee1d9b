//! How long the database has for a call of the relay.
//!
//! A connection whose packets are lost in silence, as behind a firewall, gives no error for a quarter of an hour.

use std::{future::Future, time::Duration};

use polybus_core::{Error, ErrorKind, Result};
use tokio::time::timeout;

use super::RelayShared;
use crate::catch_panic::{self, panic_text};

/// For reading and writing rows.
pub(super) const ROWS: Duration = Duration::from_secs(30);

/// The same where one transaction writes at a time. A call waits for its turn there, behind handlers that take as long
/// as they like. One that leaves the queue loses its place, and with a shorter limit it might never come to its turn.
const ROWS_BEHIND_OTHERS: Duration = Duration::from_secs(600);

impl RelayShared {
    /// The limit of a call that reads or writes rows.
    pub(super) fn rows_limit(&self) -> Duration {
        if self.control.single_writer() { ROWS_BEHIND_OTHERS } else { ROWS }
    }

    /// The limit of a call to the leases. With one writer it waits for the one handler that has the turn.
    pub(super) fn lease_limit(&self) -> Duration {
        let term = self.options.lease;
        if self.control.single_writer() { term } else { term / 3 }
    }
}

/// Limits a call. One that took too long may have been carried out.
pub(super) async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, caught(call)).await.unwrap_or_else(|_| {
        let text = format!("the outbox' database did not answer within {limit:?}");
        Err(Error::new(ErrorKind::Unavailable, text).may_duplicate())
    })
}

/// Makes a panic of the store the error of the call that it happened in. Whoever called decides as for any error: it
/// waits, and tries again.
pub(super) async fn caught<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    catch_panic::caught(call).await.unwrap_or_else(|panic| {
        let text = format!("the outbox' store panicked: {}", panic_text(&*panic));
        Err(Error::new(ErrorKind::Unexpected, text).may_duplicate())
    })
}
