//! Settling deliveries.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{connection::MemoryConsumer, fail, message_store::LockToken, sender};
use crate::{
    ErrorKind, Result,
    driver::{Batching, DriverToken, SettleRequest, Settlement, Settler},
};

pub(super) struct MemorySettler {
    consumer: Arc<MemoryConsumer>,
    /// The largest message in bytes.
    limit: usize,
}

impl MemorySettler {
    pub(super) fn new(consumer: Arc<MemoryConsumer>, limit: usize) -> Self {
        Self { consumer, limit }
    }

    /// The token of a settlement that may be carried out. A message that replaces a dead letter must be small enough
    /// to be published.
    fn check<'a>(&self, current: &MemoryConsumer, settle: &'a SettleRequest) -> Result<&'a LockToken> {
        let token = self.token(current, &settle.token)?;
        if let Settlement::RedriveAs(message) = &settle.how {
            sender::check_size(message, self.limit)?;
        }
        Ok(token)
    }

    fn token<'a>(&self, current: &MemoryConsumer, token: &'a DriverToken) -> Result<&'a LockToken> {
        let token = token.get::<LockToken>()?;
        if token.consumer == current.id {
            return Ok(token);
        }
        match self.consumer.was(token.consumer) {
            true => Err(fail(ErrorKind::LockLost, "the source was deleted since")),
            false => Err(fail(ErrorKind::Unexpected, "a token of another consumer")),
        }
    }
}

#[async_trait]
impl Settler for MemorySettler {
    fn batching(&self) -> Batching {
        Batching::new(1024, usize::MAX, 4)
    }

    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
        let current = self.consumer.current();
        let MemoryConsumer { queue, kind, origin, .. } = current;
        queue.settle(*kind, batch.iter().map(|s| (self.check(current, s), s)), origin)
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        let current = self.consumer.current();
        current.queue.extend(current.kind, tokens.iter().map(|t| self.token(current, t)), by)
    }

    fn holds(&self, token: &DriverToken) -> bool {
        let current = self.consumer.current();
        self.token(current, token).is_ok_and(|token| current.queue.holds(current.kind, token))
    }

    async fn close(&self) -> Result<()> {
        self.consumer.leave();
        Ok(())
    }
}

impl Drop for MemorySettler {
    fn drop(&mut self) {
        self.consumer.leave();
    }
}
