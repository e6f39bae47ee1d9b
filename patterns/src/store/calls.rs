//! How long the database has for a call of a loop.
//!
//! A connection whose packets are lost in silence, as behind a firewall, gives no error for a quarter of an hour.

use std::{future::Future, sync::Arc, time::Duration};

use polybus_core::{Error, ErrorKind, Result, driver::kit::backoff::Backoff};
use tokio::time::timeout;

use super::StoreControl;
use crate::catch_panic::{self, panic_text};

/// For reading and writing rows.
pub(crate) const ROWS: Duration = Duration::from_secs(30);

/// The same where one transaction writes at a time. A call waits for its turn there, behind handlers that take as long
/// as they like. One that leaves the queue loses its place, and with a shorter limit it might never come to its turn.
const ROWS_BEHIND_OTHERS: Duration = Duration::from_secs(600);

/// The longest wait between two tries to reach a database that is away.
pub(crate) const MAX_DATABASE_BACKOFF: Duration = Duration::from_secs(5);

/// The limit of a call that reads or writes rows.
pub(crate) fn rows_limit(control: &dyn StoreControl) -> Duration {
    if control.single_writer() { ROWS_BEHIND_OTHERS } else { ROWS }
}

/// Limits a call. One that took too long may have been carried out.
pub(crate) async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, caught(call)).await.unwrap_or_else(|_| {
        let text = format!("the database did not answer within {limit:?}");
        Err(Error::new(ErrorKind::Unavailable, text).may_duplicate())
    })
}

/// Makes a panic of the store the error of the call that it happened in. Whoever called decides as for any error: it
/// waits, and tries again.
pub(crate) async fn caught<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    catch_panic::caught(call).await.unwrap_or_else(|panic| {
        let text = format!("the store panicked: {}", panic_text(&*panic));
        Err(Error::new(ErrorKind::Unexpected, text).may_duplicate())
    })
}

/// Whether an error of the store ends a loop. All others may pass.
pub(crate) fn is_final(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ConfigInvalid | ErrorKind::Closed)
}

/// Compares the tables with the code, waiting for a database that is away.
pub(crate) async fn verify(control: &dyn StoreControl, components: &[&str]) -> Result<()> {
    let mut backoff = Backoff::up_to(MAX_DATABASE_BACKOFF);
    loop {
        match in_time(ROWS, control.verify(components)).await {
            Err(e) if is_final(&e) => return Err(e),
            Err(e) => {
                let wait = backoff.next_wait();
                tracing::warn!(target: "polybus", error = %e, ?wait, ?components, "the database does not answer; trying again");
                tokio::time::sleep(wait).await;
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// Listens for other processes, and begins again after an error: what was missed is found by polling.
pub(crate) async fn listen(control: &Arc<dyn StoreControl>) {
    let mut backoff = Backoff::up_to(Duration::from_secs(30));
    let mut told = None;
    loop {
        let Err(e) = caught(control.listen()).await else { return std::future::pending().await };
        let text = e.to_string();
        if told.as_ref() != Some(&text) {
            tracing::warn!(target: "polybus", error = %e, "no other process is heard; the tables are polled");
            told = Some(text);
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}
