//! Schema versions: event types with their versions, what makes old messages new, and a router to typed handlers.
//!
//! An event's [`VERSION`](polybus_core::Event::VERSION) rises when its payload changes so that older code would misread
//! it. A consumer of version 3 then still meets messages of versions 1 and 2, and one that was rolled back to version 2
//! meets those of version 3. [`Types`] knows what to do with both:
//!
//! | the message is | it is |
//! |---|---|
//! | of the code's own version | read as it is |
//! | older | read as JSON, made newer by upcasters step by step, and read as the newest version |
//! | newer, or of an unknown type | a dead letter that can be redriven later; on demand skipped, or tried again |
//! | not what it should be | a dead letter at once |
//!
//! `registry.rs` has the types and finds what is wrong with them, before anything is consumed. `entry.rs` reads one
//! message, and `failure.rs` says why that failed. `routes.rs` finds the handler and decides what becomes of a message
//! that none gets, by the policies of `unknown.rs`, and `skip_log.rs` tells of those that were skipped; `router.rs` and
//! `inbox_router.rs` are its two forms. `samples.rs` keeps a message of each version for the tests of users.

mod entry;
mod failure;
mod inbox_router;
mod registry;
mod router;
mod routes;
mod sample_name;
mod samples;
mod skip_log;
mod unknown;

use std::{fmt, sync::Arc};

use polybus_core::{
    Envelope, Error, Event, Result,
    message::{Codec, JsonCodec},
};
use serde_json::Value;

use self::registry::Registry;
pub use self::{
    failure::{
        DecodeFailure, MALFORMED_REASON, RETIRED_VERSION_REASON, UNKNOWN_TYPE_REASON, UNKNOWN_VERSION_REASON,
        UPCAST_FAILED_REASON, UpcastError,
    },
    inbox_router::InboxRouter,
    router::Router,
    unknown::Unknown,
};

/// The event types that a program knows, with their versions. Cheap to clone.
///
/// What is said of the types is checked at the start: by [`check`](Self::check), or by the worker that runs a
/// [router](Self::router). A mistake ends the start with an error that names all of them, and nothing is consumed.
///
/// ```
/// use polybus_core::{Envelope, Event};
/// use polybus_patterns::types::Types;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct OrderPlaced {
///     order: String,
///     cents: u64,
///     currency: String,
/// }
///
/// impl Event for OrderPlaced {
///     const TYPE: &'static str = "order.placed";
///     const VERSION: u32 = 3;
/// }
///
/// let types = Types::new()
///     .event::<OrderPlaced>()
///     // Version 2 counts cents.
///     .upcast::<OrderPlaced>(1, |mut json, _| {
///         json["cents"] = json["euros"].as_u64().and_then(|n| n.checked_mul(100)).ok_or("no euros")?.into();
///         Ok(json)
///     })
///     // Version 3 names the currency.
///     .upcast::<OrderPlaced>(2, |mut json, _| {
///         json["currency"] = "EUR".into();
///         Ok(json)
///     });
/// types.check()?;
///
/// let old = Envelope::new("order.placed", r#"{"order":"o-7","euros":12}"#); // no version is version 1
/// let placed: OrderPlaced = types.decode(&old)?;
/// assert_eq!(placed, OrderPlaced { order: "o-7".into(), cents: 1200, currency: "EUR".into() });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Types<C = JsonCodec> {
    codec: Arc<C>,
    registry: Arc<Registry>,
    unknown_type: Unknown,
    unknown_version: Unknown,
}

impl<C> Clone for Types<C> {
    fn clone(&self) -> Self {
        Self { codec: self.codec.clone(), registry: self.registry.clone(), ..*self }
    }
}

/// The names and versions of the types.
impl<C> fmt::Debug for Types<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let versions = self.registry.entries.iter().map(|entry| (entry.name, entry.rust_type.map(|of| of.version)));
        f.debug_map().entries(versions).finish()
    }
}

impl Default for Types {
    fn default() -> Self {
        Self::new()
    }
}

impl Types {
    /// No types yet. Payloads are JSON.
    ///
    /// ```
    /// let types = polybus_patterns::types::Types::new();
    /// assert!(types.check().is_ok());
    /// ```
    pub fn new() -> Self {
        Self::codec(JsonCodec)
    }
}

impl<C: Codec> Types<C> {
    /// No types yet. Payloads are what the codec reads, such as a pair of [`JsonCodec`] and one of yours.
    ///
    /// Messages of older versions are read by the codec as a [JSON value](Value) first. So its format must describe
    /// itself, as JSON does, compressed or not, and CBOR and MessagePack do; and what has another form in a binary
    /// format than in JSON, such as a UUID, is not understood after that: such a message fails.
    ///
    /// ```
    /// use polybus_core::message::JsonCodec;
    /// use polybus_patterns::types::Types;
    /// # use polybus_core::message::JsonCodec as CborCodec;
    ///
    /// let types = Types::codec((JsonCodec, CborCodec));
    /// # types.check().unwrap();
    /// ```
    pub fn codec(codec: C) -> Self {
        Self {
            codec: Arc::new(codec),
            registry: Arc::default(),
            unknown_type: Unknown::default(),
            unknown_version: Unknown::default(),
        }
    }

    /// Registers an event. Its newest version is [`E::VERSION`](Event::VERSION); each older one needs an
    /// [upcaster](Self::upcast), unless it is [retired](Self::oldest).
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// let types = Types::new().event::<OrderPlaced>();
    /// assert_eq!(format!("{types:?}"), r#"{"order.placed": Some(1)}"#);
    /// ```
    pub fn event<E: Event + 'static>(self) -> Self {
        self.change(Registry::event::<E>)
    }

    /// Makes payloads of version `from` payloads of version `from + 1`.
    ///
    /// The upcaster gets the payload as JSON, and the message for its attributes. One that fails, panics, or makes what
    /// is no `E` costs its message alone: it becomes a dead letter with the reason [`UPCAST_FAILED_REASON`], and can be
    /// redriven once the upcaster is mended. The numbers in the JSON are those of serde_json: whole numbers beyond 64
    /// bits lose digits.
    ///
    /// ```
    /// # use polybus_core::{Envelope, Event};
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String, shop: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 2; }
    /// let types = Types::new().event::<OrderPlaced>().upcast::<OrderPlaced>(1, |mut json, message| {
    ///     json["shop"] = message.headers.get("shop").unwrap_or("main").into();
    ///     Ok(json)
    /// });
    /// let old = Envelope::new("order.placed", r#"{"order":"o-7"}"#).header("shop", "airport");
    /// assert_eq!(types.decode::<OrderPlaced>(&old)?.shop, "airport");
    /// # Ok::<(), polybus_patterns::types::DecodeFailure>(())
    /// ```
    pub fn upcast<E: Event>(
        self,
        from: u32,
        upcaster: impl Fn(Value, &Envelope) -> Result<Value, UpcastError> + Send + Sync + 'static,
    ) -> Self {
        self.change(|registry| registry.upcast::<E>(from, Arc::new(upcaster)))
    }

    /// Sets the oldest version that is still read: upcasters and samples of those below it may go. Such a message
    /// becomes a dead letter with the reason [`RETIRED_VERSION_REASON`]. Default: 1.
    ///
    /// Versions are retired when none is left anywhere: in queues, dead letters, and event logs. The metric
    /// `polybus_types_upcast_total{type, version}` counts those that come.
    ///
    /// ```
    /// # use polybus_core::{Envelope, Event};
    /// # use polybus_patterns::types::{DecodeFailure, Types};
    /// # #[derive(Debug, serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 3; }
    /// let types = Types::new().event::<OrderPlaced>().oldest::<OrderPlaced>(3);
    /// let failure = types.decode::<OrderPlaced>(&Envelope::new("order.placed", "{}")).unwrap_err();
    /// assert!(matches!(failure, DecodeFailure::RetiredVersion { found: 1, oldest: 3, .. }));
    /// ```
    pub fn oldest<E: Event>(self, version: u32) -> Self {
        self.change(|registry| registry.oldest::<E>(version))
    }

    /// Reads messages of another type as `E` too: a name that the type had before. They have the versions of `E`.
    ///
    /// ```
    /// # use polybus_core::{Envelope, Event};
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderCreated { order: String }
    /// # impl Event for OrderCreated { const TYPE: &'static str = "order.created"; const VERSION: u32 = 1; }
    /// let types = Types::new().event::<OrderCreated>().alias::<OrderCreated>("order.placed");
    /// let created: OrderCreated = types.decode(&Envelope::new("order.placed", r#"{"order":"o-7"}"#))?;
    /// # assert_eq!(created.order, "o-7");
    /// # Ok::<(), polybus_patterns::types::DecodeFailure>(())
    /// ```
    pub fn alias<E: Event>(self, event_type: &str) -> Self {
        self.change(|registry| registry.alias::<E>(event_type))
    }

    /// Reads messages that are no CloudEvents, and so have no type, as `E`. They have no version either, so they are
    /// taken for version 1.
    ///
    /// ```
    /// # use polybus_core::{Envelope, Event};
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct Reading { celsius: f64 }
    /// # impl Event for Reading { const TYPE: &'static str = "sensor.read"; const VERSION: u32 = 1; }
    /// let types = Types::new().event::<Reading>().foreign_as::<Reading>();
    /// let reading: Reading = types.decode(&Envelope::new(Envelope::FOREIGN_TYPE, r#"{"celsius":21.5}"#))?;
    /// # assert_eq!(reading.celsius, 21.5);
    /// # Ok::<(), polybus_patterns::types::DecodeFailure>(())
    /// ```
    pub fn foreign_as<E: Event>(self) -> Self {
        self.alias::<E>(Envelope::FOREIGN_TYPE)
    }

    /// Sets what a router does with messages of a type that is not registered, or that it has no handler for. Default:
    /// [`Unknown::DeadLetter`].
    ///
    /// ```
    /// use polybus_patterns::types::{Types, Unknown};
    ///
    /// let types = Types::new().unknown_type(Unknown::Skip);
    /// ```
    pub fn unknown_type(mut self, policy: Unknown) -> Self {
        self.unknown_type = policy;
        self
    }

    /// Sets what a router does with messages of a version that is newer than the code. Default:
    /// [`Unknown::DeadLetter`], so that a deployment that is rolled back loses nothing.
    ///
    /// ```
    /// use polybus_patterns::types::{Types, Unknown};
    /// use std::time::Duration;
    ///
    /// let types = Types::new().unknown_version(Unknown::RetryAfter(Duration::from_secs(60)));
    /// ```
    pub fn unknown_version(mut self, policy: Unknown) -> Self {
        self.unknown_version = policy;
        self
    }

    /// What is wrong, one line each.
    fn problems(&self) -> Vec<String> {
        let policies = [("unknown_type", self.unknown_type), ("unknown_version", self.unknown_version)];
        let mut problems = self.registry.problems();
        problems.extend(policies.iter().filter_map(|(name, policy)| policy.problem(name)));
        problems
    }

    /// The type that a message of this type is read as: itself, or what it is an alias of. `None` if it is not known.
    pub(crate) fn known_as(&self, event_type: &str) -> Option<&'static str> {
        self.registry.find(event_type).map(|(_, entry)| entry.name)
    }

    fn change(mut self, change: impl FnOnce(&mut Registry)) -> Self {
        change(Arc::make_mut(&mut self.registry));
        self
    }

    /// Looks for mistakes: a version without an upcaster, two for one version, one from a version that is not below the
    /// newest, one of a type that is not registered, a type or an alias that is registered twice, a policy that tries
    /// again without a delay.
    ///
    /// A worker with a router does so at its start. Everybody else calls it once, before anything is consumed.
    ///
    /// # Errors
    /// `InvalidArgument`, naming all mistakes.
    ///
    /// ```
    /// # use polybus_core::Event;
    /// # use polybus_patterns::types::Types;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 3; }
    /// let types = Types::new().event::<OrderPlaced>().upcast::<OrderPlaced>(1, |json, _| Ok(json));
    /// assert!(types.check().unwrap_err().to_string().contains("no upcaster from version 2"));
    /// ```
    pub fn check(&self) -> Result<()> {
        refuse("event types", self.problems())
    }

    /// The event of a message, of whatever version, as its newest one. Nothing is waited for.
    ///
    /// A message of the newest version is read by the codec at once. An older one costs more: it is read as JSON, made
    /// newer, and read again. In a handler of your own, use it with [`DecodeFailure::dead_letter`].
    ///
    /// # Errors
    /// Why the message is no `E`: see [`DecodeFailure`].
    ///
    /// ```
    /// # use polybus_core::{Envelope, Event};
    /// # use polybus_patterns::types::{DecodeFailure, Types};
    /// # #[derive(Debug, serde::Serialize, serde::Deserialize)]
    /// # struct OrderPlaced { order: String }
    /// # impl Event for OrderPlaced { const TYPE: &'static str = "order.placed"; const VERSION: u32 = 1; }
    /// let types = Types::new().event::<OrderPlaced>();
    /// let message = Envelope::event(&OrderPlaced { order: "o-7".into() })?;
    /// assert_eq!(types.decode::<OrderPlaced>(&message)?.order, "o-7");
    ///
    /// let other = types.decode::<OrderPlaced>(&Envelope::new("order.paid", "{}"));
    /// assert!(matches!(other, Err(DecodeFailure::UnknownType { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn decode<E: Event + 'static>(&self, message: &Envelope) -> Result<E, DecodeFailure> {
        self.registry.decode(&*self.codec, message)
    }
}

/// An error that names all problems, if there are any.
pub(crate) fn refuse(what: &str, problems: Vec<String>) -> Result<()> {
    match problems.len() {
        0 => Ok(()),
        1 => Err(Error::invalid(format!("{what}: {}", problems[0]))),
        n => Err(Error::invalid(format!("{what}, {n} mistakes:\n- {}", problems.join("\n- ")))),
    }
}
