//! What core tells a driver about a queue, topic or subscription, and what a driver reports about it.

use std::{sync::Arc, time::Duration};

use serde::de::DeserializeOwned;

use crate::{
    Address, Error, Result, Source,
    topology::{TypeFilter, UnwantedPolicy},
};

/// An address or a source with everything resolved: its name at the broker, its settings, the adapter's own options.
///
/// For dead letters, everything but `name` is that of the live source. [`Driver`](crate::driver::Driver) has a table of
/// what the names are for a queue, a subscription and dead letters.
///
/// ```
/// use polybus_core::{QueueSpec, Source, Topology};
///
/// let topology = Topology::new().prefix("shop").queue("payments", QueueSpec::new().max_deliveries(3));
/// let entity = topology.source(&Source::queue("payments").dead_letters());
/// assert_eq!((&*entity.physical, entity.settings.max_deliveries), ("shop_payments", 3));
/// assert!(entity.name.is_dead_letters());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entity<T> {
    /// The logical name.
    pub name: T,
    /// The name at the broker: prefix and logical name, or the name that the operator gave.
    ///
    /// For a subscription it is the subscription's own part, without prefix. The adapter joins it to `parent` in its
    /// own way.
    pub physical: Arc<str>,
    /// For a subscription: the physical name of its topic. `None` otherwise.
    pub parent: Option<Arc<str>>,
    /// Whether the operator gave `physical`, so that it must be used as it is: not cut, not extended.
    pub fixed: bool,
    /// Whether the topology of the bus names the entity. Otherwise its settings are defaults.
    pub declared: bool,
    /// The settings that hold on every broker.
    pub settings: EntitySettings,
    /// Most unsettled deliveries that the consumer may have; 0 where no consumer is meant.
    pub prefetch: usize,
    /// Whether a consumer's locks are renewed. Core renews them from receipt on; a driver renews those of messages that
    /// wait in a buffer of its own.
    pub renew_locks: bool,
    options: OptionTables,
    /// The entity's place in a configuration file, such as `queues.payments`. For error messages.
    key: Arc<str>,
}

/// The adapters' tables of options, shared by all clones of an entity.
pub(crate) type OptionTables = Arc<crate::topology::AdapterOptions>;

impl<T> Entity<T> {
    /// An entity with default settings that no topology names.
    ///
    /// ```
    /// use polybus_core::{Source, topology::Entity};
    ///
    /// let entity = Entity::new(Source::queue("payments"), "shop_payments");
    /// assert!(!entity.declared && entity.parent.is_none());
    /// ```
    pub fn new(name: T, physical: impl Into<Arc<str>>) -> Self {
        Self {
            name,
            physical: physical.into(),
            parent: None,
            fixed: false,
            declared: false,
            settings: EntitySettings::default(),
            prefetch: 0,
            renew_locks: true,
            options: OptionTables::default(),
            key: Arc::default(),
        }
    }

    pub(crate) fn with_options(mut self, options: OptionTables, key: String) -> Self {
        self.options = options;
        self.key = key.into();
        self
    }

    /// Parses the adapter's table `[….options.<adapter>]`. Without one it answers the default. Let the type deny
    /// unknown fields, so that a misspelt setting is an error.
    ///
    /// # Errors
    /// `ConfigInvalid` names the setting, and its place in a file as context `key`.
    ///
    /// ```
    /// use polybus_core::{QueueSpec, Source, Topology};
    ///
    /// #[derive(Default, serde::Deserialize)]
    /// #[serde(deny_unknown_fields, default)]
    /// struct QueueOptions {
    ///     queue_type: String,
    /// }
    ///
    /// let spec = QueueSpec::new().option("rabbitmq", serde_json::json!({"queue_type": "quorum"}));
    /// let entity = Topology::new().queue("payments", spec).source(&Source::queue("payments"));
    /// assert_eq!(entity.options::<QueueOptions>("rabbitmq")?.queue_type, "quorum");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn options<O: DeserializeOwned + Default>(&self, adapter: &str) -> Result<O> {
        match self.options.get(adapter) {
            None => Ok(O::default()),
            Some(table) => O::deserialize(table).map_err(|e| {
                let error = Error::config(format!("options.{adapter} of {}: {e}", self.physical));
                error.with_context("key", format!("{}.options.{adapter}", self.key))
            }),
        }
    }

    /// The same entity with its `name` mapped by `f`: an address made of a source, for example.
    ///
    /// ```
    /// use polybus_core::{Address, Source, topology::Entity};
    ///
    /// let source = Entity::new(Source::queue("payments"), "shop_payments");
    /// let address: Entity<Address> = source.map(|source| source.address());
    /// assert_eq!(&*address.physical, "shop_payments");
    /// ```
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Entity<U> {
        Entity {
            name: f(self.name),
            physical: self.physical,
            parent: self.parent,
            fixed: self.fixed,
            declared: self.declared,
            settings: self.settings,
            prefetch: self.prefetch,
            renew_locks: self.renew_locks,
            options: self.options,
            key: self.key,
        }
    }
}

/// The settings of a queue, topic or subscription that hold on every broker. Defaults are those of
/// [`QueueSpec`](crate::topology::QueueSpec).
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EntitySettings {
    /// Whether messages of one key stay in order. A subscription is ordered if its topic is.
    pub ordered: bool,
    /// How often a message is handed to handlers at most, before it is a dead letter.
    pub max_deliveries: u32,
    /// How long a consumer may hold a delivery without renewing the lock.
    pub lock: Duration,
    /// The delays between attempts. The last one repeats.
    pub retry: Vec<Duration>,
    /// Whether the topology names these delays, so that `declare` can make what they need at the broker. False where
    /// they are the default.
    pub retry_named: bool,
    /// How long an ordered source's message may be held in place for retries.
    pub max_hold: Duration,
    /// Whether expired messages are dead-lettered as `expired` instead of dropped.
    pub dead_letter_expired: bool,
    /// The event types that a subscription wants. An empty list means all.
    pub types: Vec<TypeFilter>,
    /// What becomes of a message that the broker delivered although none of `types` wants it.
    pub unwanted: UnwantedPolicy,
}

impl Default for EntitySettings {
    fn default() -> Self {
        Self {
            ordered: false,
            max_deliveries: 5,
            lock: Duration::from_secs(30),
            retry: [1, 5, 30, 300].map(Duration::from_secs).to_vec(),
            retry_named: false,
            max_hold: Duration::from_secs(600),
            dead_letter_expired: false,
            types: Vec::new(),
            unwanted: UnwantedPolicy::default(),
        }
    }
}

/// A resolved topology: what [`Driver::declare`](crate::driver::Driver::declare) creates or verifies.
/// [`Topology::plan`](crate::topology::Topology::plan) makes it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DeclarePlan {
    /// The topics.
    pub topics: Vec<Entity<Address>>,
    /// The queues and the subscriptions. Each has dead letters of its own, which are not listed.
    pub sources: Vec<Entity<Source>>,
}

impl DeclarePlan {
    /// An empty plan.
    ///
    /// ```
    /// use polybus_core::{Source, topology::{DeclarePlan, Entity}};
    ///
    /// let mut plan = DeclarePlan::new();
    /// plan.sources.push(Entity::new(Source::queue("payments"), "payments"));
    /// assert_eq!(plan.sources.len(), 1);
    /// ```
    pub fn new() -> Self {
        Self::default()
    }
}

/// What declaring a topology may do at the broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeclareMode {
    /// It creates what is missing, bindings and rules included. It changes and deletes nothing.
    #[default]
    Create,
    /// It creates nothing, and reports what is missing or different.
    Verify,
    /// It does not ask the broker at all.
    Off,
}

/// What declaring a topology has done and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeclareReport {
    /// The entities that were created, by their logical names.
    pub created: Vec<String>,
    /// The settings that are not as the topology wants them. They were left so.
    pub differences: Vec<EntityDifference>,
    /// The settings that the driver had no way to check, in words.
    pub unchecked: Vec<String>,
}

/// One setting that is not as the topology wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntityDifference {
    /// The entity, for example `queue:payments`.
    pub entity: String,
    /// The name of the setting; `exists` if the entity is missing.
    pub setting: String,
    /// The value that the topology wants.
    pub wanted: String,
    /// The value at the broker.
    pub found: String,
}

impl EntityDifference {
    /// A difference in one setting of one entity.
    ///
    /// ```
    /// use polybus_core::{Source, topology::EntityDifference};
    ///
    /// let difference = EntityDifference::new(Source::queue("payments"), "max_deliveries", 5, 10);
    /// assert_eq!(difference.to_string(), "queue:payments: max_deliveries should be 5, found 10");
    /// ```
    pub fn new(entity: impl ToString, setting: impl Into<String>, wanted: impl ToString, found: impl ToString) -> Self {
        let (entity, wanted, found) = (entity.to_string(), wanted.to_string(), found.to_string());
        Self { entity, setting: setting.into(), wanted, found }
    }
}

impl std::fmt::Display for EntityDifference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} should be {}, found {}", self.entity, self.setting, self.wanted, self.found)
    }
}

/// How many messages a source holds, as far as the broker tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceStats {
    /// Messages that wait to be handed out.
    pub ready: Option<u64>,
    /// Messages that are handed out and not settled.
    pub in_flight: Option<u64>,
    /// Messages that wait for a retry or a publish delay to pass.
    pub delayed: Option<u64>,
    /// Messages in the source's dead letters.
    pub dead_lettered: Option<u64>,
    /// Whether the counts may lag behind.
    pub approximate: bool,
}

impl SourceStats {
    /// All four counts, as a broker tells them that counts exactly.
    ///
    /// ```
    /// use polybus_core::topology::SourceStats;
    ///
    /// let stats = SourceStats::exact(3, 1, 0, 2);
    /// assert_eq!((stats.ready, stats.dead_lettered, stats.approximate), (Some(3), Some(2), false));
    /// ```
    pub fn exact(ready: u64, in_flight: u64, delayed: u64, dead_lettered: u64) -> Self {
        let [ready, in_flight, delayed, dead_lettered] = [ready, in_flight, delayed, dead_lettered].map(Some);
        Self { ready, in_flight, delayed, dead_lettered, approximate: false }
    }
}

impl DeclareReport {
    /// Tells of an entity that was not there: made in mode `Create`, a difference else.
    ///
    /// ```
    /// use polybus_core::topology::{DeclareMode, DeclareReport};
    ///
    /// let mut report = DeclareReport::default();
    /// report.absent(DeclareMode::Verify, "queue:payments");
    /// assert_eq!(report.differences[0].setting, "exists");
    /// ```
    pub fn absent(&mut self, mode: DeclareMode, entity: impl ToString) {
        match mode {
            DeclareMode::Create => self.created.push(entity.to_string()),
            _ => self.differences.push(EntityDifference::new(entity, "exists", true, false)),
        }
    }
}
