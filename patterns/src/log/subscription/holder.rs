//! Which process runs a subscription, by a lease. A process that was paused and goes on later handles nothing twice: its
//! checkpoint is no longer where it was.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use polybus_core::Result;
use tokio::{task::JoinHandle, time::Instant};
use uuid::Uuid;

use crate::store::{
    Lease, StoreControl,
    calls::{in_time, rows_limit},
};

/// What the renewing task and the loop share.
struct Shared {
    control: Arc<dyn StoreControl>,
    name: String,
    owner: String,
    term: Duration,
    /// Until when the lease may be used, counted from before it was asked for.
    held: Mutex<Option<(Lease, Instant)>>,
}

/// The lease of a subscription.
pub(super) struct SubscriptionHolder {
    shared: Arc<Shared>,
    renewing: JoinHandle<()>,
}

impl SubscriptionHolder {
    pub(super) fn new(control: Arc<dyn StoreControl>, subscription: &str, term: Duration) -> Self {
        let (name, owner) = (format!("log/{subscription}"), Uuid::now_v7().to_string());
        let shared = Arc::new(Shared { control, name, owner, term, held: Mutex::new(None) });
        // In a task: with one writer at a time, a renewal waits for a handler's transaction.
        let renewing = tokio::spawn(shared.clone().renew());
        Self { shared, renewing }
    }

    /// Whether this process has it, and takes it where it is free.
    pub(super) async fn holds(&self) -> Result<bool> {
        let shared = &self.shared;
        if shared.is_held() {
            return Ok(true);
        }
        let since = Instant::now();
        let (leases, names) = (shared.control.leases(), [shared.name.clone()]);
        let acquire = leases.acquire(&names, &shared.owner, shared.term);
        let taken = in_time(rows_limit(&*shared.control), acquire).await?.pop();
        shared.keep(taken, since);
        Ok(shared.is_held())
    }

    /// Gives it back, so that another process goes on at once.
    pub(super) async fn leave(&self) {
        self.renewing.abort();
        let Some((lease, _)) = self.shared.held.lock().take() else { return };
        let leases = self.shared.control.leases();
        // Else it runs out.
        let release = leases.release(std::slice::from_ref(&lease), &self.shared.owner);
        drop(in_time(self.shared.term, release).await);
    }
}

impl Shared {
    fn is_held(&self) -> bool {
        self.held.lock().as_ref().is_some_and(|(_, until)| *until > Instant::now())
    }

    fn keep(&self, lease: Option<Lease>, since: Instant) {
        *self.held.lock() = lease.map(|lease| (lease, since + self.term.mul_f64(0.8)));
    }

    async fn renew(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.term / 3).await;
            let Some((lease, _)) = self.held.lock().clone() else { continue };
            let since = Instant::now();
            let leases = self.control.leases();
            let renew = leases.renew(std::slice::from_ref(&lease), &self.owner, self.term);
            match in_time(rows_limit(&*self.control), renew).await {
                Ok(renewed) => self.keep(renewed.into_iter().next(), since),
                Err(e) => {
                    tracing::debug!(target: "polybus", lease = self.name, error = %e, "a lease is not renewed; trying again");
                }
            }
        }
    }
}

impl Drop for SubscriptionHolder {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}
