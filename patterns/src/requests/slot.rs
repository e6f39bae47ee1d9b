//! The slot of a process among several reply queues, held by a lease.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use polybus_core::{Error, ErrorKind, Result};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use uuid::Uuid;

use super::RequestsShared;
use crate::store::{Lease, StoreControl};

/// Time between two looks while all slots are held.
const PAUSE: Duration = Duration::from_secs(1);
/// How long giving a slot back may take.
const GIVE_BACK: Duration = Duration::from_secs(5);

/// A slot that this process holds. It is given back when this is dropped.
pub(super) struct HeldSlot {
    /// Closed when the slot is to be given back.
    stop: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
    guarded: Arc<Mutex<Weak<RequestsShared>>>,
}

impl HeldSlot {
    /// Takes the first of these leases that is free, and answers its place. While none is, it waits for as long as
    /// `patience`.
    pub(super) async fn take(
        control: Arc<dyn StoreControl>,
        names: &[String],
        term: Duration,
        patience: Duration,
    ) -> Result<(usize, Self)> {
        if names.is_empty() {
            return Err(Error::invalid("requests need a reply queue"));
        }
        control.verify(&["lease"]).await?;
        let owner = Uuid::now_v7().to_string();
        let begun = Instant::now();
        loop {
            let asked = Instant::now();
            for (place, name) in names.iter().enumerate() {
                let taken = control.leases().acquire(std::slice::from_ref(name), &owner, term).await?;
                if let Some(lease) = taken.into_iter().next() {
                    let keeper = SlotKeeper {
                        control,
                        lease,
                        owner,
                        term,
                        since: asked,
                        unsure_until: None,
                        guarded: Arc::default(),
                    };
                    return Ok((place, Self::hold(keeper)));
                }
            }
            if begun.elapsed() >= patience {
                let text = format!(
                    "all {} reply queues are held by other processes: declare more, or stop a process",
                    names.len()
                );
                return Err(Error::new(ErrorKind::Unavailable, text).safe().with_operation("open"));
            }
            sleep(PAUSE).await;
        }
    }

    fn hold(keeper: SlotKeeper) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (ending, ended) = watch::channel(false);
        let guarded = keeper.guarded.clone();
        tokio::spawn(async move {
            keeper.run(stopped).await;
            ending.send_replace(true);
        });
        Self { stop, ended, guarded }
    }

    /// The requests that end when the slot is lost for good.
    pub(super) fn guard(&self, shared: &Arc<RequestsShared>) {
        *self.guarded.lock() = Arc::downgrade(shared);
    }

    /// Gives the slot back, and waits for that, but not for long.
    pub(super) async fn give_back(&self) {
        self.stop.send_replace(true);
        let mut ended = self.ended.clone();
        // It fails only if the task is gone, and its lease runs out by itself.
        let _ = timeout(GIVE_BACK, ended.wait_for(|ended| *ended)).await;
    }
}

/// Renews the lease of a slot.
struct SlotKeeper {
    control: Arc<dyn StoreControl>,
    lease: Lease,
    owner: String,
    /// The lease is renewed after a third of it.
    term: Duration,
    /// When the lease was asked for last, of those times that succeeded.
    since: Instant,
    /// Until then the lease may be held under a token that is not known: an answer was lost.
    unsure_until: Option<Instant>,
    guarded: Arc<Mutex<Weak<RequestsShared>>>,
}

impl SlotKeeper {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                // It fails when the slot is dropped.
                _ = stopped.wait_for(|stop| *stop) => break,
                () = sleep(self.term / 3) => {}
            }
            let renewed = tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => break,
                renewed = timeout(self.term / 3, self.renew()) => renewed,
            };
            match renewed {
                Ok(Ok(true)) => {}
                Ok(Ok(false)) if self.unsure_until.is_some_and(|until| Instant::now() < until) => {
                    self.warn(&Error::new(ErrorKind::Unavailable, "an answer of the database was lost"));
                }
                Ok(Ok(false)) => {
                    let text = format!("the slot {} was taken by another process", self.lease.name);
                    tracing::error!(target: "polybus", slot = self.lease.name, "another process holds the slot: all calls end");
                    if let Some(shared) = self.guarded.lock().upgrade() {
                        shared.waiting.close(Error::new(ErrorKind::Unavailable, text));
                    }
                    return;
                }
                // The queue is still this process' as long as nobody takes the slot, which is asked again.
                Ok(Err(e)) => self.unsure(&e),
                Err(_) => self.unsure(&Error::new(ErrorKind::Timeout, "the database does not answer")),
            }
        }
        let leases = self.control.leases();
        let released = leases.release(std::slice::from_ref(&self.lease), &self.owner);
        if let Ok(Err(e)) = timeout(GIVE_BACK, released).await {
            tracing::debug!(target: "polybus", slot = self.lease.name, error = %e, "the slot was not given back, it runs out");
        }
    }

    /// Renews the lease, or takes it again where it ran out and nobody else has it. Answers whether it is held.
    async fn renew(&mut self) -> Result<bool> {
        let asked = Instant::now();
        let leases = self.control.leases();
        let mut held = leases.renew(std::slice::from_ref(&self.lease), &self.owner, self.term).await?;
        if held.is_empty() {
            held = leases.acquire(std::slice::from_ref(&self.lease.name), &self.owner, self.term).await?;
        }
        let Some(lease) = held.into_iter().next() else { return Ok(false) };
        (self.lease, self.since, self.unsure_until) = (lease, asked, None);
        Ok(true)
    }

    /// An answer was lost, and with it perhaps the token of a lease that was taken.
    fn unsure(&mut self, error: &Error) {
        self.unsure_until = Some(Instant::now() + self.term + self.term / 2);
        self.warn(error);
    }

    fn warn(&self, error: &Error) {
        let held_for = self.since.elapsed();
        tracing::warn!(target: "polybus", slot = self.lease.name, ?held_for, %error, "the slot's lease cannot be renewed, again soon");
    }
}
