//! A layer around a driver that remembers what was published through it.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

use async_trait::async_trait;

use crate::{
    Address, Error, Outgoing, Receipt, Result,
    driver::{Batching, Driver, DriverLayer, PreparedMessage, Sender},
    topology::Entity,
};

/// What was published, by address.
#[derive(Default)]
pub(crate) struct PublishLog(Mutex<HashMap<Address, Vec<Outgoing>>>);

impl PublishLog {
    pub(crate) fn published(&self, to: &Address) -> Vec<Outgoing> {
        self.0.lock().get(to).cloned().unwrap_or_default()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().clear();
    }

    fn record(&self, to: &Address, messages: impl Iterator<Item = Outgoing>) {
        let mut all = self.0.lock();
        all.entry(to.clone()).or_default().extend(messages);
    }
}

pub(crate) struct RecordingDriver {
    pub(crate) inner: Arc<dyn Driver>,
    pub(crate) log: Arc<PublishLog>,
}

struct RecordingSender {
    inner: Arc<dyn Sender>,
    to: Address,
    log: Arc<PublishLog>,
}

#[async_trait]
impl DriverLayer for RecordingDriver {
    fn inner(&self) -> &dyn Driver {
        &*self.inner
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        let inner = self.inner.open_sender(to).await?;
        Ok(Arc::new(RecordingSender { inner, to: to.name.clone(), log: self.log.clone() }))
    }
}

#[async_trait]
impl Sender for RecordingSender {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.inner.prepare(message)
    }

    fn held_back(&self) -> Option<Error> {
        self.inner.held_back()
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let results = self.inner.send(batch).await;
        let stored = batch.iter().zip(&results).filter(|(_, result)| result.is_ok());
        self.log.record(&self.to, stored.map(|(prepared, _)| prepared.message.clone()));
        results
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
