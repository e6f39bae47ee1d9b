//! A driver that remembers what was published through it.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;

use crate::{
    Address, Batching, Capabilities, Clock, DeclareMode, DeclareReport, Driver, Entity, Error, Outgoing, Plan,
    Prepared, Receipt, Receiver, Result, Sender, Settler, Source, Stats,
};

/// What was published, by address.
#[derive(Default)]
pub(crate) struct Log(Mutex<HashMap<Address, Vec<Outgoing>>>);

impl Log {
    pub(crate) fn published(&self, to: &Address) -> Vec<Outgoing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(to).cloned().unwrap_or_default()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn record(&self, to: &Address, messages: impl Iterator<Item = Outgoing>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(to.clone()).or_default().extend(messages);
    }
}

pub(crate) struct RecordingDriver {
    pub(crate) inner: Arc<dyn Driver>,
    pub(crate) log: Arc<Log>,
}

struct RecordingSender {
    inner: Arc<dyn Sender>,
    to: Address,
    log: Arc<Log>,
}

#[async_trait]
impl Driver for RecordingDriver {
    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn version(&self) -> Option<String> {
        self.inner.version().await
    }

    fn physical_names(&self, plan: &Plan) -> Vec<(String, String)> {
        self.inner.physical_names(plan)
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        self.inner.check(plan)
    }

    async fn declare(&self, plan: &Plan, mode: DeclareMode) -> Result<DeclareReport> {
        self.inner.declare(plan, mode).await
    }

    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
        let inner = self.inner.open_sender(to).await?;
        Ok(Arc::new(RecordingSender { inner, to: to.name.clone(), log: self.log.clone() }))
    }

    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
        self.inner.open_receiver(from).await
    }

    async fn stats(&self, of: &Entity<Source>) -> Result<Stats> {
        self.inner.stats(of).await
    }

    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        self.inner.purge(from).await
    }

    async fn delete(&self, plan: &Plan) -> Result<()> {
        self.inner.delete(plan).await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    fn clock(&self) -> Option<Arc<dyn Clock>> {
        self.inner.clock()
    }

    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        self.inner.native()
    }
}

#[async_trait]
impl Sender for RecordingSender {
    fn batching(&self) -> Batching {
        self.inner.batching()
    }

    fn prepare(&self, message: Outgoing) -> Result<Prepared> {
        self.inner.prepare(message)
    }

    fn held_back(&self) -> Option<Error> {
        self.inner.held_back()
    }

    async fn send(&self, batch: &[Prepared]) -> Vec<Result<Receipt>> {
        let results = self.inner.send(batch).await;
        let stored = batch.iter().zip(&results).filter(|(_, result)| result.is_ok());
        self.log.record(&self.to, stored.map(|(prepared, _)| prepared.message.clone()));
        results
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
