//! Which process polls, where several have the same monitor and a store.
//!
//! The lease is renewed at each third of its term, and another process takes it over when it has run out. While the
//! database cannot be asked nobody knows who has it. Then whoever polls goes on, and after one term the others begin:
//! an outage of the database is when alerts are wanted most, and two are better than none.

use std::{future::Future, sync::Arc, time::Duration};

use polybus_core::{Error, ErrorKind, Result};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use uuid::Uuid;

use super::measured::caught;
use crate::store::{Lease, StoreControl};

/// The term of the lease.
pub const LEADER_TERM: Duration = Duration::from_secs(30);

/// Which process polls.
pub(super) struct Leadership {
    control: Arc<dyn StoreControl>,
    name: String,
    owner: String,
    held: parking_lot::Mutex<Vec<Lease>>,
    leads: watch::Sender<bool>,
}

impl Leadership {
    pub(super) fn new(control: Arc<dyn StoreControl>, monitor: &str) -> Self {
        let (name, owner) = (format!("monitor/{monitor}"), Uuid::now_v7().to_string());
        Self { control, name, owner, held: parking_lot::Mutex::default(), leads: watch::Sender::new(false) }
    }

    /// Whether this process polls, as it changes.
    pub(super) fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Takes and renews the lease until it is dropped. It returns only if the store refuses before it was found to be
    /// well: later, an error of whatever kind is a database that cannot be asked, as of a restart, a migration or a
    /// fail-over, and a monitor that ended over it would be missed by nobody.
    pub(super) async fn keep(&self) -> Error {
        let mut answered = Instant::now();
        let mut is_failing = false;
        let mut is_verified = false;
        let mut is_standing_by = false;
        loop {
            let round = async {
                if !is_verified {
                    self.control.verify(&["lease"]).await?;
                }
                self.take_or_renew().await
            };
            let wait = match in_time(LEADER_TERM / 3, round).await {
                Ok(holds) => {
                    is_verified = true;
                    answered = Instant::now();
                    if std::mem::take(&mut is_failing) {
                        tracing::info!(target: "polybus", lease = self.name, "the monitor's lease can be asked for again");
                    }
                    self.lead(holds);
                    if !holds && !std::mem::replace(&mut is_standing_by, true) {
                        tracing::info!(
                            target: "polybus", lease = self.name,
                            "another process polls, and this process' monitor stands by"
                        );
                    }
                    LEADER_TERM / 3
                }
                Err(e) if !is_verified && matches!(e.kind(), ErrorKind::ConfigInvalid | ErrorKind::Closed) => return e,
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(
                            target: "polybus", lease = self.name, %error,
                            "the monitor's lease cannot be asked for; while that lasts, more than one process may poll"
                        );
                    }
                    if answered.elapsed() >= LEADER_TERM {
                        self.lead(true);
                    }
                    LEADER_TERM / 10
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Answers whether this process has the lease.
    async fn take_or_renew(&self) -> Result<bool> {
        let leases = self.control.leases();
        let held = self.held.lock().clone();
        let mut now = match held.is_empty() {
            true => Vec::new(),
            false => leases.renew(&held, &self.owner, LEADER_TERM).await?,
        };
        if now.is_empty() {
            now = leases.acquire(std::slice::from_ref(&self.name), &self.owner, LEADER_TERM).await?;
        }
        let holds = !now.is_empty();
        *self.held.lock() = now;
        Ok(holds)
    }

    fn lead(&self, yes: bool) {
        let changed = self.leads.send_if_modified(|leads| std::mem::replace(leads, yes) != yes);
        if changed {
            let (lease, text) = (&*self.name, if yes { "polls from now on" } else { "no longer polls" });
            tracing::info!(target: "polybus", lease, "this process' monitor {text}");
        }
    }

    /// Gives the lease back, so that another process polls after its next look, within a third of the term.
    pub(super) async fn leave(&self) {
        let held = std::mem::take(&mut *self.held.lock());
        if held.is_empty() {
            return;
        }
        let released = in_time(LEADER_TERM / 3, self.control.leases().release(&held, &self.owner)).await;
        if let Err(error) = released {
            tracing::warn!(target: "polybus", lease = self.name, %error, "the monitor's lease is free after its term only");
        }
    }
}

async fn in_time<T>(limit: Duration, call: impl Future<Output = Result<T>>) -> Result<T> {
    let away = |text: String| Error::new(ErrorKind::Unavailable, text).safe();
    match timeout(limit, caught(call)).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(away(format!("the store panicked: {panic}"))),
        Err(_) => Err(away(format!("the database did not answer within {limit:?}"))),
    }
}
