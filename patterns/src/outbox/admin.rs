//! Looking after what waits: counting, parked rows, pausing an address.

use polybus_core::{Address, Envelope, Result};

use super::Outbox;
use crate::store::{OutboxStats, OutboxStore, ParkedFilter, ParkedRow};
use crate::stored_head::decode_head;

/// Up to how many rows [`Outbox::stats`] counts.
pub const STATS_CAP: u32 = 100_000;

impl<S: OutboxStore> Outbox<S> {
    /// How much waits. Each number is counted up to [`STATS_CAP`], since a large backlog must not cost a scan.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// let stats = outbox.stats().await?;
    /// println!("{} wait, the oldest for {:?}; {} are parked", stats.ready, stats.oldest_age, stats.parked);
    /// # Ok(()) }
    /// ```
    pub async fn stats(&self) -> Result<OutboxStats> {
        self.store.outbox().stats(STATS_CAP).await
    }

    /// A page of the parked rows: those with ids above `after`, the lowest first.
    ///
    /// A row is parked when it can never be sent as it is, such as one that is too large for the broker. What a missing
    /// topic or a missing permission holds up is not parked: it waits.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// let mut after = 0;
    /// loop {
    ///     let page = outbox.parked(&ParkedFilter::All, after, 100).await?;
    ///     let Some(last) = page.last() else { break };
    ///     after = last.id;
    ///     page.iter().for_each(|row| println!("{} to {}: {}", row.id, row.address, row.reason));
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn parked(&self, filter: &ParkedFilter, after: i64, limit: u32) -> Result<Vec<ParkedRow>> {
        self.store.outbox().parked(filter, after, limit).await
    }

    /// Puts parked rows back, in their old places, and lets their keys go. Answers how many.
    ///
    /// # Errors
    /// Those of the database. Calling again is safe: what was put back is parked no more.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not carry it out.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// outbox.retry_parked(&ParkedFilter::Reason("PayloadTooLarge".into())).await?;
    /// # Ok(()) }
    /// ```
    pub async fn retry_parked(&self, filter: &ParkedFilter) -> Result<u64> {
        let moved = self.store.outbox().retry_parked(filter).await?;
        self.wake();
        Ok(moved)
    }

    /// Deletes parked rows, and lets their keys go. Answers how many. Their messages are lost.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not carry it out.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// outbox.discard_parked(&ParkedFilter::Ids(vec![7])).await?;
    /// # Ok(()) }
    /// ```
    pub async fn discard_parked(&self, filter: &ParkedFilter) -> Result<u64> {
        let gone = self.store.outbox().discard_parked(filter).await?;
        self.wake();
        Ok(gone)
    }

    /// Stops publishing to an address, in all relays, within their polling interval. Its rows wait.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not carry it out.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::Address;
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// outbox.pause(Address::topic("order-events")).await?;
    /// # Ok(()) }
    /// ```
    pub async fn pause(&self, address: impl Into<Address>) -> Result<()> {
        self.store.outbox().set_paused(&address.into().to_string(), true).await
    }

    /// Goes on publishing to an address.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future may or may not carry it out.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::Address;
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// outbox.resume(Address::topic("order-events")).await?;
    /// # Ok(()) }
    /// ```
    pub async fn resume(&self, address: impl Into<Address>) -> Result<()> {
        self.store.outbox().set_paused(&address.into().to_string(), false).await?;
        self.wake();
        Ok(())
    }

    /// The addresses that are paused.
    ///
    /// # Errors
    /// Those of the database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// outbox.paused().await?.iter().for_each(|address| println!("{address} is paused"));
    /// # Ok(()) }
    /// ```
    pub async fn paused(&self) -> Result<Vec<String>> {
        self.store.outbox().paused().await
    }
}

impl ParkedRow {
    /// The message of the row.
    ///
    /// # Errors
    /// `Malformed` if it cannot be read, which is then why it was parked.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example(row: ParkedRow) -> polybus_core::Result<()> {
    /// println!("{} of type {}", row.message()?.id, row.message()?.event_type);
    /// # Ok(()) }
    /// ```
    pub fn message(&self) -> Result<Envelope> {
        decode_head(&self.head, self.data.clone())
    }
}
