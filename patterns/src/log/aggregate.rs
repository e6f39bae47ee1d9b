//! A state that is made of the events of one stream.

use polybus_core::{Error, ErrorKind, HandlerError, Result, time::OffsetDateTime};

use super::{EventLog, Expect, LoggedEvent, STREAM_DELETED};
use crate::store::LogStore;

/// How many events are read at once.
const PAGE: u32 = 1_000;

/// A state that is made of the events of a stream, one after the other. [`EventLog::load`] makes it.
///
/// ```
/// # use polybus_core::{Event, HandlerError};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPaid { cents: i64 }
/// # impl Event for OrderPaid { const TYPE: &'static str = "order.paid"; const VERSION: u32 = 1; }
/// use polybus_patterns::log::{Aggregate, LoggedEvent};
///
/// #[derive(Default)]
/// struct Order {
///     paid: i64,
/// }
///
/// impl Aggregate for Order {
///     fn apply(&mut self, event: &LoggedEvent) -> Result<(), HandlerError> {
///         match &*event.message.event_type {
///             OrderPaid::TYPE => self.paid += event.decode::<OrderPaid>()?.cents,
///             // What does not matter here.
///             _ => {}
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Aggregate: Default + Send {
    /// Takes the next event. An error ends the load: a state that has left something out decides wrongly.
    ///
    /// # Errors
    /// What the implementation cannot read.
    fn apply(&mut self, event: &LoggedEvent) -> std::result::Result<(), HandlerError>;
}

/// A state, and the version that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded<A> {
    /// The state.
    pub state: A,
    /// The version of the last event in it; 0 if the stream is not there.
    pub version: u64,
}

impl<A> Loaded<A> {
    /// What the stream must be for an append that was decided on this state.
    ///
    /// ```
    /// # use polybus_patterns::log::{Append, Loaded};
    /// # fn example(order: Loaded<u8>) {
    /// let append = Append::to("order-7").expect(order.expect());
    /// # }
    /// ```
    pub fn expect(&self) -> Expect {
        Expect::Version(self.version)
    }
}

/// Up to where a state is made.
#[derive(Clone, Copy)]
enum AsOf {
    Now,
    Version(u64),
    Time(OffsetDateTime),
}

impl AsOf {
    fn has(self, event: &LoggedEvent) -> bool {
        match self {
            Self::Now => true,
            Self::Version(version) => event.version <= version,
            Self::Time(time) => event.at <= time,
        }
    }
}

impl<S: LogStore> EventLog<S> {
    /// The state of a stream: all of its committed events applied. The default where it is
    /// not there, or deleted.
    ///
    /// # Errors
    /// Those of [`read`](Self::read). `Malformed` where [`Aggregate::apply`] fails, with the position of the event.
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_core::{Event, HandlerError};
    /// # use polybus_patterns::{log::*, store::LogStore};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPaid { cents: i64 }
    /// # impl Event for OrderPaid { const TYPE: &'static str = "order.paid"; const VERSION: u32 = 1; }
    /// # #[derive(Default)] struct Order { paid: i64 }
    /// # impl Aggregate for Order { fn apply(&mut self, _: &LoggedEvent) -> Result<(), HandlerError> { Ok(()) } }
    /// # async fn example<S: LogStore>(db: S, log: EventLog<S>) -> polybus_core::Result<()> {
    /// let order = log.load::<Order>("order-7").await?;
    /// if order.state.paid == 0 {
    ///     let mut tx = db.begin().await?;
    ///     // A conflict where somebody was faster: load it again.
    ///     log.append(&mut tx, Append::to("order-7").expect(order.expect()).event(&OrderPaid { cents: 1999 })).await?;
    ///     S::commit(tx).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn load<A: Aggregate>(&self, stream: &str) -> Result<Loaded<A>> {
        self.load_as_of(stream, AsOf::Now).await
    }

    /// The state as it was at this version of the stream, which it may not have reached.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_patterns::{log::*, store::LogStore};
    /// # async fn example<S: LogStore, Order: Aggregate>(log: EventLog<S>) -> polybus_core::Result<()> {
    /// let before = log.load_at_version::<Order>("order-7", 3).await?;
    /// # Ok(()) }
    /// ```
    pub async fn load_at_version<A: Aggregate>(&self, stream: &str, version: u64) -> Result<Loaded<A>> {
        self.load_as_of(stream, AsOf::Version(version)).await
    }

    /// The state as it was at this time: of all events that were appended until then, by the database's clock when they
    /// were, which may be a moment before their transactions committed.
    ///
    /// # Errors
    /// Those of [`load`](Self::load).
    ///
    /// # Cancel safety
    /// Dropping the future has no effect.
    ///
    /// ```no_run
    /// # use polybus_core::time::OffsetDateTime;
    /// # use polybus_patterns::{log::*, store::LogStore};
    /// # async fn example<S: LogStore, Order: Aggregate>(log: EventLog<S>, noon: OffsetDateTime) -> polybus_core::Result<()> {
    /// let at_noon = log.load_at_time::<Order>("order-7", noon).await?;
    /// # Ok(()) }
    /// ```
    pub async fn load_at_time<A: Aggregate>(&self, stream: &str, time: OffsetDateTime) -> Result<Loaded<A>> {
        self.load_as_of(stream, AsOf::Time(time)).await
    }

    /// The state from this one on.
    pub(super) async fn load_from<A: Aggregate>(&self, stream: &str, begin: Loaded<A>) -> Result<Loaded<A>> {
        self.load_up_to(stream, begin, AsOf::Now).await
    }

    async fn load_as_of<A: Aggregate>(&self, stream: &str, as_of: AsOf) -> Result<Loaded<A>> {
        self.load_up_to(stream, Loaded { state: A::default(), version: 0 }, as_of).await
    }

    async fn load_up_to<A: Aggregate>(&self, stream: &str, mut loaded: Loaded<A>, as_of: AsOf) -> Result<Loaded<A>> {
        loop {
            let events = self.read(stream, loaded.version, PAGE).await?;
            let is_last = events.len() < PAGE as usize;
            for event in events {
                if !as_of.has(&event) {
                    return Ok(loaded);
                }
                if &*event.message.event_type == STREAM_DELETED {
                    loaded = Loaded { state: A::default(), version: event.version };
                    continue;
                }
                loaded.state.apply(&event).map_err(|e| {
                    let text = format!("an event cannot be applied: {}", e.error());
                    Error::new(ErrorKind::Malformed, text)
                        .with_context("stream", stream.escape_debug())
                        .with_context("position", event.position)
                        .with_context("type", event.message.event_type.escape_debug())
                })?;
                loaded.version = event.version;
            }
            if is_last {
                return Ok(loaded);
            }
        }
    }
}
