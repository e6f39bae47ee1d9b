//! One message: metadata and payload.

use std::{fmt, ops::Deref, sync::Arc};

use bytes::Bytes;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    error::{Error, ErrorKind, Result},
    message::{
        Headers,
        cloudevents::MAX_EXTENSION_NAME,
        headers::{MAX_HEADERS, MAX_METADATA},
    },
    topology::names::{check_event_type, check_key},
};

/// One message, modelled on CloudEvents 1.0. Cheap to clone; copied on write.
///
/// Read the fields of [`EnvelopeFields`] through it; change them with the methods of the same names.
///
/// ```
/// let e = polybus_core::Envelope::new("order.placed", r#"{"id":7}"#).key("order-7").header("tenant", "acme");
/// assert_eq!(&*e.event_type, "order.placed");
/// assert_eq!(e.headers.get("Tenant"), Some("acme"));
/// ```
#[derive(Clone, PartialEq)]
pub struct Envelope(Arc<EnvelopeFields>);

/// The fields of an [`Envelope`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EnvelopeFields {
    /// CloudEvents `id`: unique per source. Default: a UUIDv7.
    pub id: Box<str>,
    /// CloudEvents `type`, for example `order.placed`.
    pub event_type: Box<str>,
    /// CloudEvents `source`: the producing service, a URI-reference. Empty: the bus fills in its own at publish.
    pub source: Box<str>,
    /// CloudEvents `time`. Default: when the envelope was made.
    pub time: Option<OffsetDateTime>,
    /// CloudEvents `subject`.
    pub subject: Option<Box<str>>,
    /// Extension `schemaversion`.
    pub schema_version: Option<u32>,
    /// CloudEvents `dataschema`, a URI.
    pub data_schema: Option<Box<str>>,
    /// CloudEvents `datacontenttype`. Default: `application/json`.
    pub content_type: Option<Box<str>>,
    /// Extension `correlationid`.
    pub correlation_id: Option<Box<str>>,
    /// Extension `causationid`.
    pub causation_id: Option<Box<str>>,
    /// Extension `partitionkey`: the ordering key.
    pub key: Option<Box<str>>,
    /// Extension `sequence`, per key.
    pub sequence: Option<u64>,
    /// Extension `expirytime`: past it, the message is never handed to a consumer.
    pub expires_at: Option<OffsetDateTime>,
    /// W3C trace context.
    pub traceparent: Option<Box<str>>,
    /// W3C trace state.
    pub tracestate: Option<Box<str>>,
    /// CloudEvents extension attributes that polybus gives no meaning; names are `[a-z0-9]+`.
    pub extensions: Headers,
    /// Application headers.
    pub headers: Headers,
    /// The payload: any bytes. Empty is the same as none.
    pub data: Bytes,
}

impl Envelope {
    /// The event type under which a message that is no CloudEvent is handed out.
    pub const FOREIGN_TYPE: &'static str = "polybus.foreign";

    /// A new message with a fresh id, the time of now and content type `application/json`.
    pub fn new(event_type: impl Into<Box<str>>, data: impl Into<Bytes>) -> Self {
        Self(Arc::new(EnvelopeFields {
            id: Uuid::now_v7().hyphenated().to_string().into(),
            time: Some(OffsetDateTime::now_utc()),
            content_type: Some("application/json".into()),
            ..EnvelopeFields::bare(event_type, data)
        }))
    }

    /// A message with nothing but type and data set: what an adapter starts from when it decodes.
    pub fn bare(event_type: impl Into<Box<str>>, data: impl Into<Bytes>) -> Self {
        Self(Arc::new(EnvelopeFields::bare(event_type, data)))
    }

    pub(crate) fn from_parts(parts: EnvelopeFields) -> Self {
        Self(Arc::new(parts))
    }

    /// Changes fields in place; copies them first if the envelope is shared.
    pub fn edit(mut self, f: impl FnOnce(&mut EnvelopeFields)) -> Self {
        f(Arc::make_mut(&mut self.0));
        self
    }

    /// Sets the id.
    pub fn id(self, id: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.id = id.into())
    }

    /// Sets the producing service, a URI-reference.
    pub fn source(self, source: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.source = source.into())
    }

    /// Sets the time of the event.
    pub fn time(self, time: OffsetDateTime) -> Self {
        self.edit(|p| p.time = Some(time))
    }

    /// Sets the subject.
    pub fn subject(self, subject: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.subject = Some(subject.into()))
    }

    /// Sets the version of the payload's schema.
    pub fn schema_version(self, version: u32) -> Self {
        self.edit(|p| p.schema_version = Some(version))
    }

    /// Sets the address of the payload's schema.
    pub fn data_schema(self, uri: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.data_schema = Some(uri.into()))
    }

    /// Sets the media type of the payload.
    pub fn content_type(self, content_type: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.content_type = Some(content_type.into()))
    }

    /// Sets the correlation id.
    pub fn correlation_id(self, id: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.correlation_id = Some(id.into()))
    }

    /// Sets the id of the message that caused this one.
    pub fn causation_id(self, id: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.causation_id = Some(id.into()))
    }

    /// Sets the ordering key: 1 to 256 bytes.
    pub fn key(self, key: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.key = Some(key.into()))
    }

    /// Sets the sequence number within the key.
    pub fn sequence(self, sequence: u64) -> Self {
        self.edit(|p| p.sequence = Some(sequence))
    }

    /// Sets the moment after which no consumer sees the message.
    pub fn expires_at(self, at: OffsetDateTime) -> Self {
        self.edit(|p| p.expires_at = Some(at))
    }

    /// Sets the W3C trace context.
    pub fn traceparent(self, traceparent: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.traceparent = Some(traceparent.into()))
    }

    /// Adds a header. Keys are `[A-Za-z0-9_.-]{1,64}`, unique ignoring case; checked at publish.
    pub fn header(self, key: impl Into<Box<str>>, value: impl Into<Box<str>>) -> Self {
        self.edit(|p| p.headers.push(key, value))
    }

    /// A reply's correlation: same correlation id (or the cause's id), and the cause's id as causation.
    pub fn caused_by(self, cause: &Envelope) -> Self {
        let correlation = cause.correlation_id.clone().unwrap_or_else(|| cause.id.clone());
        self.correlation_id(correlation).causation_id(cause.id.clone())
    }

    /// Bytes of all attributes and headers, as counted against the 32 KiB limit.
    pub fn metadata_size(&self) -> usize {
        self.0.metadata_size()
    }

    /// Makes whatever was received publishable: for bridges, which consume here and publish there.
    ///
    /// What may be published already is not changed: [`check`](Self::check) holds for the result, and id, source, time, payload and content type
    /// are the same, so that the message can be told from its duplicates on both sides. Else
    /// - a header whose name is illegal or reserved gets `_` for each character that no name may have, is cut to 64 bytes (then it ends
    ///   in a hash), and begins with `forwarded.` if it is reserved still: `http://a/b` is `http___a_b`, `CE-tenant` is `forwarded.CE-tenant`,
    ///   `native.reply-to` is `forwarded.native.reply-to`. Where that name is taken already, `_2`, `_3` … follow;
    /// - the brokers' counters (`x-death`, `x-delivery-count` …) are left behind;
    /// - a type gets `_` for each character that no type may have, loses empty segments, and is cut to 128 bytes; the type as it was is
    ///   in the header `forwarded.type`. Likewise a key of more than 256 bytes, in `forwarded.key`;
    /// - an extension under a name that CloudEvents or polybus does not allow (`my_ext`, an unreadable `time`) is the header `forwarded.<name>`;
    /// - of more than 64 headers the last ones stand together in the header `forwarded.more`, a JSON object;
    /// - of more than 32 KiB of headers and attributes the longest are left behind, and named in the header `forwarded.dropped`, one a line. An
    ///   id or a source that alone is too long is cut to 512 bytes and ends in a hash.
    ///
    /// A payload too large for the other broker, an event that has expired, and a missing key for an ordered address are refused at publish as ever.
    ///
    /// ```
    /// use polybus_core::Envelope;
    ///
    /// let received = Envelope::new("aws.s3.ObjectCreated:Put", "{}").header("$.diagnostics", "7");
    /// assert!(received.check().is_err());
    /// let forwarded = received.forward();
    /// forwarded.check()?;
    /// assert_eq!(&*forwarded.event_type, "aws.s3.ObjectCreated_Put");
    /// assert_eq!(forwarded.headers.get("forwarded.type"), Some("aws.s3.ObjectCreated:Put"));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn forward(self) -> Self {
        if self.check().is_ok() {
            return self;
        }
        self.edit(crate::message::forward::forward)
    }

    /// Refuses what can be published to no broker. Core runs it before any I/O.
    pub fn check(&self) -> Result<()> {
        check_event_type(&self.event_type)?;
        if self.id.is_empty() {
            return Err(Error::invalid("envelope without an id"));
        }
        if let Some(key) = &self.key {
            check_key(key)?;
        }
        if let Some((name, _)) = self.extensions.iter().find(|(n, _)| !is_extension_name(n)) {
            return Err(Error::invalid(format!(
                "extension {name:?}: use 1 to {MAX_EXTENSION_NAME} of a-z and 0-9, no name CloudEvents or polybus uses"
            )));
        }
        if self.extensions.len() > MAX_HEADERS {
            return Err(Error::invalid(format!(
                "{} extensions: at most {MAX_HEADERS} are allowed",
                self.extensions.len()
            )));
        }
        let names = || self.extensions.iter().map(|(n, _)| n);
        if let Some((_, name)) = names().enumerate().find(|(i, n)| names().take(*i).any(|other| other == *n)) {
            return Err(Error::invalid(format!("extension {name:?} is there twice")));
        }
        for (name, time) in [("time", self.time), ("expires_at", self.expires_at)] {
            if time.is_some_and(|t| !is_rfc3339(t)) {
                return Err(Error::invalid(format!(
                    "{name}: use years 0 to 9999, and an offset in hours and minutes below 24 h"
                )));
            }
        }
        self.headers.check()?;
        let size = self.metadata_size();
        if size > MAX_METADATA {
            let text = format!("attributes and headers of {size} bytes: at most {MAX_METADATA} are allowed together");
            return Err(Error::new(ErrorKind::PayloadTooLarge, text).with_context("id", &self.id));
        }
        Ok(())
    }
}

pub(crate) fn is_extension_name(name: &str) -> bool {
    (1..=MAX_EXTENSION_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && !crate::message::cloudevents::KNOWN.contains(&name)
        && !name.starts_with("polybus")
}

/// Whether RFC 3339, which CloudEvents prescribes, can write it.
pub(crate) fn is_rfc3339(time: OffsetDateTime) -> bool {
    let (hours, _, seconds) = time.offset().as_hms();
    (0..=9999).contains(&time.year()) && seconds == 0 && hours.abs() < 24
}

impl EnvelopeFields {
    pub(crate) fn bare(event_type: impl Into<Box<str>>, data: impl Into<Bytes>) -> Self {
        Self {
            id: Box::default(),
            event_type: event_type.into(),
            source: Box::default(),
            time: None,
            subject: None,
            schema_version: None,
            data_schema: None,
            content_type: None,
            correlation_id: None,
            causation_id: None,
            key: None,
            sequence: None,
            expires_at: None,
            traceparent: None,
            tracestate: None,
            extensions: Headers::new(),
            headers: Headers::new(),
            data: data.into(),
        }
    }

    pub(crate) fn metadata_size(&self) -> usize {
        let text = [
            &self.subject,
            &self.data_schema,
            &self.content_type,
            &self.correlation_id,
            &self.causation_id,
            &self.key,
            &self.traceparent,
            &self.tracestate,
        ];
        let optional: usize = text.iter().filter_map(|t| t.as_deref()).map(str::len).sum();
        let fixed = self.id.len() + self.event_type.len() + self.source.len();
        fixed + optional + self.extensions.size() + self.headers.size()
    }
}

impl Deref for Envelope {
    type Target = EnvelopeFields;

    fn deref(&self) -> &EnvelopeFields {
        &self.0
    }
}

/// Payloads may be private: only their length is shown.
impl fmt::Debug for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Envelope");
        out.field("id", &self.id).field("type", &self.event_type).field("source", &self.source);
        if let Some(key) = &self.key {
            out.field("key", key);
        }
        let names: Vec<&str> = self.headers.iter().map(|(k, _)| k).collect();
        out.field("headers", &names).field("data_len", &self.data.len()).finish_non_exhaustive()
    }
}
