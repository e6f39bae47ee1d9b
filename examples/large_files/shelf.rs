//! What has arrived.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use polybus::{Envelope, HandlerContext, HandlerError};

use super::{
    files::{SHA256, hash},
    report::Summary,
};

#[derive(Default)]
pub struct Shelf(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    seen: BTreeSet<Box<str>>,
    bytes: u64,
    duplicates: u64,
    wrong: u64,
}

impl Shelf {
    /// The handler: the payload is here, wherever it waited.
    pub async fn take(self: Arc<Self>, _cx: HandlerContext, msg: Envelope) -> Result<(), HandlerError> {
        let sent = msg.headers.get(SHA256).map(str::to_owned);
        let data = msg.data.clone();
        let found = tokio::task::spawn_blocking(move || hash(&data)).await?;
        let mut counts = self.counts();
        if !counts.seen.insert(msg.id.clone()) {
            counts.duplicates += 1;
        } else if sent != Some(found) {
            counts.wrong += 1;
        } else {
            counts.bytes += msg.data.len() as u64;
        }
        Ok(())
    }

    pub fn arrived(&self) -> u64 {
        self.counts().seen.len() as u64
    }

    pub fn count(&self, summary: &mut Summary) {
        let counts = self.counts();
        summary.arrived = counts.seen.len() as u64;
        (summary.arrived_bytes, summary.duplicates, summary.wrong) = (counts.bytes, counts.duplicates, counts.wrong);
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
