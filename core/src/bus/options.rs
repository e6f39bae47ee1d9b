//! The settings of a bus.

use std::{sync::Arc, time::Duration};

use crate::{Topology, runtime::clock::Clock, topology::DeclareMode};

/// The settings of a bus. All have defaults.
///
/// ```
/// use polybus_core::{BusOptions, QueueSpec, Topology};
/// use std::time::Duration;
///
/// let topology = Topology::new().queue("payments", QueueSpec::new());
/// let options = BusOptions::topology(topology)
///     .event_source("/shop/checkout")
///     .publish_timeout(Duration::from_secs(10))
///     .give_up_after(Duration::from_secs(120));
/// assert_eq!(options.publish_timeout, Duration::from_secs(10));
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct BusOptions {
    /// The queues and topics that the bus knows. Others can be used too, with default settings. Default: none.
    pub topology: Topology,
    /// What [`Bus::declare`](crate::bus::Bus::declare) does. Default: [`DeclareMode::Create`].
    pub declare: DeclareMode,
    /// The CloudEvents `source` of envelopes that name none. Default: `polybus`.
    pub event_source: String,
    /// How long a publish may take, retries and waits included. Default: 30 s.
    ///
    /// Opening a publisher or a subscription, and [`Bus::declare`](crate::bus::Bus::declare), wait as long for a broker
    /// that is not ready.
    pub publish_timeout: Duration,
    /// How long the broker may refuse a consumer before its subscription ends. Default: 30 s. With `Duration::MAX` it
    /// never ends.
    ///
    /// `NotFound`, `PermissionDenied` and `Unauthenticated` are refusals. They may pass: a queue is made anew, a right
    /// is restored, a credential is renewed. The first one is logged as a warning, and the broker is asked again with a
    /// backoff. A success in between starts the time anew, and other errors in between do not count. A refusal while a
    /// subscription is opened is an error at once.
    pub give_up_after: Duration,
    /// How many bytes of encoded messages may wait to be sent, all publishers together. Default: 64 MiB.
    ///
    /// A publish beyond that waits for others to be sent, up to the publish timeout.
    pub max_pending_bytes: usize,
    /// The wall clock. Default: the driver's, else the machine's.
    pub clock: Option<Arc<dyn Clock>>,
}

impl Default for BusOptions {
    fn default() -> Self {
        Self {
            topology: Topology::default(),
            declare: DeclareMode::Create,
            event_source: "polybus".into(),
            publish_timeout: Duration::from_secs(30),
            give_up_after: Duration::from_secs(30),
            max_pending_bytes: 64 << 20,
            clock: None,
        }
    }
}

impl BusOptions {
    /// All defaults, and no topology.
    ///
    /// ```
    /// use polybus_core::BusOptions;
    ///
    /// let options = BusOptions::new();
    /// assert_eq!((options.event_source.as_str(), options.max_pending_bytes), ("polybus", 64 << 20));
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// All defaults, with this topology.
    ///
    /// ```
    /// use polybus_core::{BusOptions, QueueSpec, Topology};
    ///
    /// let options = BusOptions::topology(Topology::new().queue("payments", QueueSpec::new()));
    /// assert!(options.topology.queues.contains_key("payments"));
    /// ```
    pub fn topology(topology: Topology) -> Self {
        Self { topology, ..Self::default() }
    }

    /// Sets what [`Bus::declare`](crate::bus::Bus::declare) does. Default: [`DeclareMode::Create`].
    ///
    /// ```
    /// use polybus_core::{BusOptions, topology::DeclareMode};
    ///
    /// let options = BusOptions::new().declare(DeclareMode::Verify);
    /// assert_eq!(options.declare, DeclareMode::Verify);
    /// ```
    pub fn declare(mut self, mode: DeclareMode) -> Self {
        self.declare = mode;
        self
    }

    /// Sets the CloudEvents `source` of envelopes that name none. Default: `polybus`.
    ///
    /// ```
    /// let options = polybus_core::BusOptions::new().event_source("/shop/checkout");
    /// assert_eq!(options.event_source, "/shop/checkout");
    /// ```
    pub fn event_source(mut self, source: impl Into<String>) -> Self {
        self.event_source = source.into();
        self
    }

    /// Sets how long a publish may take: see [`publish_timeout`](Self#structfield.publish_timeout). Default: 30 s.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let options = polybus_core::BusOptions::new().publish_timeout(Duration::from_secs(10));
    /// assert_eq!(options.publish_timeout, Duration::from_secs(10));
    /// ```
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.publish_timeout = timeout;
        self
    }

    /// Sets how long the broker may refuse a consumer before its subscription ends: see
    /// [`give_up_after`](Self#structfield.give_up_after). Default: 30 s.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let never = polybus_core::BusOptions::new().give_up_after(Duration::MAX);
    /// assert_eq!(never.give_up_after, Duration::MAX);
    /// ```
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up_after = limit;
        self
    }

    /// Sets how many bytes of encoded messages may wait to be sent, all publishers together. Default: 64 MiB; values
    /// are cut to between 1 byte and 4 GiB.
    ///
    /// ```
    /// let options = polybus_core::BusOptions::new().max_pending_bytes(8 << 20);
    /// assert_eq!(options.max_pending_bytes, 8 << 20);
    /// ```
    pub fn max_pending_bytes(mut self, bytes: usize) -> Self {
        self.max_pending_bytes = bytes;
        self
    }

    /// Sets the wall clock, by which `expires_at` and the times of dead letters are measured. Default: the driver's,
    /// else the machine's.
    ///
    /// ```
    /// use polybus_core::{BusOptions, clock::SystemClock};
    /// use std::sync::Arc;
    ///
    /// let options = BusOptions::new().clock(Arc::new(SystemClock));
    /// assert!(options.clock.is_some());
    /// ```
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }
}
