//! The handle of the event log: appending in the caller's transaction.

use std::sync::Arc;

use polybus_core::{Error, ErrorKind, Result};

use super::{Append, Appended, Subscription, admin::LogAdmin, append::StoredAppend, publish::LogPublisher};
use crate::{
    Outbox,
    store::{LogStore, OutboxStore, StreamAppend},
    telemetry,
    types::Types,
};

/// The most streams of one [`EventLog::append_all`].
const MAX_STREAMS: usize = 100;

/// The event log in a store. Cheap to clone.
///
/// # What it guarantees
/// - Two transactions that append to a stream with the same expectation do not both succeed: one is told of the conflict.
/// - Events of a stream have the versions 1, 2, 3 … without gaps; an event is there if its transaction has committed.
/// - Whoever reads the log in order misses no event, in whatever order transactions commit.
///
/// # What it does not
/// - Order between streams: positions follow neither the clock nor the order of commits exactly.
/// - Speed for readers beside a transaction that has appended and stays open: on PostgreSQL they wait for its end, and on
///   MySQL and SQLite other appenders do. Append last, and commit.
///
/// ```no_run
/// # use polybus_core::Event;
/// # use polybus_patterns::store::LogStore;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPaid { cents: i64 }
/// # impl Event for OrderPaid { const TYPE: &'static str = "order.paid"; const VERSION: u32 = 1; }
/// use polybus_patterns::log::{Append, EventLog, Expect};
///
/// # async fn example<S: LogStore>(db: S) -> polybus_core::Result<()> {
/// let log = EventLog::new(&db).event_source("/shop");
/// let mut tx = db.begin().await?;
/// let paid = Append::to("order-7").expect(Expect::Version(3)).event(&OrderPaid { cents: 1999 });
/// match log.append(&mut tx, paid).await {
///     Ok(appended) => println!("version {}", appended.version),
///     Err(e) if e.kind() == polybus_core::ErrorKind::Conflict => println!("read it again, and decide anew"),
///     Err(e) => return Err(e),
/// }
/// S::commit(tx).await?;
/// log.wake();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct EventLog<S> {
    pub(super) store: S,
    event_source: Box<str>,
    pub(super) types: Types,
    publisher: Option<Arc<dyn LogPublisher<S>>>,
}

impl<S: LogStore> EventLog<S> {
    /// The log in this store. No I/O.
    ///
    /// ```no_run
    /// # fn example<S: polybus_patterns::store::LogStore>(db: S) {
    /// let log = polybus_patterns::log::EventLog::new(&db);
    /// # }
    /// ```
    pub fn new(store: &S) -> Self {
        Self { store: store.clone(), event_source: "polybus".into(), types: Types::new(), publisher: None }
    }

    /// Names the service that appends, a URI-reference. It is the source of its events. Default: `polybus`.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # fn example<S: LogStore>(log: EventLog<S>) -> EventLog<S> {
    /// log.event_source("/shop")
    /// # }
    /// ```
    pub fn event_source(mut self, source: impl Into<Box<str>>) -> Self {
        self.event_source = source.into();
        self
    }

    /// Sets how older versions of events are read: see [`types`](crate::types). A log keeps them for ever.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore, types::Types};
    /// # fn example<S: LogStore>(log: EventLog<S>, types: Types) -> EventLog<S> {
    /// log.types(types)
    /// # }
    /// ```
    pub fn types(mut self, types: Types) -> Self {
        self.types = types;
        self
    }

    /// Sets the outbox of [`Append::publish_to`]. It must be on the same database.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Outbox, log::EventLog, store::{LogStore, OutboxStore}};
    /// # fn example<S: LogStore + OutboxStore>(db: S) {
    /// let log = EventLog::new(&db).outbox(&Outbox::new(&db, "/shop"));
    /// # }
    /// ```
    pub fn outbox(mut self, outbox: &Outbox<S>) -> Self
    where
        S: OutboxStore,
    {
        self.publisher = Some(Arc::new(outbox.clone()));
        self
    }

    /// Appends to a stream in the caller's transaction.
    ///
    /// The events get the stream's name as their key, unless they have one, and what is
    /// [current](polybus_core::telemetry::Current): the correlation id, the cause, the trace.
    ///
    /// Where the same events, by their ids and in their order, are in the stream already, at the place that was expected,
    /// nothing is written, and `Ok` tells their old places: an append whose answer was lost can be repeated.
    ///
    /// # Errors
    /// - `Conflict`: the stream is not what was expected, takes no more events, or has some of the ids. Nothing was
    ///   written, and the transaction can go on; a decision that was made on the old state cannot. On PostgreSQL one that
    ///   reads from a snapshot, in which the stream was otherwise, is over.
    /// - `InvalidArgument`: the connection is not in a transaction; no event, more than 1,000, or two with one id; a name
    ///   that no stream can have; an event that cannot be written as JSON, or whose payload is elsewhere.
    /// - `PayloadTooLarge`: more than 4 MiB.
    /// - Those of [`Outbox::enqueue`], where it is to be published. The events are appended then: roll back.
    /// - `ConfigInvalid`: the tables are not there.
    /// - Those of the database.
    ///
    /// # Cancel safety
    /// As that of a statement of the database client: dropped in the middle, roll the transaction back.
    ///
    /// ```no_run
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{log::*, store::LogStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPlaced { cents: i64 }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// # async fn example<S: LogStore>(db: S, log: EventLog<S>) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// log.append(&mut tx, Append::to("order-7").expect(Expect::NoStream).event(&OrderPlaced { cents: 1999 })).await?;
    /// S::commit(tx).await?;
    /// # Ok(()) }
    /// ```
    pub async fn append(&self, conn: &mut S::Conn, append: Append) -> Result<Appended> {
        let appended = self.append_all(conn, [append]).await?;
        let no_answer = || Error::new(ErrorKind::Unexpected, "the store gave no answer for an append");
        appended.into_iter().next().ok_or_else(no_answer)
    }

    /// Appends to several streams in the caller's transaction, all or none. Answers in their order. It locks them in the
    /// order of their names, so that two calls do not lock each other out.
    ///
    /// # Errors
    /// Those of [`append`](Self::append). `InvalidArgument` for more than 100 streams, or one that is there twice.
    ///
    /// # Cancel safety
    /// That of [`append`](Self::append).
    ///
    /// ```no_run
    /// # use polybus_core::Envelope;
    /// # use polybus_patterns::{log::*, store::LogStore};
    /// # async fn example<S: LogStore>(db: S, log: EventLog<S>) -> polybus_core::Result<()> {
    /// let mut tx = db.begin().await?;
    /// let taken = Append::to("account-1").expect(Expect::Version(7)).message(Envelope::new("money.taken", "{}"));
    /// let given = Append::to("account-2").message(Envelope::new("money.given", "{}"));
    /// log.append_all(&mut tx, [taken, given]).await?;
    /// S::commit(tx).await?;
    /// # Ok(()) }
    /// ```
    pub async fn append_all(
        &self,
        conn: &mut S::Conn,
        appends: impl IntoIterator<Item = Append>,
    ) -> Result<Vec<Appended>> {
        let of = |e: Error| e.with_operation("append");
        if !S::in_transaction(conn) {
            return Err(of(Error::invalid("append outside a transaction: begin one")));
        }
        let appends = appends.into_iter().map(|append| append.stored(&self.event_source));
        let appends = appends.collect::<Result<Vec<StoredAppend>>>().map_err(of)?;
        if self.publisher.is_none() && appends.iter().any(|append| append.publish.is_some()) {
            return Err(of(Error::invalid("publish_to without an outbox: set one with EventLog::outbox")));
        }
        if appends.len() > MAX_STREAMS {
            let text = format!("an append to {} streams, and {MAX_STREAMS} are taken", appends.len());
            return Err(of(Error::invalid(text)));
        }
        let mut places: Vec<usize> = (0..appends.len()).collect();
        places.sort_by(|a, b| appends[*a].rows.stream.cmp(&appends[*b].rows.stream));
        if let Some(twice) = places.windows(2).find(|two| appends[two[0]].rows.stream == appends[two[1]].rows.stream) {
            let twice = appends[twice[0]].rows.stream.escape_debug();
            return Err(of(Error::invalid("a stream that is there twice").with_context("stream", twice)));
        }
        let sorted: Vec<StreamAppend> = places.iter().map(|place| appends[*place].rows.clone()).collect();
        let outcomes = self.store.append_events(conn, &sorted).await.map_err(of)?;
        let mut answers: Vec<Option<Appended>> = vec![None; appends.len()];
        for ((place, append), outcome) in places.iter().zip(&sorted).zip(outcomes) {
            let appended = Appended::of(append, outcome).inspect_err(|_| telemetry::log_conflict()).map_err(of)?;
            answers[*place] = Some(appended);
        }
        for (append, answer) in appends.into_iter().zip(&answers) {
            let is_new = answer.as_ref().is_some_and(|answer| answer.is_new);
            if let (Some((to, events)), Some(publisher), true) = (append.publish, &self.publisher, is_new) {
                publisher.publish(conn, &to, events).await?;
            }
        }
        self.store.control().changes().written();
        let answers: Option<Vec<Appended>> = answers.into_iter().collect();
        answers.ok_or_else(|| of(Error::new(ErrorKind::Unexpected, "the store gave no answer for an append")))
    }

    /// Tells the subscriptions of this process that a transaction with events was committed, so that they look at once.
    /// Without it they look a few milliseconds after the append, and again at their polling interval.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # async fn example<S: LogStore>(tx: S::Tx, log: EventLog<S>) -> polybus_core::Result<()> {
    /// S::commit(tx).await?;
    /// log.wake();
    /// # Ok(()) }
    /// ```
    pub fn wake(&self) {
        self.store.control().changes().committed();
    }

    /// A subscription of this name, 1 to 128 bytes. No I/O.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # fn example<S: LogStore>(log: EventLog<S>) {
    /// let revenue = log.subscription("revenue").types(["order.*"]);
    /// # }
    /// ```
    pub fn subscription(&self, name: impl Into<Box<str>>) -> Subscription<S> {
        Subscription::new(self, name.into())
    }

    /// What can be done with subscriptions by hand. No I/O.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # fn example<S: LogStore>(log: EventLog<S>) {
    /// let admin = log.admin();
    /// # }
    /// ```
    pub fn admin(&self) -> LogAdmin {
        LogAdmin::new(self.store.log(), self.store.control())
    }
}
