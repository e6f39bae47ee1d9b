//! Settling deliveries.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{connection::Consumer, fail, message_store::Ticket, sender};
use crate::{
    driver::{Batching, DriverToken, SettleRequest, Settlement, Settler},
    error::{ErrorKind, Result},
};

pub(super) struct MemorySettler {
    consumer: Arc<Consumer>,
    /// Largest message.
    limit: usize,
}

impl MemorySettler {
    pub(super) fn new(consumer: Arc<Consumer>, limit: usize) -> Self {
        Self { consumer, limit }
    }

    /// What takes the place of a dead letter must be a message that could be published.
    fn fits<'a>(&self, current: &Consumer, settle: &'a SettleRequest) -> Result<&'a Ticket> {
        let ticket = self.ticket(current, &settle.token)?;
        if let Settlement::RedriveAs(message) = &settle.how {
            sender::fits(message, self.limit)?;
        }
        Ok(ticket)
    }

    fn ticket<'a>(&self, current: &Consumer, token: &'a DriverToken) -> Result<&'a Ticket> {
        let ticket = token.get::<Ticket>()?;
        if ticket.consumer == current.id {
            return Ok(ticket);
        }
        match self.consumer.was(ticket.consumer) {
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
        let Consumer { queue, side, origin, .. } = current;
        queue.settle(*side, batch.iter().map(|s| (self.fits(current, s), s)), origin)
    }

    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        let current = self.consumer.current();
        current.queue.extend(current.side, tokens.iter().map(|t| self.ticket(current, t)), by)
    }

    fn holds(&self, token: &DriverToken) -> bool {
        let current = self.consumer.current();
        self.ticket(current, token).is_ok_and(|ticket| current.queue.holds(current.side, ticket))
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
