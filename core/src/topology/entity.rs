//! What core tells a driver about a queue, topic or subscription.

use std::{sync::Arc, time::Duration};

use serde::de::DeserializeOwned;

use crate::{
    error::{Error, Result},
    topology::{Address, Source, TypeFilter, UnwantedPolicy},
};

/// A queue, topic or source with everything resolved: prefix, physical name, settings, the adapter's own options.
///
/// For dead letters, everything but `name` is that of the live source.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entity<T> {
    /// The logical name.
    pub name: T,
    /// The name at the broker: prefix and logical name, or the configured physical name.
    /// For a subscription it is the subscription's own part; the adapter joins it to `parent` in its own way.
    pub physical: Arc<str>,
    /// For a subscription: the physical name of its topic.
    pub parent: Option<Arc<str>>,
    /// Whether `physical` was given by the operator and must be used as it is.
    pub fixed: bool,
    /// Whether the topology the bus was given names it.
    pub declared: bool,
    /// The settings.
    pub settings: EntitySettings,
    /// How many unsettled deliveries the consumer takes at most; 0 where no consumer is meant.
    pub prefetch: usize,
    /// Whether a consumer's locks are renewed. Core does it from receipt on, a driver for what waits in a buffer of its own.
    pub renew_locks: bool,
    options: OptionTables,
    /// Where a configuration file has it, such as `queues.payments`.
    key: Arc<str>,
}

/// The adapters' own option tables, by adapter name.
pub(crate) type OptionTables = Arc<crate::topology::AdapterOptions>;

impl<T> Entity<T> {
    /// An entity with default settings that no topology names.
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

    /// The table `[….options.<adapter>]`, parsed. Other adapters' tables are ignored. Let `T` deny unknown fields.
    pub fn options<O: DeserializeOwned + Default>(&self, adapter: &str) -> Result<O> {
        match self.options.get(adapter) {
            None => Ok(O::default()),
            Some(table) => O::deserialize(table).map_err(|e| {
                let error = Error::config(format!("options.{adapter} of {}: {e}", self.physical));
                error.with_context("key", format!("{}.options.{adapter}", self.key))
            }),
        }
    }

    /// The same entity under another name.
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

/// What holds for a queue, topic or subscription, on every broker.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EntitySettings {
    /// Order per key. A subscription has its topic's.
    pub ordered: bool,
    /// A message is handed to handlers this often at most, then it is dead-lettered.
    pub max_deliveries: u32,
    /// How long a consumer may hold a delivery without renewing.
    pub lock: Duration,
    /// The delays between attempts; the last one repeats.
    pub retry: Vec<Duration>,
    /// The topology names these delays, so that what they need can be made by `declare`. False for the default.
    pub retry_named: bool,
    /// Longest time an ordered source's message is held in place for a retry.
    pub max_hold: Duration,
    /// Expired messages are dead-lettered as `expired` instead of dropped.
    pub dead_letter_expired: bool,
    /// The event types a subscription wants; empty means all.
    pub types: Vec<TypeFilter>,
    /// What becomes of a message that none of `types` wants.
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
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DeclarePlan {
    /// The topics.
    pub topics: Vec<Entity<Address>>,
    /// The queues and the subscriptions; each has dead letters of its own.
    pub sources: Vec<Entity<Source>>,
}

impl DeclarePlan {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }
}

/// Whether `declare` may create what is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum DeclareMode {
    /// Creates what is missing, adds bindings and rules; changes and deletes nothing.
    #[default]
    Create,
    /// Creates nothing: what is missing or different is reported.
    Verify,
    /// Does nothing at all.
    Off,
}

/// What `declare` found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeclareReport {
    /// Entities that were made, by their logical names.
    pub created: Vec<String>,
    /// What is not as the topology wants it, and was left so.
    pub differences: Vec<EntityDifference>,
    /// What the driver had no way to check, in words.
    pub unchecked: Vec<String>,
}

/// One setting that is not as the topology wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EntityDifference {
    /// The entity, for example `queue:payments`.
    pub entity: String,
    /// The setting; `exists` if the entity is missing.
    pub setting: String,
    /// What the topology wants.
    pub wanted: String,
    /// What is there.
    pub found: String,
}

impl EntityDifference {
    /// One setting of one entity, wanted and found.
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
    /// Waiting to be handed out.
    pub ready: Option<u64>,
    /// Handed out and unsettled.
    pub in_flight: Option<u64>,
    /// Waiting for a retry or a publish delay to pass.
    pub delayed: Option<u64>,
    /// In the dead letters.
    pub dead_lettered: Option<u64>,
    /// The counts may lag behind.
    pub approximate: bool,
}
