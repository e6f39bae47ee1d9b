//! One message: metadata and payload.

use std::{fmt, ops::Deref, sync::Arc};

use bytes::Bytes;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    Error, ErrorKind, Headers, Result,
    message::{
        cloudevents::MAX_EXTENSION_NAME,
        headers::{MAX_HEADERS, MAX_METADATA},
    },
    topology::names::{check_event_type, check_key},
};

/// One message, modelled on CloudEvents 1.0. Cheap to clone; copied on write.
///
/// It dereferences to [`EnvelopeFields`]: read the fields there, and change them with the methods of the same names.
///
/// ```
/// use polybus_core::Envelope;
///
/// let order = Envelope::new("order.placed", r#"{"id":7}"#).key("order-7").header("tenant", "acme");
/// assert_eq!(&*order.event_type, "order.placed");
/// assert_eq!(order.headers.get("Tenant"), Some("acme"));
/// ```
///
/// # Limits
///
/// | what | limit |
/// |---|---|
/// | event type | 1 to 128 bytes of `[A-Za-z0-9_.-]`, no empty segment between dots |
/// | ordering key | 1 to 256 bytes |
/// | headers | 64, with names of 1 to 64 bytes of `[A-Za-z0-9_.-]` |
/// | extensions | 64, with names of 1 to 240 bytes of `[a-z0-9]` |
/// | attributes and headers together | 32 KiB |
/// | payload | what the broker takes: [`max_queue_payload`] and [`max_topic_payload`] |
///
/// [`max_queue_payload`]: crate::driver::Capabilities::max_queue_payload
/// [`max_topic_payload`]: crate::driver::Capabilities::max_topic_payload
///
/// They are checked at publish, before any I/O.
#[derive(Clone, PartialEq)]
#[doc(alias("Message", "CloudEvent"))]
pub struct Envelope(Arc<EnvelopeFields>);

/// The fields of an [`Envelope`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EnvelopeFields {
    /// CloudEvents `id`: unique per source. Default: a UUIDv7.
    pub id: Box<str>,
    /// CloudEvents `type`, for example `order.placed`.
    pub event_type: Box<str>,
    /// CloudEvents `source`: the producing service, a URI-reference. The bus fills in its own at publish if it is
    /// empty.
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
    /// Extension `expirytime`: the moment after which the message is never handed to a consumer.
    pub expires_at: Option<OffsetDateTime>,
    /// W3C trace context.
    pub traceparent: Option<Box<str>>,
    /// W3C trace state.
    pub tracestate: Option<Box<str>>,
    /// CloudEvents extension attributes that have no meaning to polybus. Their names are `[a-z0-9]+`.
    pub extensions: Headers,
    /// Application headers.
    pub headers: Headers,
    /// The payload: any bytes. Empty is the same as none.
    pub data: Bytes,
    /// See [`Envelope::id_is_made_up`].
    pub(crate) id_is_made_up: bool,
}

impl Envelope {
    /// The event type under which a message that is no CloudEvent is handed out: `polybus.foreign`.
    pub const FOREIGN_TYPE: &'static str = "polybus.foreign";

    /// A new message with a fresh id, the current time and the content type `application/json`.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", r#"{"id":7}"#);
    /// assert_eq!(order.content_type.as_deref(), Some("application/json"));
    /// assert!(order.time.is_some() && !order.id.is_empty());
    /// ```
    pub fn new(event_type: impl Into<Box<str>>, data: impl Into<Bytes>) -> Self {
        Self(Arc::new(EnvelopeFields {
            id: Uuid::now_v7().hyphenated().to_string().into(),
            time: Some(OffsetDateTime::now_utc()),
            content_type: Some("application/json".into()),
            ..EnvelopeFields::bare(event_type, data)
        }))
    }

    /// A message of which only type and data are set. An adapter begins with it when it decodes.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let received = Envelope::bare("order.placed", "{}");
    /// assert!(received.id.is_empty() && received.time.is_none());
    /// ```
    pub fn bare(event_type: impl Into<Box<str>>, data: impl Into<Bytes>) -> Self {
        Self(Arc::new(EnvelopeFields::bare(event_type, data)))
    }

    pub(crate) fn from_fields(fields: EnvelopeFields) -> Self {
        Self(Arc::new(fields))
    }

    /// Changes fields in place. They are copied first if the envelope is shared, so that no clone sees the change.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", "{}");
    /// let anonymous = order.clone().edit(|fields| fields.time = None);
    /// assert!(anonymous.time.is_none() && order.time.is_some());
    /// ```
    pub fn edit(mut self, f: impl FnOnce(&mut EnvelopeFields)) -> Self {
        f(Arc::make_mut(&mut self.0));
        self
    }

    /// Sets the id, which is unique per source: brokers that deduplicate know a message by both.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// assert_eq!(&*Envelope::new("order.placed", "{}").id("7").id, "7");
    /// ```
    pub fn id(self, id: impl Into<Box<str>>) -> Self {
        self.edit(|fields| (fields.id, fields.id_is_made_up) = (id.into(), false))
    }

    /// Whether the message came without an id, so that polybus made one up for it.
    ///
    /// Two messages may share such an id, where it is a hash of what they say, and one message may get several. So it
    /// tells no duplicate. False for all messages that polybus published.
    ///
    /// ```
    /// # use polybus_core::{Envelope, message::cloudevents::{WireMessage, decode}};
    /// let foreign = decode(WireMessage { body: "tick".into(), ..WireMessage::default() }).envelope;
    /// assert!(foreign.id_is_made_up() && !foreign.id.is_empty());
    /// assert!(!foreign.id("tick-7").id_is_made_up());
    /// assert!(!Envelope::new("order.placed", "{}").id_is_made_up());
    /// ```
    pub fn id_is_made_up(&self) -> bool {
        self.id_is_made_up
    }

    /// Sets the producing service, a URI-reference.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// assert_eq!(&*Envelope::new("order.placed", "{}").source("/shop").source, "/shop");
    /// ```
    pub fn source(self, source: impl Into<Box<str>>) -> Self {
        self.edit(|fields| fields.source = source.into())
    }

    /// Sets the time of the event.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", "{}").time(polybus_core::time::OffsetDateTime::UNIX_EPOCH);
    /// assert_eq!(order.time.map(|time| time.year()), Some(1970));
    /// ```
    pub fn time(self, time: OffsetDateTime) -> Self {
        self.edit(|fields| fields.time = Some(time))
    }

    /// Sets the subject: what the event is about, within its source.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", "{}").subject("orders/7");
    /// assert_eq!(order.subject.as_deref(), Some("orders/7"));
    /// ```
    pub fn subject(self, subject: impl Into<Box<str>>) -> Self {
        self.edit(|fields| fields.subject = Some(subject.into()))
    }

    /// Sets the version of the payload's schema. [`Envelope::event`] sets it by itself.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// assert_eq!(Envelope::new("order.placed", "{}").schema_version(2).schema_version, Some(2));
    /// ```
    pub fn schema_version(self, version: u32) -> Self {
        self.edit(|fields| fields.schema_version = Some(version))
    }

    /// Sets the address of the payload's schema, a URI.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", "{}").data_schema("https://example.com/order.json");
    /// assert_eq!(order.data_schema.as_deref(), Some("https://example.com/order.json"));
    /// ```
    pub fn data_schema(self, uri: impl Into<Box<str>>) -> Self {
        self.edit(|fields| fields.data_schema = Some(uri.into()))
    }

    /// Sets the media type of the payload.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let note = Envelope::new("note.taken", "hello").content_type("text/plain");
    /// assert_eq!(note.content_type.as_deref(), Some("text/plain"));
    /// ```
    pub fn content_type(self, content_type: impl Into<Box<str>>) -> Self {
        self.edit(|fields| fields.content_type = Some(content_type.into()))
    }

    /// Sets the correlation id, which all messages of one conversation share. A message without one gets that of the
    /// handler or the [`Current`](crate::telemetry::Current) in which it is published.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", "{}").correlation_id("basket-3");
    /// assert_eq!(order.correlation_id.as_deref(), Some("basket-3"));
    /// ```
    pub fn correlation_id(self, id: impl Into<Box<str>>) -> Self {
        self.edit(|fields| fields.correlation_id = Some(id.into()))
    }

    /// Sets the id of the message that caused this one. [`Envelope::caused_by`] sets the correlation id too, and a
    /// message that a handler publishes gets both by itself: see [`Current`](crate::telemetry::Current).
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", "{}").causation_id("42");
    /// assert_eq!(order.causation_id.as_deref(), Some("42"));
    /// ```
    pub fn causation_id(self, id: impl Into<Box<str>>) -> Self {
        self.edit(|fields| fields.causation_id = Some(id.into()))
    }

    /// Sets the ordering key: 1 to 256 bytes. Messages of one key stay in order where the queue or topic is ordered.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// assert_eq!(Envelope::new("order.placed", "{}").key("order-7").key.as_deref(), Some("order-7"));
    /// ```
    #[doc(alias("partition key", "message group", "session"))]
    pub fn key(self, key: impl Into<Box<str>>) -> Self {
        self.edit(|fields| fields.key = Some(key.into()))
    }

    /// Sets the sequence number within the key. It is for applications: no broker orders by it.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// assert_eq!(Envelope::new("order.placed", "{}").key("order-7").sequence(3).sequence, Some(3));
    /// ```
    pub fn sequence(self, sequence: u64) -> Self {
        self.edit(|fields| fields.sequence = Some(sequence))
    }

    /// Sets the moment after which no consumer is handed the message.
    ///
    /// [`Outgoing::expires_in`](crate::message::Outgoing::expires_in) counts from the publish instead.
    ///
    /// ```
    /// use polybus_core::{Envelope, time::{Duration, OffsetDateTime}};
    ///
    /// let offer = Envelope::new("offer.made", "{}").expires_at(OffsetDateTime::now_utc() + Duration::hours(1));
    /// assert!(offer.expires_at.is_some());
    /// ```
    pub fn expires_at(self, at: OffsetDateTime) -> Self {
        self.edit(|fields| fields.expires_at = Some(at))
    }

    /// Sets the W3C trace context.
    ///
    /// A message without one gets that of the handler or the [`Current`](crate::telemetry::Current) in which it is
    /// published.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", "{}")
    ///     .traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    /// assert!(order.traceparent.is_some());
    /// ```
    pub fn traceparent(self, traceparent: impl Into<Box<str>>) -> Self {
        self.edit(|fields| fields.traceparent = Some(traceparent.into()))
    }

    /// Adds a header. Its name is 1 to 64 of `[A-Za-z0-9_.-]`, and unique ignoring case. It is checked at publish.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", "{}").header("tenant", "acme");
    /// assert_eq!(order.headers.get("tenant"), Some("acme"));
    /// ```
    pub fn header(self, key: impl Into<Box<str>>, value: impl Into<Box<str>>) -> Self {
        self.edit(|fields| fields.headers.push(key, value))
    }

    /// Makes this message an effect of `cause`: it gets the correlation id of `cause`, or its id where it has none, and
    /// the id of `cause` as its causation id.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::new("order.placed", "{}").id("42");
    /// let bill = Envelope::new("bill.sent", "{}").caused_by(&order);
    /// assert_eq!(bill.causation_id.as_deref(), Some("42"));
    /// assert_eq!(bill.correlation_id.as_deref(), Some("42"));
    /// ```
    pub fn caused_by(self, cause: &Envelope) -> Self {
        let correlation = cause.correlation_id.clone().unwrap_or_else(|| cause.id.clone());
        self.correlation_id(correlation).causation_id(cause.id.clone())
    }

    /// The bytes of all attributes and headers, as they count against the limit of 32 KiB. The payload is not included.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// let order = Envelope::bare("order.placed", "{}").id("42");
    /// assert_eq!(order.metadata_size(), "order.placed".len() + "42".len());
    /// ```
    pub fn metadata_size(&self) -> usize {
        self.0.metadata_size()
    }

    /// Makes whatever was received publishable. It is for bridges, which consume here and publish there.
    ///
    /// A message that may be published already is not changed. Otherwise [`check`](Self::check) holds for the result,
    /// and id, source, time, payload and content type stay, so that a message can be told from its duplicates on both
    /// sides. What cannot stay is changed like this:
    ///
    /// - A header whose name is illegal or reserved gets `_` for each character that no name may have, and is cut to 64
    ///   bytes; a name that was cut ends in a hash. If it is reserved still, `forwarded.` comes before it. So
    ///   `http://a/b` is `http___a_b`, `CE-tenant` is `forwarded.CE-tenant`, `native.reply-to` is
    ///   `forwarded.native.reply-to`. A name that is taken already is followed by `_2`, `_3` and so on.
    /// - The brokers' counters (`x-death`, `x-delivery-count` …) are left behind.
    /// - A type gets `_` for each character that no type may have, loses empty segments, and is cut to 128 bytes. The
    ///   type as it was is in the header `forwarded.type`. Likewise a key of more than 256 bytes, in `forwarded.key`.
    /// - An extension whose name CloudEvents or polybus does not allow (`my_ext`, an unreadable `time`) becomes the
    ///   header `forwarded.<name>`.
    /// - Of more than 64 headers the last ones stand together in the header `forwarded.more`, a JSON object.
    /// - Of more than 32 KiB of headers and attributes the longest are left behind. The header `forwarded.dropped`
    ///   names them, one a line. An id or a source that alone is too long is cut to 512 bytes and ends in a hash.
    ///
    /// Publishing still refuses a payload that is too large for the other broker, a message that has expired, and one
    /// without a key for an ordered address.
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

    /// Checks what every broker demands; see the limits at [`Envelope`]. Core runs it at publish, before any I/O.
    ///
    /// # Errors
    /// `InvalidArgument` names the field; `PayloadTooLarge` if attributes and headers exceed 32 KiB together.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// assert!(Envelope::new("order.placed", "{}").check().is_ok());
    /// assert!(Envelope::new("order placed", "{}").check().is_err());
    /// ```
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

/// Whether an extension attribute may be published under this name.
pub(crate) fn is_extension_name(name: &str) -> bool {
    (1..=MAX_EXTENSION_NAME).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        && !crate::message::cloudevents::KNOWN.contains(&name)
        && !name.starts_with("polybus")
}

/// Whether RFC 3339 can write this time. CloudEvents prescribes that format.
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
            id_is_made_up: false,
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

/// Shows the payload's length alone, since payloads may be private.
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
