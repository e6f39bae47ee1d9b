//! How long the database has for a call of the relay.
//!
//! A connection whose packets are lost in silence, as behind a firewall, gives no error for a quarter of an hour.

use std::{future::Future, time::Duration};

use polybus_core::{Error, ErrorKind, Result};
use tokio::time::timeout;

/// For reading and writing rows.
pub(super) const ROWS: Duration = Duration::from_secs(30);

/// Limits a call. One that took too long may have been carried out.
pub(super) async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, call).await.unwrap_or_else(|_| {
        let text = format!("the outbox' database did not answer within {limit:?}");
        Err(Error::new(ErrorKind::Unavailable, text).may_duplicate())
    })
}
