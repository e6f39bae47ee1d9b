//! The specs of queues, topics and subscriptions: what an operator writes in a configuration file, and what a program
//! builds.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{AdapterOptions, EntitySettings, TypeFilter, UnwantedPolicy};
use crate::{Error, Result, runtime::duration};

/// All queues and topics that an application uses, by logical name.
///
/// A logical name is 1 to 63 of `[a-z0-9-]`, beginning with a letter or digit. At the broker it becomes a physical
/// name: with the [`prefix`](Self::prefix) before it, or the spec's own `physical` name.
///
/// ```
/// use polybus_core::{QueueSpec, SubscriptionSpec, TopicSpec, Topology};
///
/// let billing = SubscriptionSpec::new().types(["order.placed", "refund.*"]);
/// let topology = Topology::new()
///     .queue("payments", QueueSpec::new().max_deliveries(3))
///     .topic("orders", TopicSpec::new().ordered(true).subscription("billing", billing));
/// assert!(topology.check().is_ok());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Topology {
    /// Stands before all physical names, with `_` between.
    #[serde(skip)]
    pub prefix: Option<String>,
    /// The queues by logical name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub queues: BTreeMap<String, QueueSpec>,
    /// The topics by logical name, with their subscriptions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<String, TopicSpec>,
}

// The settings of whoever consumes are the same for a queue and for a subscription, and stand in one table of the file
// with those that differ. serde cannot take them from a struct of their own: `flatten` switches off
// `deny_unknown_fields`, and a misspelt setting would pass unseen. So the fields must stand in both structs, and this
// macro writes them, their setters and their checks once; without it each is written twice, which is 90 lines more.
macro_rules! consumer_spec {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        $(#[$doc])*
        #[serde(deny_unknown_fields, default)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
            /// How often a message is handed to handlers at most, before it is a dead letter. Default 5.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub max_deliveries: Option<u32>,
            /// How long a consumer may hold a delivery without renewing the lock. At least 1 s. Default 30 s.
            #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
            pub lock: Option<Duration>,
            /// The delays between attempts. The last one repeats. Default 1 s, 5 s, 30 s, 5 min.
            #[serde(with = "duration::list", skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "schema", schemars(with = "Option<Vec<String>>"))]
            pub retry: Option<Vec<Duration>>,
            /// How long an ordered source's message may be held in place for retries. Default 10 min.
            #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
            pub max_hold: Option<Duration>,
            /// Whether expired messages are dead-lettered as `expired` instead of dropped. Default: dropped.
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            pub dead_letter_expired: bool,
            /// The name at the broker, for what exists there already. It is used as it is, without the prefix.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub physical: Option<String>,
            /// The adapters' own settings, in a table for each adapter's name.
            ///
            /// A table of any other adapter's name is ignored; a wrong key is found when the bus is made on that
            /// broker.
            #[serde(skip_serializing_if = "AdapterOptions::is_empty")]
            pub options: AdapterOptions,
        }

        impl $name {
            /// All settings at their defaults.
            ///
            /// ```
            #[doc = concat!("let spec = polybus_core::", stringify!($name), "::new();")]
            /// assert_eq!(spec.max_deliveries, None);
            /// ```
            pub fn new() -> Self {
                Self::default()
            }

            /// Sets how often a message is handed to handlers at most, before it is a dead letter. At least 1.
            ///
            /// ```
            #[doc = concat!("let spec = polybus_core::", stringify!($name), "::new().max_deliveries(3);")]
            /// assert_eq!(spec.max_deliveries, Some(3));
            /// ```
            #[doc(alias("max_retries", "delivery limit"))]
            pub fn max_deliveries(mut self, n: u32) -> Self {
                self.max_deliveries = Some(n);
                self
            }

            /// Sets how long a consumer may hold a delivery without renewing the lock. At least 1 s.
            ///
            /// ```
            /// use std::time::Duration;
            #[doc = concat!("let spec = polybus_core::", stringify!($name), "::new().lock(Duration::from_secs(60));")]
            /// assert_eq!(spec.lock, Some(Duration::from_secs(60)));
            /// ```
            #[doc(alias = "visibility timeout")]
            pub fn lock(mut self, lock: Duration) -> Self {
                self.lock = Some(lock);
                self
            }

            /// Sets the delays between attempts, at least one. The last one repeats.
            ///
            /// ```
            /// use std::time::Duration;
            #[doc = concat!("let spec = polybus_core::", stringify!($name), "::new().retry([Duration::from_secs(1)]);")]
            /// assert_eq!(spec.retry.unwrap().len(), 1);
            /// ```
            pub fn retry(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
                self.retry = Some(delays.into_iter().collect());
                self
            }

            /// Sets how long an ordered source's message may be held in place for retries.
            ///
            /// ```
            /// use std::time::Duration;
            #[doc = concat!("let spec = polybus_core::", stringify!($name), "::new().max_hold(Duration::MAX);")]
            /// assert_eq!(spec.max_hold, Some(Duration::MAX));
            /// ```
            pub fn max_hold(mut self, hold: Duration) -> Self {
                self.max_hold = Some(hold);
                self
            }

            /// Sets whether expired messages are dead-lettered as `expired` instead of dropped.
            ///
            /// ```
            #[doc = concat!("let spec = polybus_core::", stringify!($name), "::new().dead_letter_expired(true);")]
            /// assert!(spec.dead_letter_expired);
            /// ```
            pub fn dead_letter_expired(mut self, yes: bool) -> Self {
                self.dead_letter_expired = yes;
                self
            }

            /// Uses this name at the broker as it is, without the prefix. 1 to 255 bytes.
            ///
            /// ```
            #[doc = concat!("let spec = polybus_core::", stringify!($name), "::new().physical(\"Legacy.Name\");")]
            /// assert_eq!(spec.physical.as_deref(), Some("Legacy.Name"));
            /// ```
            pub fn physical(mut self, name: impl Into<String>) -> Self {
                self.physical = Some(name.into());
                self
            }

            /// Sets an adapter's table of options.
            ///
            /// A table of any other adapter's name is ignored; a wrong key is found when the bus is made on that
            /// broker.
            ///
            /// ```
            /// let options = serde_json::json!({"queue_type": "quorum"});
            #[doc = concat!("let spec = polybus_core::", stringify!($name), "::new().option(\"rabbitmq\", options);")]
            /// assert!(!spec.options.is_empty());
            /// ```
            pub fn option(mut self, adapter: impl Into<String>, table: serde_json::Value) -> Self {
                self.options.insert(adapter, table);
                self
            }

            /// The settings with their defaults filled in.
            pub(super) fn settings(&self, ordered: bool, types: &[TypeFilter]) -> EntitySettings {
                let default = EntitySettings::default();
                EntitySettings {
                    ordered,
                    max_deliveries: self.max_deliveries.unwrap_or(default.max_deliveries),
                    lock: self.lock.unwrap_or(default.lock),
                    retry: self.retry.clone().unwrap_or(default.retry),
                    retry_named: self.retry.is_some(),
                    max_hold: self.max_hold.unwrap_or(default.max_hold),
                    dead_letter_expired: self.dead_letter_expired,
                    types: types.to_vec(),
                    unwanted: default.unwanted,
                }
            }

            /// Checks each setting; the error names the entity `what` and the place `key` in a file.
            pub(super) fn check(&self, what: &str, key: &str) -> Result<()> {
                let wrong = |setting: &str, must: &str| {
                    Err(Error::config(format!("{what}: {setting} must {must}")).with_context("key", format!("{key}.{setting}")))
                };
                if self.max_deliveries == Some(0) {
                    return wrong("max_deliveries", "be at least 1");
                }
                if self.lock.is_some_and(|lock| lock < Duration::from_secs(1)) {
                    return wrong("lock", "be at least 1s");
                }
                if self.retry.as_ref().is_some_and(|r| r.is_empty()) {
                    return wrong("retry", "name at least one delay, such as [\"1s\"]");
                }
                check_physical(what, key, self.physical.as_deref())
            }
        }
    };
}

consumer_spec! {
    /// A queue: each message goes to one of its consumers.
    ///
    /// ```
    /// use std::time::Duration;
    /// use polybus_core::{QueueSpec, Topology};
    ///
    /// let spec = QueueSpec::new().ordered(true).retry([1, 10].map(Duration::from_secs)).max_deliveries(3);
    /// let topology = Topology::new().queue("payments", spec);
    /// # topology.check().unwrap();
    /// ```
    #[cfg_attr(feature = "schema", schemars(description = "A queue."))]
    QueueSpec {
        /// Whether messages of one key stay in order.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        ordered: bool,
    }
}

consumer_spec! {
    /// A subscription of a topic. Each subscription gets its own copy of a message. It is ordered if its topic is.
    ///
    /// ```
    /// use polybus_core::{SubscriptionSpec, TopicSpec, Topology};
    ///
    /// let billing = SubscriptionSpec::new().types(["order.placed", "refund.*"]).max_deliveries(3);
    /// let topology = Topology::new().topic("orders", TopicSpec::new().subscription("billing", billing));
    /// # topology.check().unwrap();
    /// ```
    #[cfg_attr(feature = "schema", schemars(description = "A subscription of a topic. It is ordered if its topic is."))]
    SubscriptionSpec {
        /// The event types it wants: exact ones, or all under a dot (`order.*`). An empty list means all.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
        types: Vec<TypeFilter>,
        /// What becomes of a message that the broker delivered and none of `types` wants: `dead-letter` (default),
        /// `handle` or `discard`.
        #[serde(skip_serializing_if = "is_default")]
        unwanted: UnwantedPolicy,
    }
}

fn is_default(unwanted: &UnwantedPolicy) -> bool {
    *unwanted == UnwantedPolicy::default()
}

impl QueueSpec {
    /// Sets whether messages of one key stay in order.
    ///
    /// ```
    /// assert!(polybus_core::QueueSpec::new().ordered(true).ordered);
    /// ```
    pub fn ordered(mut self, yes: bool) -> Self {
        self.ordered = yes;
        self
    }
}

impl SubscriptionSpec {
    /// Sets the event types it wants: exact ones, or `order.*` for all under `order`.
    ///
    /// Text that is no type filter is `ConfigInvalid` when a bus is made of the topology.
    ///
    /// ```
    /// use polybus_core::SubscriptionSpec;
    ///
    /// let billing = SubscriptionSpec::new().types(["order.placed", "refund.*"]);
    /// assert_eq!(billing.types.len(), 2);
    /// ```
    pub fn types<T: Into<TypeFilter>>(mut self, types: impl IntoIterator<Item = T>) -> Self {
        self.types = types.into_iter().map(Into::into).collect();
        self
    }

    /// Sets what becomes of a message that the broker delivered and none of `types` wants.
    ///
    /// ```
    /// use polybus_core::{SubscriptionSpec, topology::UnwantedPolicy};
    ///
    /// let spec = SubscriptionSpec::new().types(["order.*"]).unwanted(UnwantedPolicy::Discard);
    /// assert_eq!(spec.unwanted, UnwantedPolicy::Discard);
    /// ```
    pub fn unwanted(mut self, unwanted: UnwantedPolicy) -> Self {
        self.unwanted = unwanted;
        self
    }
}

/// A topic with its subscriptions.
///
/// ```
/// use polybus_core::{SubscriptionSpec, TopicSpec};
///
/// let spec = TopicSpec::new().subscription("billing", SubscriptionSpec::new());
/// assert!(spec.subscriptions.contains_key("billing"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(description = "A topic with its subscriptions."))]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct TopicSpec {
    /// Whether messages of one key stay in order, for all its subscriptions.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ordered: bool,
    /// The name at the broker, for what exists there already. It is used as it is, without the prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub physical: Option<String>,
    /// The adapters' own settings. Each subscription begins with them and may replace single ones.
    #[serde(skip_serializing_if = "AdapterOptions::is_empty")]
    pub options: AdapterOptions,
    /// The subscriptions by logical name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subscriptions: BTreeMap<String, SubscriptionSpec>,
}

impl TopicSpec {
    /// No subscriptions, and all settings at their defaults.
    ///
    /// ```
    /// assert!(polybus_core::TopicSpec::new().subscriptions.is_empty());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether messages of one key stay in order, for all its subscriptions.
    ///
    /// ```
    /// assert!(polybus_core::TopicSpec::new().ordered(true).ordered);
    /// ```
    pub fn ordered(mut self, yes: bool) -> Self {
        self.ordered = yes;
        self
    }

    /// Uses this name at the broker as it is, without the prefix. 1 to 255 bytes.
    ///
    /// ```
    /// let spec = polybus_core::TopicSpec::new().physical("Legacy.Orders");
    /// assert_eq!(spec.physical.as_deref(), Some("Legacy.Orders"));
    /// ```
    pub fn physical(mut self, name: impl Into<String>) -> Self {
        self.physical = Some(name.into());
        self
    }

    /// Sets an adapter's table of options.
    ///
    /// A table of any other adapter's name is ignored; a wrong key is found when the bus is made on that broker.
    ///
    /// ```
    /// let options = serde_json::json!({"partitions": 4});
    /// assert!(!polybus_core::TopicSpec::new().option("rabbitmq", options).options.is_empty());
    /// ```
    pub fn option(mut self, adapter: impl Into<String>, table: serde_json::Value) -> Self {
        self.options.insert(adapter, table);
        self
    }

    /// Adds a subscription under its logical name, which is unique within the topic.
    ///
    /// ```
    /// use polybus_core::{SubscriptionSpec, TopicSpec};
    ///
    /// let spec = TopicSpec::new().subscription("billing", SubscriptionSpec::new());
    /// assert_eq!(spec.subscriptions.len(), 1);
    /// ```
    pub fn subscription(mut self, name: impl Into<String>, spec: SubscriptionSpec) -> Self {
        self.subscriptions.insert(name.into(), spec);
        self
    }
}

impl Topology {
    /// A topology without queues and topics.
    ///
    /// ```
    /// assert!(polybus_core::Topology::new().queues.is_empty());
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `prefix` and `_` before all physical names, except those that a spec sets itself.
    ///
    /// ```
    /// use polybus_core::{Address, QueueSpec, Topology};
    ///
    /// let topology = Topology::new().prefix("shop").queue("payments", QueueSpec::new());
    /// assert_eq!(&*topology.address(&Address::queue("payments")).physical, "shop_payments");
    /// ```
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Adds a queue under its logical name.
    ///
    /// ```
    /// use polybus_core::{QueueSpec, Topology};
    ///
    /// let topology = Topology::new().queue("payments", QueueSpec::new());
    /// assert!(topology.queues.contains_key("payments"));
    /// ```
    pub fn queue(mut self, name: impl Into<String>, spec: QueueSpec) -> Self {
        self.queues.insert(name.into(), spec);
        self
    }

    /// Adds a topic under its logical name.
    ///
    /// ```
    /// use polybus_core::{TopicSpec, Topology};
    ///
    /// let topology = Topology::new().topic("orders", TopicSpec::new());
    /// assert!(topology.topics.contains_key("orders"));
    /// ```
    pub fn topic(mut self, name: impl Into<String>, spec: TopicSpec) -> Self {
        self.topics.insert(name.into(), spec);
        self
    }
}

/// Checks a physical name that a spec sets itself.
pub(super) fn check_physical(what: &str, key: &str, physical: Option<&str>) -> Result<()> {
    let wrong =
        |text: &str| Err(Error::config(format!("{what}: {text}")).with_context("key", format!("{key}.physical")));
    match physical {
        Some("") => wrong("physical must not be empty"),
        Some(name) if name.len() > 255 => wrong("physical is longer than 255 bytes"),
        _ => Ok(()),
    }
}
