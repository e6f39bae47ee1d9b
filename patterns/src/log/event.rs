//! An event that was read.

use polybus_core::{Envelope, Event, Result, time::OffsetDateTime};

use crate::{
    store::StoredEvent,
    stored_head::decode_head,
    types::{DecodeFailure, Types},
};

/// An event of the log.
///
/// ```
/// # use polybus_core::Event;
/// # use polybus_patterns::log::LoggedEvent;
/// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPaid { cents: i64 }
/// # impl Event for OrderPaid { const TYPE: &'static str = "order.paid"; const VERSION: u32 = 1; }
/// # fn example(event: LoggedEvent) -> Result<(), Box<dyn std::error::Error>> {
/// if event.message.event_type.as_ref() == OrderPaid::TYPE {
///     let paid: OrderPaid = event.decode()?;
///     println!("{} cents in {} at {}", paid.cents, event.stream, event.at);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct LoggedEvent {
    /// Its place in the log. Positions rise, and have gaps.
    pub position: i64,
    /// Its stream.
    pub stream: Box<str>,
    /// Its place in the stream: 1, 2, 3 …
    pub version: u64,
    /// When it was appended, by the database's clock.
    pub at: OffsetDateTime,
    /// The event as a message: its id, type, payload, headers, correlation id, trace.
    pub message: Envelope,
    types: Types,
}

impl LoggedEvent {
    /// # Errors
    /// `Malformed` where no version of polybus has written it.
    pub(super) fn of(stored: StoredEvent, types: &Types) -> Result<Self> {
        let StoredEvent { position, stream, version, head, data, at } = stored;
        let message = decode_head(&head, data)
            .map_err(|e| e.with_context("position", position).with_context("stream", stream.escape_debug()))?;
        Ok(Self {
            position,
            stream: stream.into(),
            version: version.unsigned_abs(),
            at: OffsetDateTime::from_unix_timestamp_nanos(i128::from(at) * 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH),
            message,
            types: types.clone(),
        })
    }

    /// The event as a type of the program's, through the upcasters of [`EventLog::types`](super::EventLog::types).
    ///
    /// # Errors
    /// Why it is no `E`: another type, a version that is not known, a payload that cannot be read.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::{log::LoggedEvent, types::DecodeFailure};
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct OrderPaid { cents: i64 }
    /// # impl Event for OrderPaid { const TYPE: &'static str = "order.paid"; const VERSION: u32 = 1; }
    /// # fn example(event: LoggedEvent) -> Result<i64, DecodeFailure> {
    /// Ok(event.decode::<OrderPaid>()?.cents)
    /// # }
    /// ```
    pub fn decode<E: Event + 'static>(&self) -> Result<E, DecodeFailure> {
        match self.types.known_as(&self.message.event_type) {
            Some(_) => self.types.decode(&self.message),
            // Without versions before it, a type needs no registration.
            None => Types::new().event::<E>().decode(&self.message),
        }
    }
}

impl std::fmt::Debug for LoggedEvent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoggedEvent")
            .field("position", &self.position)
            .field("stream", &self.stream)
            .field("version", &self.version)
            .field("type", &self.message.event_type)
            .field("id", &self.message.id)
            .finish_non_exhaustive()
    }
}
