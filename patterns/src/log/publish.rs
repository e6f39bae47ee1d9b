//! Publishing what is appended, through the outbox and in the same transaction.

use polybus_core::{Address, Envelope, Result, driver::async_trait};

use crate::{
    Outbox,
    store::{OutboxStore, Store},
};

/// An outbox for those who know the store, but not that it has one.
#[async_trait]
pub(super) trait LogPublisher<S: Store>: Send + Sync {
    async fn publish(&self, conn: &mut S::Conn, to: &Address, events: Vec<Envelope>) -> Result<()>;
}

#[async_trait]
impl<S: OutboxStore> LogPublisher<S> for Outbox<S> {
    async fn publish(&self, conn: &mut S::Conn, to: &Address, events: Vec<Envelope>) -> Result<()> {
        self.enqueue_all(conn, to.clone(), events).await
    }
}
