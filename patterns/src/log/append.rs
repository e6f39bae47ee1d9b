//! What is appended to a stream.

use std::collections::HashSet;

use polybus_core::{Address, Envelope, Error, ErrorKind, Event, Result, telemetry::with_current};

use crate::{
    claim::ClaimReference,
    store::{AppendOutcome, NewLogEvent, StreamAppend, StreamExpectation, StreamState},
    stored_head::encode_head,
};

/// The most events of one append to a stream.
pub const MAX_APPEND_EVENTS: usize = 1_000;

/// The largest append: 4 MiB of payloads, attributes and headers.
pub const MAX_APPEND_SIZE: usize = 4 << 20;

/// The longest name of a stream, in bytes.
pub const MAX_STREAM_NAME: usize = 256;

/// What a stream must be for an append, so that two who decide on the same state do not both succeed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expect {
    /// Anything. It is made where it is not there.
    #[default]
    Any,
    /// It has no event yet.
    NoStream,
    /// It has an event.
    Exists,
    /// Its last event has this version. 0 is the same as [`NoStream`](Self::NoStream).
    Version(u64),
}

impl Expect {
    fn stored(self) -> StreamExpectation {
        match self {
            Self::Any => StreamExpectation::Any,
            Self::NoStream | Self::Version(0) => StreamExpectation::NoStream,
            Self::Exists => StreamExpectation::Exists,
            Self::Version(version) => StreamExpectation::Version(i64::try_from(version).unwrap_or(i64::MAX)),
        }
    }
}

/// Events for one stream, and what the stream must be.
///
/// ```
/// # use polybus_core::Event;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPaid { cents: i64 }
/// # impl Event for OrderPaid { const TYPE: &'static str = "order.paid"; const VERSION: u32 = 1; }
/// use polybus_patterns::log::{Append, Expect};
///
/// let append = Append::to("order-7").expect(Expect::Version(3)).event(&OrderPaid { cents: 1999 });
/// ```
#[derive(Clone, Debug)]
#[must_use = "give it to EventLog::append"]
pub struct Append {
    pub(super) stream: Box<str>,
    expect: Expect,
    pub(super) publish_to: Option<Address>,
    /// The first error of an event that cannot be written comes when it is appended.
    events: Result<Vec<Envelope>>,
}

impl Append {
    /// Nothing yet, for the stream of this name: 1 to 256 bytes. Default: [`Expect::Any`].
    ///
    /// ```
    /// let append = polybus_patterns::log::Append::to("order-7");
    /// ```
    pub fn to(stream: impl Into<Box<str>>) -> Self {
        Self { stream: stream.into(), expect: Expect::Any, publish_to: None, events: Ok(Vec::new()) }
    }

    /// Sets what the stream must be.
    ///
    /// ```
    /// use polybus_patterns::log::{Append, Expect};
    ///
    /// let append = Append::to("order-7").expect(Expect::NoStream);
    /// ```
    pub fn expect(mut self, expect: Expect) -> Self {
        self.expect = expect;
        self
    }

    /// Adds an event.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPaid { cents: i64 }
    /// # impl Event for OrderPaid { const TYPE: &'static str = "order.paid"; const VERSION: u32 = 1; }
    /// let append = polybus_patterns::log::Append::to("order-7").event(&OrderPaid { cents: 1999 });
    /// ```
    pub fn event<E: Event>(self, event: &E) -> Self {
        self.add(Envelope::event(event))
    }

    /// Adds an event with an id, headers or anything else of a message of your own. Appending the same ids again, as
    /// after an answer that was lost, writes them once: see [`EventLog::append`](super::EventLog::append).
    ///
    /// ```
    /// use polybus_core::Envelope;
    /// use polybus_patterns::log::Append;
    ///
    /// let paid = Envelope::new("order.paid", r#"{"cents":1999}"#).id("payment-1204");
    /// let append = Append::to("order-7").message(paid);
    /// ```
    pub fn message(self, message: Envelope) -> Self {
        self.add(Ok(message))
    }

    /// Publishes the events there as well, as messages with the same ids, in the same transaction: by the outbox that
    /// [`EventLog::outbox`](super::EventLog::outbox) has set. Where the append is a repeat, nothing is published again.
    ///
    /// ```
    /// use polybus_core::{Address, Envelope};
    /// use polybus_patterns::log::Append;
    ///
    /// let paid = Append::to("order-7").message(Envelope::new("order.paid", "{}"));
    /// let paid = paid.publish_to(Address::topic("order-events"));
    /// ```
    pub fn publish_to(mut self, to: impl Into<Address>) -> Self {
        self.publish_to = Some(to.into());
        self
    }

    fn add(mut self, message: Result<Envelope>) -> Self {
        match (&mut self.events, message) {
            (Ok(events), Ok(message)) => events.push(message),
            (events @ Ok(_), Err(e)) => *events = Err(e),
            (Err(_), _) => {}
        }
        self
    }

    /// As it is stored.
    ///
    /// # Errors
    /// `InvalidArgument` and `PayloadTooLarge`, as [`EventLog::append`](super::EventLog::append) says.
    pub(super) fn stored(self, source: &str) -> Result<StoredAppend> {
        let Self { stream, expect, publish_to, events } = self;
        let name = stream.clone();
        let stored = || {
            check_stream(&stream)?;
            let events = events?;
            if events.is_empty() {
                return Err(Error::invalid("an append without an event"));
            }
            if events.len() > MAX_APPEND_EVENTS {
                let text = format!("an append of {} events, and {MAX_APPEND_EVENTS} are taken", events.len());
                return Err(Error::invalid(text));
            }
            let (mut ids, mut size) = (HashSet::new(), 0);
            let mut rows = Vec::with_capacity(events.len());
            let mut messages = Vec::new();
            for message in events {
                let message = complete(message, source, &stream)?;
                let row = row(&message);
                size += row.head.len() + row.data.len();
                if !ids.insert(row.id.clone()) {
                    return Err(Error::invalid("an append with two events of one id").with_context("id", &row.id));
                }
                rows.push(row);
                if publish_to.is_some() {
                    messages.push(message);
                }
            }
            if size > MAX_APPEND_SIZE {
                let text = format!(
                    "an append of {size} bytes, and {MAX_APPEND_SIZE} are taken: append less at once, and keep large \
                     payloads elsewhere, with their place in the event"
                );
                return Err(Error::new(ErrorKind::PayloadTooLarge, text));
            }
            let rows = StreamAppend { stream: stream.into(), expect: expect.stored(), events: rows };
            Ok(StoredAppend { rows, publish: publish_to.map(|to| (to, messages)) })
        };
        stored().map_err(|e: Error| e.with_context("stream", name.escape_debug()))
    }
}

/// An append as it is stored, and what of it is published where.
#[derive(Clone)]
pub(super) struct StoredAppend {
    pub(super) rows: StreamAppend,
    pub(super) publish: Option<(Address, Vec<Envelope>)>,
}

/// The key is the stream's name where there is none, so that what is published of it keeps the stream's order.
fn complete(message: Envelope, source: &str, stream: &str) -> Result<Envelope> {
    let mut message = if message.source.is_empty() { message.source(source) } else { message };
    if message.key.is_none() {
        message = message.key(stream);
    }
    let message = with_current(message);
    message.check()?;
    if ClaimReference::is_claim(&message) {
        return Err(Error::invalid(
            "an event whose payload is elsewhere: it would be gone before the log is read; keep its place in the event",
        ));
    }
    Ok(message)
}

fn row(message: &Envelope) -> NewLogEvent {
    NewLogEvent {
        id: message.id.to_string(),
        kind: message.event_type.to_string(),
        head: encode_head(message),
        data: message.data.clone(),
    }
}

/// # Errors
/// `InvalidArgument` for a name that no stream can have.
pub(super) fn check_stream(stream: &str) -> Result<()> {
    if (1..=MAX_STREAM_NAME).contains(&stream.len()) && !stream.contains('\0') {
        return Ok(());
    }
    let shown: String = stream.chars().take(64).collect();
    let text = format!("the name of a stream has 1 to {MAX_STREAM_NAME} bytes, without U+0000");
    Err(Error::invalid(text).with_context("stream", shown.escape_debug()))
}

/// What became of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// The version of the stream's last event of them.
    pub version: u64,
    /// The place of each in the log.
    pub positions: Vec<i64>,
    /// False where the same events were there already.
    pub is_new: bool,
}

impl Appended {
    /// # Errors
    /// `Conflict`, with the context `stream`, `expected`, `version`, and `state` where the stream takes no more events.
    pub(super) fn of(append: &StreamAppend, outcome: AppendOutcome) -> Result<Self> {
        let of = |first_version: i64, positions: Vec<i64>, is_new| {
            let version = (first_version - 1).unsigned_abs() + positions.len() as u64;
            Ok(Self { version, positions, is_new })
        };
        match outcome {
            AppendOutcome::Appended { first_version, positions } => of(first_version, positions, true),
            AppendOutcome::Repeated { first_version, positions } => of(first_version, positions, false),
            AppendOutcome::Conflict { version, state } => Err(conflict(append, version, state)),
        }
    }
}

fn conflict(append: &StreamAppend, version: i64, state: StreamState) -> Error {
    let is_expected = match append.expect {
        StreamExpectation::Any => true,
        StreamExpectation::NoStream => version == 0,
        StreamExpectation::Exists => version > 0,
        StreamExpectation::Version(wanted) => version == wanted,
    };
    let text = match state {
        StreamState::Archived => "the stream is archived, and takes no more events",
        StreamState::Deleted => "the stream is deleted, and takes no more events",
        StreamState::Open if is_expected => {
            "the stream has some of these ids already, and not as the same events at this place"
        }
        StreamState::Open => "the stream is not what was expected: read it again, and decide anew",
    };
    let error = Error::new(ErrorKind::Conflict, text)
        .with_context("stream", append.stream.escape_debug())
        .with_context("expected", format!("{:?}", append.expect))
        .with_context("version", version);
    if state == StreamState::Open { error } else { error.with_context("state", format!("{state:?}")) }
}
