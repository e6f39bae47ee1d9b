//! The transactional outbox: a message is written in the transaction of its cause, and published once that is
//! committed.
//!
//! It closes two gaps: committed but never published, and published but rolled back.
//!
//! [`Outbox`] (this file) writes rows, and `admin.rs` looks after what waits. The [`relay`](crate::relay) publishes.
//! `stored_head.rs` of the crate has the format of a row's attributes and headers.

pub mod admin;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use polybus_core::{
    Address, Envelope, Error, ErrorKind, Outgoing, Result, Topology, driver::kit::crc32c::crc32c,
    telemetry::with_current, time::OffsetDateTime,
};

use crate::{
    claim::ClaimCheck,
    sequence::Numbers,
    store::{NewRow, OutboxRow, OutboxStore, SLOTS, SequenceStore},
    stored_head::encode_head,
};

/// The largest row by default: 1 MiB of attributes, headers and payload.
pub const DEFAULT_MAX_ROW: usize = 1 << 20;

/// Writes messages in the application's transactions. Cheap to clone.
///
/// # What it guarantees
/// - The message of a committed transaction is published at least once; that of one that was rolled back, never.
/// - On ordered addresses the first copies of a key come in the order of enqueueing. That is the order of commits where
///   each transaction locks the entity (its row, say) before it enqueues. Late duplicates may follow newer messages.
///
/// # What it does not
/// - Exactly once: a message may be published twice, with the same id. An [`Inbox`](crate::Inbox) sorts that out.
/// - Order between keys, or of two transactions on one key that nothing serialises.
/// - More than the database keeps: with asynchronous replication, `synchronous_commit = off` or SQLite's
///   `synchronous = NORMAL`, a failover or a power cut may undo a commit whose message was published.
///
/// ```no_run
/// # use polybus_core::{Address, Envelope, Result};
/// # use polybus_patterns::{Outbox, store::{OutboxStore, Store}};
/// # async fn example<S: OutboxStore>(db: S) -> Result<()> {
/// let outbox = Outbox::new(&db, "/shop");
/// let mut tx = db.begin().await?;
/// // … the application's own statements on `tx` …
/// outbox.enqueue(&mut tx, Address::topic("order-events"), Envelope::new("order.placed", "{}").key("order-7")).await?;
/// S::commit(tx).await?;
/// outbox.wake();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Outbox<S> {
    store: S,
    event_source: Box<str>,
    topology: Option<Topology>,
    max_row: usize,
    numbers: Option<Arc<Numbers<S>>>,
    claims: Option<Arc<dyn ClaimCheck>>,
}

impl<S: OutboxStore> Outbox<S> {
    /// An outbox in this store. No I/O.
    ///
    /// `event_source` names the producing service, a URI-reference. Messages without a source of their own get it as
    /// they are enqueued, so that it does not depend on the relay that publishes them.
    ///
    /// ```no_run
    /// # async fn example<S: polybus_patterns::store::OutboxStore>(db: S) -> polybus_core::Result<()> {
    /// let outbox = polybus_patterns::Outbox::new(&db, "/shop");
    /// # Ok(()) }
    /// ```
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(db: S) -> polybus_core::Result<()> {
    /// let outbox = Outbox::new(&db, "/shop");
    /// # Ok(()) }
    /// ```
    pub fn new(store: &S, event_source: impl Into<Box<str>>) -> Self {
        Self {
            store: store.clone(),
            event_source: event_source.into(),
            topology: None,
            max_row: DEFAULT_MAX_ROW,
            numbers: None,
            claims: None,
        }
    }

    /// Tells the topology, so that [`enqueue`](Self::enqueue) refuses a message without a key for an ordered address.
    /// Without it, a relay whose own topology calls the address ordered finds such a row and parks it.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::{TopicSpec, Topology};
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// let topology = Topology::new().topic("order-events", TopicSpec::new().ordered(true));
    /// let outbox = outbox.topology(&topology);
    /// # Ok(()) }
    /// ```
    pub fn topology(mut self, topology: &Topology) -> Self {
        self.topology = Some(topology.clone());
        self
    }

    /// Sets the largest row: attributes, headers and payload together. Default 1 MiB.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// let outbox = outbox.max_row(4 << 20);
    /// # Ok(()) }
    /// ```
    pub fn max_row(mut self, bytes: usize) -> Self {
        self.max_row = bytes;
        self
    }

    /// Numbers the messages of each key and address, 1, 2, 3 and so on, in the attribute `sequence`, so that a
    /// [`SequenceGuard`](crate::SequenceGuard) at the consumer finds what is missing. Messages without a key get no
    /// number.
    ///
    /// A number is drawn in the caller's transaction, and gone with it when that is rolled back: there are no gaps of
    /// its own. From the first enqueue for a key to the end of its transaction others wait that enqueue for it. So the
    /// messages of a key are published in the order of their commits, whatever else the transactions lock; enqueue
    /// last, and keep transactions short. Two that enqueue for the same keys in another order, one call for each, may
    /// lock each other out: the database ends one, and that one is [`Safe`](polybus_core::RetrySafety::Safe) to do
    /// again. One [`enqueue_all`](Self::enqueue_all) sorts by itself.
    ///
    /// Numbers are followed source by source: all messages have the [source](Self::new) of the outbox, and all
    /// producers of a source number in one database. A key that is not used for 60 days begins with 1 again.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Outbox, store::*};
    /// # async fn example<S: OutboxStore + SequenceStore>(db: S) -> polybus_core::Result<()> {
    /// let outbox = Outbox::new(&db, "/shop").sequenced();
    /// # Ok(()) }
    /// ```
    pub fn sequenced(mut self) -> Self
    where
        S: SequenceStore,
    {
        self.numbers = Some(Arc::new(Numbers::new(&self.store)));
        self
    }

    /// Uploads payloads that are larger than the threshold of `claims`, or that make a row larger than
    /// [`max_row`](Self::max_row), before their rows are written: see [`claim`](crate::claim).
    ///
    /// The caller's transaction is open during an upload. Where that takes long, call `Claims::check_in_for` before the
    /// transaction; a message that is checked in already is not uploaded again. What is rolled back leaves an object
    /// that nothing refers to, until its retention ends.
    ///
    /// Retention counts from when a message is due. A row that waits in the outbox beyond it, because its address
    /// cannot be published to or because it is parked, outlives its payload.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Outbox, claim::ClaimCheck, store::*};
    /// # fn example<S: OutboxStore>(db: S, claims: impl ClaimCheck + Clone) {
    /// let outbox = Outbox::new(&db, "/shop").claims(&claims);
    /// # }
    /// ```
    pub fn claims(mut self, claims: &(impl ClaimCheck + Clone)) -> Self {
        self.claims = Some(Arc::new(claims.clone()));
        self
    }

    /// Writes a message in the caller's transaction.
    ///
    /// A message with a [delay](Outgoing::delay) is published once that has passed, on any broker and after any time.
    /// [`expires_in`](Outgoing::expires_in) counts from now, and with a delay from when it is due. The trace of the
    /// caller goes along.
    ///
    /// # Errors
    /// - `InvalidArgument`: the connection is not in a transaction; the envelope breaks a
    ///   [limit](polybus_core::Envelope#limits); an ordered address got no key, or a delay came with a key; the outbox
    ///   is [sequenced](Self::sequenced), and the message has a number already.
    /// - `PayloadTooLarge`: the row is larger than [`max_row`](Self::max_row).
    /// - `ConfigInvalid`: the tables are not there.
    /// - With [claims](Self::claims), those of the upload. `InvalidArgument`: the payload would be gone before the
    ///   delay is over.
    /// - Those of the database. They fail the caller's transaction, and nothing is lost unseen.
    ///
    /// # Cancel safety
    /// As that of a statement of the database client: dropped in the middle, roll the transaction back.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::{Address, Envelope};
    /// # async fn example<S: OutboxStore>(db: S, outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// let order = Envelope::new("order.placed", r#"{"id":7}"#).key("order-7");
    /// outbox.enqueue(&mut tx, Address::topic("order-events"), order).await?;
    /// S::commit(tx).await?;
    /// # Ok(()) }
    /// ```
    pub async fn enqueue(
        &self,
        conn: &mut S::Conn,
        to: impl Into<Address>,
        message: impl Into<Outgoing>,
    ) -> Result<()> {
        self.enqueue_all(conn, to, [message]).await
    }

    /// Writes many messages in the caller's transaction, in their order. All or none.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue), with the id of the message that is wrong.
    ///
    /// # Cancel safety
    /// That of [`enqueue`](Self::enqueue).
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::{Address, Envelope};
    /// # async fn example<S: OutboxStore>(db: S, outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// let lines = (1..=3).map(|n| Envelope::new("line.added", format!(r#"{{"line":{n}}}"#)).key("order-7"));
    /// outbox.enqueue_all(&mut tx, Address::topic("order-events"), lines).await?;
    /// S::commit(tx).await?;
    /// # Ok(()) }
    /// ```
    pub async fn enqueue_all<M: Into<Outgoing>>(
        &self,
        conn: &mut S::Conn,
        to: impl Into<Address>,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<()> {
        if !S::in_transaction(conn) {
            let text = "enqueue outside a transaction: begin one, or say enqueue_outside if you began it by hand";
            return Err(Error::invalid(text).with_operation("enqueue"));
        }
        self.enqueue_outside(conn, to, messages).await
    }

    /// [`enqueue_all`](Self::enqueue_all) on a connection that is in no transaction, as far as its client knows: where
    /// BEGIN was written by hand, or where the message alone is to be written. A [sequenced](Self::sequenced) outbox
    /// refuses it for messages with a key.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue).
    ///
    /// # Cancel safety
    /// Dropped in the middle, the messages may or may not be written.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::{Address, Envelope};
    /// # async fn example<S: OutboxStore>(mut conn: S::Conn, outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// let tick = Envelope::new("clock.ticked", "{}");
    /// outbox.enqueue_outside(&mut conn, Address::queue("ticks"), [tick]).await?;
    /// # Ok(()) }
    /// ```
    pub async fn enqueue_outside<M: Into<Outgoing>>(
        &self,
        conn: &mut S::Conn,
        to: impl Into<Address>,
        messages: impl IntoIterator<Item = M>,
    ) -> Result<()> {
        let to = to.into();
        let messages = messages.into_iter().map(|m| self.ready(&to, m.into()));
        let mut messages = messages.collect::<Result<Vec<Ready>>>()?;
        if messages.is_empty() {
            return Ok(());
        }
        let needed = match &self.numbers {
            Some(numbers) => {
                let needed = numbers.needed(&self.event_source, &to, messages.iter().map(|ready| &ready.envelope));
                needed.map_err(|e| e.with_operation("enqueue"))?
            }
            None => Default::default(),
        };
        if !needed.is_empty() && !S::in_transaction(conn) {
            let text = "a sequenced outbox needs a transaction: its client must know that it is in one";
            return Err(Error::invalid(text).with_operation("enqueue").with_context("address", &to));
        }
        // What is refused anyway is not uploaded.
        for ready in &mut messages {
            self.check_in(&to, ready).await?;
        }
        let Some(numbers) = self.numbers.as_ref().filter(|_| !needed.is_empty()) else {
            return self.write(conn, &to, messages).await;
        };
        // What is refused for its size is refused before a number is drawn.
        for ready in &messages {
            let envelope = ready.envelope.clone().sequence(i64::MAX.unsigned_abs());
            self.new_row(&to, Ready { envelope, delay: ready.delay })?;
        }
        let envelopes = messages.iter_mut().map(|ready| &mut ready.envelope);
        let drawn = numbers.draw(conn, &needed, envelopes).await.map_err(|e| e.with_operation("enqueue"));
        let written = match drawn {
            Ok(()) => self.write(conn, &to, messages).await,
            Err(e) => Err(e),
        };
        numbers.settle(conn, &needed, written.is_ok()).await;
        written
    }

    async fn write(&self, conn: &mut S::Conn, to: &Address, messages: Vec<Ready>) -> Result<()> {
        let rows: Vec<NewRow> = messages.into_iter().map(|ready| self.new_row(to, ready)).collect::<Result<_>>()?;
        self.store.insert(conn, &rows).await.map_err(|e| e.with_operation("enqueue"))?;
        self.store.control().changes().written();
        Ok(())
    }

    /// The statement that writes this message, for a database client that polybus does not know. Run it in the
    /// transaction; its columns are stable.
    ///
    /// # Errors
    /// Those of [`enqueue`](Self::enqueue) that concern the message. `Unsupported` where the outbox is
    /// [sequenced](Self::sequenced): a number is drawn on a connection.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect, but that it may leave a payload that nothing refers to.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::{Address, Envelope};
    /// # async fn example<S: OutboxStore>(outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// let row = outbox.row(Address::queue("payments"), Envelope::new("payment.made", "{}")).await?;
    /// println!("{} with {} values", row.sql, row.values.len()); // run it in the transaction
    /// # Ok(()) }
    /// ```
    pub async fn row(&self, to: impl Into<Address>, message: impl Into<Outgoing>) -> Result<OutboxRow> {
        let to = to.into();
        if self.numbers.is_some() {
            let text = "a statement for another client has no number: use enqueue, or an outbox without sequenced()";
            return Err(Error::unsupported(text).with_operation("enqueue").with_context("address", to));
        }
        let mut ready = self.ready(&to, message.into())?;
        self.check_in(&to, &mut ready).await?;
        let row = self.new_row(&to, ready)?;
        self.store.insert_statement(&row).await
    }

    /// Tells the relays of this process that a transaction was committed, so that they look at once. Without it they
    /// look a few milliseconds after the enqueue, and again at their polling interval.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(tx: S::Tx, outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// S::commit(tx).await?;
    /// outbox.wake();
    /// # Ok(()) }
    /// ```
    pub fn wake(&self) {
        self.store.control().changes().committed();
    }

    /// [`wake`](Self::wake), for the relays of other processes too, where the database can (PostgreSQL, by NOTIFY on a
    /// connection of the store's own) and they [listen](crate::Relay::listen).
    ///
    /// Call it after the commit. NOTIFY inside a transaction would serialise all commits of the database.
    ///
    /// # Errors
    /// Those of the database. Nothing depends on it: relays poll.
    ///
    /// # Cancel safety
    /// Dropping the future may leave other processes untold.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: OutboxStore>(tx: S::Tx, outbox: Outbox<S>) -> polybus_core::Result<()> {
    /// S::commit(tx).await?;
    /// outbox.notify().await?;
    /// # Ok(()) }
    /// ```
    pub async fn notify(&self) -> Result<()> {
        self.wake();
        self.store.control().notify().await
    }

    /// The message as it is written, but for its number.
    fn ready(&self, to: &Address, message: Outgoing) -> Result<Ready> {
        let id = message.envelope.id.clone();
        self.checked(to, message).map_err(|e| of_message(e, to, &id))
    }

    fn checked(&self, to: &Address, message: Outgoing) -> Result<Ready> {
        let Outgoing { mut envelope, delay, expires_in, .. } = message;
        let delay = delay.unwrap_or_default();
        if envelope.source.is_empty() {
            envelope = envelope.source(self.event_source.clone());
        }
        if let Some(after) = expires_in {
            envelope = envelope.expires_at(from_now(delay.saturating_add(after))?);
        }
        let envelope = with_current(envelope);
        envelope.check()?;
        if !delay.is_zero() && envelope.key.is_some() {
            let text = "a delay with a key: the message would come after later ones of its key. Leave out one of them";
            return Err(Error::invalid(text));
        }
        if let Some(topology) = &self.topology
            && envelope.key.is_none()
            && topology.address(to).settings.ordered
        {
            return Err(Error::invalid("an ordered address needs a key: set Envelope::key"));
        }
        Ok(Ready { envelope, delay })
    }

    /// Puts the payload elsewhere, if it is too large for a message or for a row.
    async fn check_in(&self, to: &Address, ready: &mut Ready) -> Result<()> {
        let Some(claims) = &self.claims else { return Ok(()) };
        let sized = |envelope: Envelope| {
            // With the number that may be drawn later.
            let number = envelope.sequence.or_else(|| self.numbers.as_ref().map(|_| i64::MAX.unsigned_abs()));
            let envelope = envelope.edit(|fields| fields.sequence = number);
            row(to, &Ready { envelope, delay: ready.delay }).size()
        };
        if sized(ready.envelope.clone().edit(|fields| fields.data = Bytes::new())) > self.max_row {
            // No payload is the reason, so the row is refused.
            return Ok(());
        }
        let fits = sized(ready.envelope.clone()) <= self.max_row;
        let room = if fits { usize::MAX } else { 0 };
        let checked = claims.check_in_within(ready.envelope.clone(), ready.delay, room).await;
        ready.envelope = checked.map_err(|e| of_message(e, to, &ready.envelope.id))?;
        Ok(())
    }

    fn new_row(&self, to: &Address, message: Ready) -> Result<NewRow> {
        let row = row(to, &message);
        if row.size() > self.max_row {
            let (size, most) = (row.size(), self.max_row);
            let text = format!(
                "a row of {size} bytes, and the outbox takes {most}: keep large payloads elsewhere \
                 (Outbox::claims), or raise Outbox::max_row"
            );
            return Err(of_message(Error::new(ErrorKind::PayloadTooLarge, text), to, &message.envelope.id));
        }
        Ok(row)
    }
}

/// A message that was looked at.
struct Ready {
    envelope: Envelope,
    delay: Duration,
}

fn row(to: &Address, message: &Ready) -> NewRow {
    let Ready { envelope, delay } = message;
    NewRow {
        slot: slot_of(envelope.key.as_deref().unwrap_or(&envelope.id)),
        address: to.to_string(),
        key: envelope.key.as_deref().map(|key| Bytes::copy_from_slice(key.as_bytes())),
        head: encode_head(envelope),
        data: envelope.data.clone(),
        delay: *delay,
    }
}

fn of_message(error: Error, to: &Address, id: &str) -> Error {
    error.with_operation("enqueue").with_context("address", to).with_context("id", id)
}

/// The slot of a key; a message without one goes by its id.
fn slot_of(key: &str) -> i16 {
    (crc32c(key.as_bytes()) % SLOTS as u32) as i16
}

fn from_now(after: Duration) -> Result<OffsetDateTime> {
    let after = polybus_core::time::Duration::try_from(after).ok();
    let at = after.and_then(|after| OffsetDateTime::now_utc().checked_add(after));
    at.ok_or_else(|| Error::invalid("expires_in: the time is too far ahead"))
}
