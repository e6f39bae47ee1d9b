//! The settings of a subscription.

use std::{future::Future, time::Duration};

use polybus_core::{Error, HandlerError, Result, RetryPolicy, topology::TypeFilter};

use super::{
    super::{EventLog, LoggedEvent},
    attempt::{Outside, WithTransaction},
    engine,
};
use crate::store::LogStore;

/// The longest name, in bytes.
const MAX_NAME: usize = 128;

/// Runs a handler over the events of the log, in their order, each once for each name: one process at a time runs it, and
/// how far it has come is in the database.
///
/// | the handler | the subscription |
/// |---|---|
/// | `Ok` | goes on |
/// | an error, a panic | tries again after the next delay of [`retry`](Self::retry); a batch is then handled one by one |
/// | still fails after [`max_attempts`](Self::max_attempts), or fails for good | **stops** at this event, and says so |
/// | while the database is away | waits |
///
/// A subscription that has stopped stays so in all processes until somebody [resumes](crate::log::LogAdmin::resume) it or
/// [skips](crate::log::LogAdmin::skip) the event: going on by itself would leave out what later events rely on.
///
/// ```no_run
/// # use polybus_core::{Event, HandlerError};
/// # use polybus_patterns::{log::EventLog, store::LogStore};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPaid { cents: i64 }
/// # impl Event for OrderPaid { const TYPE: &'static str = "order.paid"; const VERSION: u32 = 1; }
/// # async fn example<S: LogStore>(log: EventLog<S>) -> polybus_core::Result<()> {
/// let stop = async { tokio::signal::ctrl_c().await.unwrap_or_default() };
/// let revenue = log.subscription("revenue").types(["order.paid"]);
/// revenue.run_tx(stop, (), async |(), tx, events| {
///     for event in &events {
///         let paid: OrderPaid = event.decode()?;
///         // … the projection's own statements on `tx` …
///         println!("{}", paid.cents);
///     }
///     Ok(tx) // effect and checkpoint commit together
/// }).await?;
/// # Ok(()) }
/// ```
#[must_use = "call run_tx or run"]
pub struct Subscription<S> {
    pub(super) log: EventLog<S>,
    pub(super) name: Box<str>,
    pub(super) types: Vec<TypeFilter>,
    pub(super) settings: SubscriptionSettings,
}

#[derive(Clone, Debug)]
pub(super) struct SubscriptionSettings {
    pub(super) begin_behind: i64,
    pub(super) batch: usize,
    pub(super) retry: RetryPolicy,
    pub(super) max_attempts: u32,
    pub(super) poll: Duration,
    pub(super) lease: Duration,
}

/// What a subscription did in this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionReport {
    /// Events whose handling was committed.
    pub handled: u64,
    /// Tries that failed.
    pub failed: u64,
}

impl<S: LogStore> Subscription<S> {
    pub(in crate::log) fn new(log: &EventLog<S>, name: Box<str>) -> Self {
        let settings = SubscriptionSettings {
            begin_behind: 0,
            batch: 100,
            retry: RetryPolicy::exponential(Duration::from_millis(100), 3.0, Duration::from_secs(30)),
            max_attempts: 5,
            poll: Duration::from_millis(200),
            lease: Duration::from_secs(10),
        };
        Self { log: log.clone(), name, types: Vec::new(), settings }
    }

    /// Takes these types alone: exact ones, or all under a dot (`order.*`). Default: all.
    ///
    /// ```no_run
    /// # fn example<S: polybus_patterns::store::LogStore>(s: polybus_patterns::log::Subscription<S>) {
    /// let s = s.types(["order.*", "payment.made"]);
    /// # }
    /// ```
    pub fn types<F: Into<TypeFilter>>(mut self, types: impl IntoIterator<Item = F>) -> Self {
        self.types = types.into_iter().map(Into::into).collect();
        self
    }

    /// Begins behind this position where the subscription is new. Default 0: at the beginning of the log.
    ///
    /// It must be the position of an event that was read.
    ///
    /// ```no_run
    /// # fn example<S: polybus_patterns::store::LogStore>(s: polybus_patterns::log::Subscription<S>) {
    /// let s = s.begin_behind(4711);
    /// # }
    /// ```
    pub fn begin_behind(mut self, position: i64) -> Self {
        self.settings.begin_behind = position;
        self
    }

    /// Sets how many events the handler gets at most, 1 to 10,000. Default 100.
    ///
    /// ```no_run
    /// # fn example<S: polybus_patterns::store::LogStore>(s: polybus_patterns::log::Subscription<S>) {
    /// let s = s.batch(1); // one transaction for each event
    /// # }
    /// ```
    pub fn batch(mut self, events: usize) -> Self {
        self.settings.batch = events;
        self
    }

    /// Sets the delays between attempts. Default: 100 ms, three times as long each time, up to 30 s.
    ///
    /// ```no_run
    /// # use polybus_core::RetryPolicy;
    /// # use std::time::Duration;
    /// # fn example<S: polybus_patterns::store::LogStore>(s: polybus_patterns::log::Subscription<S>) {
    /// let s = s.retry(RetryPolicy::new([1, 10, 60].map(Duration::from_secs)));
    /// # }
    /// ```
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.settings.retry = policy;
        self
    }

    /// Sets how often an event is tried before the subscription stops at it, at least 1. Default 5. While the database
    /// is away nothing counts.
    ///
    /// ```no_run
    /// # fn example<S: polybus_patterns::store::LogStore>(s: polybus_patterns::log::Subscription<S>) {
    /// let s = s.max_attempts(10);
    /// # }
    /// ```
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.settings.max_attempts = attempts;
        self
    }

    /// Sets how often the log is looked at where nobody tells of new events. Default 200 ms.
    ///
    /// ```no_run
    /// # fn example<S: polybus_patterns::store::LogStore>(s: polybus_patterns::log::Subscription<S>) {
    /// let s = s.poll(std::time::Duration::from_secs(1));
    /// # }
    /// ```
    pub fn poll(mut self, interval: Duration) -> Self {
        self.settings.poll = interval;
        self
    }

    /// Sets how long the subscription stands still after the process that ran it was killed, at least 1 s. Default 10 s.
    ///
    /// ```no_run
    /// # fn example<S: polybus_patterns::store::LogStore>(s: polybus_patterns::log::Subscription<S>) {
    /// let s = s.lease(std::time::Duration::from_secs(5));
    /// # }
    /// ```
    pub fn lease(mut self, term: Duration) -> Self {
        self.settings.lease = term;
        self
    }

    /// Runs the handler with the transaction in which the checkpoint moves, until `shutdown` has ended. What the handler
    /// writes in it is there once, whatever is killed in between. Another process that has the same subscription takes
    /// over when this one ends. The shutdown waits for a handler that runs, and for nothing else.
    ///
    /// The checkpoint is written before the handler runs, and read back before the commit: a handler that went on after an
    /// error that ended its transaction is not believed.
    ///
    /// # Errors
    /// - `InvalidArgument`: a name of 0 or more than 128 bytes, a batch of 0, no attempt, a lease below 1 s.
    /// - `ConfigInvalid`: the tables are missing, or of a version that this code does not know; the database is a standby.
    /// - `Closed`: the store's pool was closed.
    ///
    /// # Cancel safety
    /// Dropping the future rolls back what is under way.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # async fn example<S: LogStore>(log: EventLog<S>) -> polybus_core::Result<()> {
    /// let report = log.subscription("all").run_tx(std::future::pending(), (), async |(), tx, _events| Ok(tx)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn run_tx<T, F, Fut>(
        self,
        shutdown: impl Future<Output = ()>,
        state: T,
        handler: F,
    ) -> Result<SubscriptionReport>
    where
        T: Clone + Send + Sync,
        F: Fn(T, S::Tx, Vec<LoggedEvent>) -> Fut + Send + Sync,
        Fut: Future<Output = std::result::Result<S::Tx, HandlerError>> + Send,
    {
        self.check()?;
        let how = WithTransaction { state, handler };
        engine::run(self, shutdown, how).await
    }

    /// Runs the handler, and moves the checkpoint after it: for effects that are not in this database. At least once: a
    /// process that is killed between the two handles the events again.
    ///
    /// # Errors
    /// Those of [`run_tx`](Self::run_tx).
    ///
    /// # Cancel safety
    /// That of [`run_tx`](Self::run_tx).
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::EventLog, store::LogStore};
    /// # async fn example<S: LogStore>(log: EventLog<S>) -> polybus_core::Result<()> {
    /// let search = log.subscription("search-index");
    /// search.run(std::future::pending(), "http://search", async |url, events| {
    ///     println!("{} events to {url}", events.len());
    ///     Ok(())
    /// }).await?;
    /// # Ok(()) }
    /// ```
    pub async fn run<T, F, Fut>(
        self,
        shutdown: impl Future<Output = ()>,
        state: T,
        handler: F,
    ) -> Result<SubscriptionReport>
    where
        T: Clone + Send + Sync,
        F: Fn(T, Vec<LoggedEvent>) -> Fut + Send + Sync,
        Fut: Future<Output = std::result::Result<(), HandlerError>> + Send,
    {
        self.check()?;
        let how = Outside { state, handler };
        engine::run(self, shutdown, how).await
    }

    fn check(&self) -> Result<()> {
        let settings = &self.settings;
        let wrong = |text: String| Err(Error::invalid(text).with_context("subscription", self.name.escape_debug()));
        if !(1..=MAX_NAME).contains(&self.name.len()) || self.name.contains('\0') {
            return wrong(format!("the name of a subscription has 1 to {MAX_NAME} bytes, without U+0000"));
        }
        if !(1..=10_000).contains(&settings.batch) {
            return wrong(format!("a subscription's batch of {}: 1 to 10,000 events are taken", settings.batch));
        }
        if settings.max_attempts == 0 {
            return wrong("a subscription with no attempt: use at least 1".into());
        }
        if settings.lease < Duration::from_secs(1) || settings.poll.is_zero() {
            return wrong("use a lease of at least 1 s, and a polling interval above 0".into());
        }
        if settings.begin_behind < 0 {
            return wrong("a subscription begins at 0 or behind a position".into());
        }
        Ok(())
    }
}
