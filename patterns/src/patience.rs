//! Waiting while the database is away, for handlers that have a transaction.

use std::{sync::Arc, time::Duration};

use polybus_core::{
    Error, ErrorKind, HandlerError,
    driver::kit::backoff::{Backoff, random_fraction},
};
use tokio::time::timeout_at;

use crate::{store::StoreControl, telemetry};

/// The longest wait between two looks whether the database is back.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The database was found away: one task looks for it, for all handlers of the process.
pub(crate) fn begin(control: &Arc<dyn StoreControl>) {
    if !control.outage().began() {
        return;
    }
    let system = control.system();
    tracing::warn!(target: "polybus", system, "the database is away; messages wait for it");
    telemetry::store_away(system, true);
    // Dropped with the task, also if its runtime ends: whoever finds the database away then begins a new outage.
    let outage = OutageGuard(control.clone());
    tokio::spawn(async move {
        let control = &outage.0;
        let mut backoff = Backoff::up_to(MAX_WAIT);
        loop {
            tokio::time::sleep(backoff.next_wait()).await;
            if !control.is_away().await {
                break;
            }
        }
        tracing::info!(target: "polybus", system, "the database is back");
    });
}

/// The outage ends when it is dropped.
struct OutageGuard(Arc<dyn StoreControl>);

impl Drop for OutageGuard {
    fn drop(&mut self) {
        self.0.outage().ended();
        telemetry::store_away(self.0.system(), false);
    }
}

/// Waits until the database is there.
///
/// # Errors
/// When it has been away for longer than `patience`, counted from when it was found away.
pub(crate) async fn wait_while_away(
    control: &Arc<dyn StoreControl>,
    patience: Option<Duration>,
) -> Result<(), HandlerError> {
    let Some(since) = control.outage().since() else { return Ok(()) };
    let over = control.outage().over();
    let Some(until) = patience.and_then(|patience| since.checked_add(patience)) else {
        over.await;
        return Ok(());
    };
    timeout_at(until, over).await.map_err(|_| {
        let text = format!("the database has been away for {:?}, longer than the inbox' patience", since.elapsed());
        Error::new(ErrorKind::Unavailable, text).safe().into()
    })
}

/// A short pause before a transaction that lost against another one is tried again.
pub(crate) async fn pause(attempt: u32) {
    let longest = Duration::from_millis(5 << attempt.min(6));
    tokio::time::sleep(longest.mul_f64(0.2 + 0.8 * random_fraction())).await;
}

/// A pause after a lost connection, until those that are lost as well have left the pool.
pub(crate) async fn pause_for_connections(lost: u32) {
    let longest = Duration::from_millis(100 << lost.min(5)).min(Duration::from_secs(2));
    tokio::time::sleep(longest.mul_f64(0.5 + 0.5 * random_fraction())).await;
}
