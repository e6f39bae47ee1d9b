//! The inbox: handles each message once, in the transaction of its effects.
//!
//! A broker delivers at least once. The inbox marks a message and runs its handler in one transaction, so a copy that
//! comes later finds the mark and is acknowledged without its handler.
//!
//! The way of a message:
//!
//! 1. `key.rs` makes its key: of source and id, or of what [`Inbox::key_by`] says.
//! 2. `engine.rs` begins a transaction, marks the message first, and runs the handler, which takes the transaction and
//!    gives it back.
//! 3. It **reads the mark back before it commits**: a handler that goes on after an error that ended its transaction
//!    has lost the mark too, though the database answers the COMMIT with Ok.
//! 4. Then the worker acknowledges. Where the answer to the COMMIT was lost, the message comes again and finds its
//!    mark.
//!
//! `patience.rs` waits while the database is away, so that an outage burns no attempt. `handler.rs` and `layer.rs` are
//! the forms for a worker and for tower, [`OpenInbox`] is the one inside a transaction of one's own, and `sweeps.rs`
//! has the rows that become too old.

mod engine;
mod handler;
mod key;
#[cfg(feature = "tower")]
mod layer;
mod open;
mod start_checks;
mod sweeps;

use std::{collections::HashMap, fmt, future::Future, sync::Arc, time::Duration};

use polybus_core::{Envelope, Handler, HandlerContext, HandlerError, Result, Source};
use tokio::sync::{RwLock, watch};

#[cfg(feature = "tower")]
#[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
pub use self::layer::{InboxLayer, InboxRequest, InboxService};
pub use self::open::OpenInbox;
pub(crate) use self::{engine::Engine, start_checks::time_of_retries};
use self::{handler::InboxHandler, start_checks::ComputedPatience};
use crate::{
    sequence::{Guard, SequenceGuard},
    store::{InboxStore, SequenceStore},
    sweeper::SWEEP_INTERVAL,
};

/// For how long marks are kept by default.
pub const DEFAULT_RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long a mark waits at a time for another copy that is under way.
const MARK_WAIT: Duration = Duration::from_secs(5);

/// Handles each message once per consumer. Cheap to clone.
///
/// # What it guarantees
/// - The effects that a handler has in its transaction happen once for each message, however often the broker delivers
///   it, and in whatever process.
/// - A handler that fails, panics, or is dropped leaves no mark and no effect.
/// - A database that is away holds messages up and burns no attempt, as long as [`patience`](Self::patience) lasts.
///
/// # What it does not
/// - Effects outside the transaction, such as a call to another service, may happen twice. Do slow work before the
///   inbox, and keep handlers short: a transaction is open while one runs.
/// - A copy that comes after [`retention`](Self::retention), by a redrive for instance, is handled again.
/// - With asynchronous replication a failover may lose mark and effect of a message that was acknowledged.
///
/// On a database with one writer, as SQLite is, handlers run one at a time, whatever the worker's concurrency.
///
/// ```no_run
/// # use polybus_core::{Bus, HandlerError, Result, Source};
/// # use polybus_patterns::{Inbox, Outbox, store::{InboxStore, OutboxStore}};
/// # async fn example<S: InboxStore + OutboxStore>(bus: Bus, db: S, outbox: Outbox<S>) -> Result<()> {
/// let inbox = Inbox::new(&db, "billing");
/// bus.worker(Source::subscription("order-events", "billing"))
///     .run(inbox.handler(outbox, async |outbox, mut tx, _cx, msg| {
///         // … the application's own statements on `tx` …
///         outbox.enqueue(&mut tx, polybus_core::Address::queue("mail"), msg.clone()).await?;
///         Ok(tx) // the mark, the writes and the outbox commit together, then the message is acknowledged
///     }))
///     .await?;
/// # Ok(()) }
/// ```
pub struct Inbox<S> {
    store: S,
    settings: InboxSettings,
    guard: Option<Arc<Guard<S>>>,
    shared: Arc<InboxShared>,
}

#[derive(Clone)]
struct InboxSettings {
    consumer: Arc<str>,
    retention: Duration,
    sweep_interval: Duration,
    key_by: Option<Arc<KeyFn>>,
    patience: Option<Duration>,
    handler_timeout: Option<Duration>,
    read_back: bool,
}

type KeyFn = dyn Fn(&Envelope) -> Option<String> + Send + Sync;

/// What all clones share.
struct InboxShared {
    /// The consumer's number for each source, once it is known.
    registered: RwLock<HashMap<Source, i32>>,
    /// Closed when the last clone is dropped, which ends the sweeper.
    alive: watch::Sender<()>,
}

impl<S: Clone> Clone for Inbox<S> {
    fn clone(&self) -> Self {
        Self {
            store: self.store.clone(),
            settings: self.settings.clone(),
            guard: self.guard.clone(),
            shared: self.shared.clone(),
        }
    }
}

impl<S> fmt::Debug for Inbox<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("consumer", &self.settings.consumer).finish_non_exhaustive()
    }
}

impl<S: InboxStore> Inbox<S> {
    /// An inbox in this store. No I/O.
    ///
    /// `consumer` names who handles: each consumer handles a message once. It belongs to one source; the same name on
    /// another one is refused, since they would take each other's messages for duplicates.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: InboxStore>(db: S) -> polybus_core::Result<()> {
    /// let inbox = Inbox::new(&db, "billing");
    /// # Ok(()) }
    /// ```
    pub fn new(store: &S, consumer: impl Into<Arc<str>>) -> Self {
        let settings = InboxSettings {
            consumer: consumer.into(),
            retention: DEFAULT_RETENTION,
            sweep_interval: SWEEP_INTERVAL,
            key_by: None,
            patience: None,
            handler_timeout: None,
            read_back: true,
        };
        let shared = InboxShared { registered: RwLock::default(), alive: watch::Sender::new(()) };
        Self { store: store.clone(), settings, guard: None, shared: Arc::new(shared) }
    }

    /// Sets for how long marks are kept: the window in which a copy is known as one. Default 7 days.
    ///
    /// A worker refuses to start with one that is shorter than all its retries together and a day. A dead letter that
    /// is redriven later than this is handled again.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use std::time::Duration;
    /// # async fn example<S: InboxStore>(db: S) -> polybus_core::Result<()> {
    /// let inbox = Inbox::new(&db, "billing").retention(Duration::from_secs(30 * 24 * 3600));
    /// # Ok(()) }
    /// ```
    pub fn retention(mut self, window: Duration) -> Self {
        self.settings.retention = window;
        self
    }

    /// Sets how often old marks are deleted. Default: each hour, by one process at a time. It begins when
    /// the worker starts or the inbox is opened, and ends with the last clone of the inbox.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use std::time::Duration;
    /// # async fn example<S: InboxStore>(db: S) -> polybus_core::Result<()> {
    /// let inbox = Inbox::new(&db, "billing").sweep_every(Duration::from_secs(600));
    /// # Ok(()) }
    /// ```
    pub fn sweep_every(mut self, interval: Duration) -> Self {
        self.settings.sweep_interval = interval.max(Duration::from_secs(1));
        self
    }

    /// Sets what tells a message from others, instead of its source and id: a natural key, such as the number of a
    /// payment. With `None` the message is not marked.
    ///
    /// Messages of foreign programs that came [without an id](Envelope::id_is_made_up) are marked only with this.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # async fn example<S: InboxStore>(db: S) -> polybus_core::Result<()> {
    /// let inbox = Inbox::new(&db, "billing").key_by(|msg| msg.subject.as_deref().map(str::to_owned));
    /// # Ok(()) }
    /// ```
    pub fn key_by(mut self, key: impl Fn(&Envelope) -> Option<String> + Send + Sync + 'static) -> Self {
        self.settings.key_by = Some(Arc::new(key));
        self
    }

    /// Sets how long messages wait for a database that is away. All handlers of the process share one clock; it starts
    /// when the database is first found away. When it ends, handlers fail, and their attempts count.
    ///
    /// Default: without a limit where the broker's locks are renewed; else as long as RabbitMQ's consumer timeout of 30
    /// minutes allows for the last message that was fetched.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use std::time::Duration;
    /// # async fn example<S: InboxStore>(db: S) -> polybus_core::Result<()> {
    /// let inbox = Inbox::new(&db, "billing").patience(Duration::from_secs(600));
    /// # Ok(()) }
    /// ```
    pub fn patience(mut self, limit: Duration) -> Self {
        self.settings.patience = Some(limit);
        self
    }

    /// Sets how long one run of the handler may take, and each of its statements. Use it instead of the worker's own
    /// timeout, which would end the patience as well: a worker refuses to start with one below both together.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use std::time::Duration;
    /// # async fn example<S: InboxStore>(db: S) -> polybus_core::Result<()> {
    /// let inbox = Inbox::new(&db, "billing").handler_timeout(Duration::from_secs(30));
    /// # Ok(()) }
    /// ```
    pub fn handler_timeout(mut self, limit: Duration) -> Self {
        self.settings.handler_timeout = Some(limit);
        self
    }

    /// Follows the numbers of each key, which a [sequenced](crate::Outbox::sequenced) outbox gave them, in the
    /// transaction of each message: see [`SequenceGuard`].
    ///
    /// A worker refuses to start with one on a subscription that takes some types alone, since it would miss the
    /// numbers of the others.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, SequenceGuard, store::*};
    /// # async fn example<S: InboxStore + SequenceStore>(db: S) -> polybus_core::Result<()> {
    /// let inbox = Inbox::new(&db, "billing").sequence_guard(SequenceGuard::new());
    /// # Ok(()) }
    /// ```
    pub fn sequence_guard(mut self, guard: SequenceGuard) -> Self
    where
        S: SequenceStore,
    {
        self.guard = Some(Arc::new(Guard::new(&self.store, guard)));
        self
    }

    /// Leaves out the read-back before the commit. A handler that swallows an error of its transaction is then
    /// acknowledged though nothing was written. For measurements and for the suite's seeded faults alone.
    #[doc(hidden)]
    pub fn without_read_back(mut self) -> Self {
        self.settings.read_back = false;
        self
    }

    /// A handler for a worker: `f` takes a transaction in which the message is marked, and gives it back to be
    /// committed. Each message gets a clone of the state.
    ///
    /// An error rolls everything back, the mark included. A handler that expects an error of a statement uses a
    /// savepoint: one that goes on after an error that ended its transaction is not acknowledged, the log says so, and
    /// the message comes again. It must not commit by itself: mark and later effects would part.
    ///
    /// Deadlocks, serialization failures and locked databases are tried again inside, up to five times, before they
    /// count as an attempt. So `f` may run more than once for one attempt.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::Source;
    /// # async fn example<S: InboxStore>(bus: polybus_core::Bus, db: S) -> polybus_core::Result<()> {
    /// let handler = Inbox::new(&db, "billing").handler((), async |(), tx, _cx, msg| {
    ///     println!("{} for the first time", msg.id); // and the application's own statements on `tx`
    ///     Ok(tx)
    /// });
    /// bus.worker(Source::queue("orders")).run(handler).await?;
    /// # Ok(()) }
    /// ```
    pub fn handler<T, F, Fut>(&self, state: T, f: F) -> impl Handler + use<S, T, F, Fut>
    where
        T: Clone + Send + Sync + 'static,
        F: Fn(T, S::Tx, HandlerContext, Envelope) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<S::Tx, HandlerError>> + Send + 'static,
    {
        InboxHandler::new(self.engine(), state, f)
    }

    /// A layer around a tower service that takes an [`InboxRequest`] and answers with its transaction.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::{Bus, HandlerError, Result, Source};
    /// # use polybus_patterns::inbox::InboxRequest;
    /// # use tower_layer::Layer;
    /// # use tower_service::Service;
    /// # async fn example<S: InboxStore, V>(bus: Bus, inbox: Inbox<S>, service: V) -> Result<()>
    /// # where
    /// #     V: Service<InboxRequest<S::Tx>, Response = S::Tx> + Clone + Send + 'static,
    /// #     V::Error: Into<HandlerError>,
    /// #     V::Future: Send,
    /// # {
    /// let layer = inbox.layer();
    /// let worker = bus.worker(Source::queue("orders")).check_at_start(layer.start_check());
    /// worker.serve(layer.layer(service)).await?;
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "tower")]
    #[cfg_attr(docsrs, doc(cfg(feature = "tower")))]
    pub fn layer(&self) -> InboxLayer<S> {
        InboxLayer::new(self.engine())
    }

    /// The inbox for a source, to mark messages in a transaction of one's own. Open it at the start, before any
    /// transaction: it writes the consumer's name once.
    ///
    /// # Errors
    /// `ConfigInvalid`: the tables are not there, or the consumer's name belongs to another source. Those of the
    /// database.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect but that the name may be written.
    ///
    /// ```no_run
    /// # use polybus_patterns::{Inbox, Mark, Outbox, Relay, inbox::OpenInbox, store::*};
    /// # use polybus_core::Source;
    /// # async fn example<S: InboxStore>(db: S) -> polybus_core::Result<()> {
    /// let billing = Inbox::new(&db, "billing").open(Source::queue("orders")).await?;
    /// # Ok(()) }
    /// ```
    pub async fn open(&self, source: impl Into<Source>) -> Result<OpenInbox<S>> {
        let engine = self.engine();
        let consumer = engine.consumer(&source.into()).await?;
        Ok(OpenInbox::new(engine, consumer))
    }

    pub(crate) fn engine(&self) -> Engine<S> {
        Engine {
            store: self.store.clone(),
            settings: self.settings.clone(),
            guard: self.guard.clone(),
            shared: self.shared.clone(),
            patience: Arc::new(ComputedPatience::default()),
        }
    }
}
