//! Settling deliveries.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{connection::Consumer, fail, half::Ticket, queue::Stamp};
use crate::{Batching, Clock, Kind, Result, Settle, Settler, Token};

pub(super) struct MemorySettler(Arc<Consumer>);

impl MemorySettler {
    pub(super) fn new(consumer: Arc<Consumer>) -> Self {
        Self(consumer)
    }

    fn ticket<'a>(&self, token: &'a Token) -> Result<&'a Ticket> {
        let ticket = token.get::<Ticket>()?;
        if ticket.consumer != self.0.id {
            return Err(fail(Kind::Unexpected, "a token of another consumer"));
        }
        Ok(ticket)
    }
}

#[async_trait]
impl Settler for MemorySettler {
    fn batching(&self) -> Batching {
        Batching::new(1024, usize::MAX, 4)
    }

    async fn settle(&self, batch: &[Settle]) -> Vec<Result<()>> {
        let Consumer { queue, side, origin, connection, .. } = &*self.0;
        let stamp = Stamp { origin, time: &|| connection.clock.now() };
        queue.settle(*side, batch.iter().map(|s| (self.ticket(&s.token), &s.how)), &stamp)
    }

    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<Instant>> {
        self.0.queue.extend(self.0.side, tokens.iter().map(|t| self.ticket(t)), by)
    }

    fn holds(&self, token: &Token) -> bool {
        self.ticket(token).is_ok_and(|ticket| self.0.queue.holds(self.0.side, ticket))
    }

    async fn close(&self) -> Result<()> {
        self.0.leave();
        Ok(())
    }
}

impl Drop for MemorySettler {
    fn drop(&mut self) {
        self.0.leave();
    }
}
