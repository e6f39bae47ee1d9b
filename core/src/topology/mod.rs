//! The queues, topics and subscriptions an application uses: what an operator writes in the topology file.

mod adapter_options;
mod address;
mod entity;
pub(crate) mod names;
pub(crate) mod type_filter;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::{
    adapter_options::AdapterOptions,
    address::{Address, Source},
    entity::{DeclareMode, DeclarePlan, DeclareReport, Entity, EntityDifference, EntitySettings, SourceStats},
    type_filter::{TypeFilter, UnwantedPolicy},
};

use crate::{
    error::{Error, Result},
    runtime::duration,
    topology::{entity::OptionTables, names::check_name},
};

/// All queues and topics by logical name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Topology {
    /// Prepended to all physical names, with `_` between.
    #[serde(skip)]
    pub prefix: Option<String>,
    /// Queues.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub queues: BTreeMap<String, QueueSpec>,
    /// Topics with their subscriptions.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<String, TopicSpec>,
}

macro_rules! consumer_spec {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(deny_unknown_fields, default)]
        #[non_exhaustive]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $ty,)*
            /// A message is handed to handlers this often at most. Default 5.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub max_deliveries: Option<u32>,
            /// How long a consumer may hold a delivery without renewing. Default 30 s.
            #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
            pub lock: Option<Duration>,
            /// The delays between attempts; the last repeats. Default 1 s, 5 s, 30 s, 5 min.
            #[serde(with = "duration::list", skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "schema", schemars(with = "Option<Vec<String>>"))]
            pub retry: Option<Vec<Duration>>,
            /// Longest time an ordered source's message is held in place for a retry. Default 10 min.
            #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
            #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
            pub max_hold: Option<Duration>,
            /// Expired messages are dead-lettered as `expired` instead of dropped.
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            pub dead_letter_expired: bool,
            /// The name at the broker, for existing infrastructure; used as it is, without prefix.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub physical: Option<String>,
            /// Adapters' own settings.
            #[serde(skip_serializing_if = "AdapterOptions::is_empty")]
            pub options: AdapterOptions,
        }

        impl $name {
            /// All defaults.
            pub fn new() -> Self {
                Self::default()
            }

            /// Sets how often a message is handed to handlers at most.
            pub fn max_deliveries(mut self, n: u32) -> Self {
                self.max_deliveries = Some(n);
                self
            }

            /// Sets how long a delivery is held without renewing.
            pub fn lock(mut self, lock: Duration) -> Self {
                self.lock = Some(lock);
                self
            }

            /// Sets the delays between attempts.
            pub fn retry(mut self, delays: impl IntoIterator<Item = Duration>) -> Self {
                self.retry = Some(delays.into_iter().collect());
                self
            }

            /// Sets how long an ordered source's message is held in place at most.
            pub fn max_hold(mut self, hold: Duration) -> Self {
                self.max_hold = Some(hold);
                self
            }

            /// Dead-letters expired messages instead of dropping them.
            pub fn dead_letter_expired(mut self, yes: bool) -> Self {
                self.dead_letter_expired = yes;
                self
            }

            /// Uses this name at the broker.
            pub fn physical(mut self, name: impl Into<String>) -> Self {
                self.physical = Some(name.into());
                self
            }

            /// Sets an adapter's option table.
            pub fn option(mut self, adapter: impl Into<String>, table: serde_json::Value) -> Self {
                self.options.insert(adapter, table);
                self
            }

            fn settings(&self, ordered: bool, types: &[TypeFilter]) -> EntitySettings {
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

            fn check(&self, what: &str, key: &str) -> Result<()> {
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
    /// A queue.
    QueueSpec {
        /// Order per key.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        ordered: bool,
    }
}

consumer_spec! {
    /// A subscription of a topic. It is ordered if the topic is.
    SubscriptionSpec {
        /// The event types it wants: exact, or all under a dot (`order.*`). None means all.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
        types: Vec<TypeFilter>,
        /// What becomes of a message that the broker delivered and none of `types` wants: `dead-letter` (default), `handle` or
        /// `discard`.
        #[serde(skip_serializing_if = "is_default")]
        unwanted: UnwantedPolicy,
    }
}

fn is_default(unwanted: &UnwantedPolicy) -> bool {
    *unwanted == UnwantedPolicy::default()
}

impl QueueSpec {
    /// Keeps order per key.
    pub fn ordered(mut self, yes: bool) -> Self {
        self.ordered = yes;
        self
    }
}

impl SubscriptionSpec {
    /// Sets the event types it wants: exact ones, or `order.*` for all under `order`. Text that is no type filter is
    /// `ConfigInvalid` when a bus is made of the topology.
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
    pub fn unwanted(mut self, unwanted: UnwantedPolicy) -> Self {
        self.unwanted = unwanted;
        self
    }
}

/// A topic with its subscriptions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct TopicSpec {
    /// Order per key, for all its subscriptions.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ordered: bool,
    /// The name at the broker, for existing infrastructure; used as it is, without prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub physical: Option<String>,
    /// Adapters' own settings. Subscriptions start from them.
    #[serde(skip_serializing_if = "AdapterOptions::is_empty")]
    pub options: AdapterOptions,
    /// Subscriptions by logical name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub subscriptions: BTreeMap<String, SubscriptionSpec>,
}

impl TopicSpec {
    /// All defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps order per key.
    pub fn ordered(mut self, yes: bool) -> Self {
        self.ordered = yes;
        self
    }

    /// Uses this name at the broker.
    pub fn physical(mut self, name: impl Into<String>) -> Self {
        self.physical = Some(name.into());
        self
    }

    /// Sets an adapter's option table.
    pub fn option(mut self, adapter: impl Into<String>, table: serde_json::Value) -> Self {
        self.options.insert(adapter, table);
        self
    }

    /// Adds a subscription.
    pub fn subscription(mut self, name: impl Into<String>, spec: SubscriptionSpec) -> Self {
        self.subscriptions.insert(name.into(), spec);
        self
    }
}

impl Topology {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prepends `prefix` and `_` to all physical names.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = Some(prefix.into());
        self
    }

    /// Adds a queue.
    pub fn queue(mut self, name: impl Into<String>, spec: QueueSpec) -> Self {
        self.queues.insert(name.into(), spec);
        self
    }

    /// Adds a topic.
    pub fn topic(mut self, name: impl Into<String>, spec: TopicSpec) -> Self {
        self.topics.insert(name.into(), spec);
        self
    }

    /// Checks all names and settings, and that no two queues, topics or subscriptions of a topic take one name at the
    /// broker; `ConfigInvalid` names the entity, and its place in a file as context `key`.
    pub fn check(&self) -> Result<()> {
        let name = |what: &str, name: &str, key: &str| {
            check_name(what, name).map_err(|e| Error::config(e.message()).with_context("key", key))
        };
        if let Some(prefix) = &self.prefix {
            name("prefix", prefix, "bus.prefix")?;
        }
        let mut taken = Taken::new();
        for (queue, spec) in &self.queues {
            let key = format!("queues.{queue}");
            name("queue", queue, &key)?;
            let what = Source::queue(queue.as_str());
            spec.check(&what.to_string(), &key)?;
            take(&mut taken, self.source(&what).physical, what, key)?;
        }
        let mut taken = Taken::new();
        for (topic, spec) in &self.topics {
            let key = format!("topics.{topic}");
            name("topic", topic, &key)?;
            let what = Address::topic(topic.as_str());
            check_physical(&what.to_string(), &key, spec.physical.as_deref())?;
            take(&mut taken, self.address(&what).physical, what, key)?;
            let mut taken = Taken::new();
            for (sub, spec) in &spec.subscriptions {
                let key = format!("topics.{topic}.subscriptions.{sub}");
                name("subscription", sub, &key)?;
                let what = Source::subscription(topic.as_str(), sub.as_str());
                spec.check(&what.to_string(), &key)?;
                for filter in &spec.types {
                    filter.check().map_err(|e| Error::config(e.message()).with_context("key", &key))?;
                }
                take(&mut taken, self.source(&what).physical, what, key)?;
            }
        }
        Ok(())
    }

    /// Everything resolved, for a driver.
    pub fn plan(&self) -> DeclarePlan {
        let mut plan = DeclarePlan::new();
        for name in self.queues.keys() {
            plan.sources.push(self.source(&Source::queue(name.as_str())));
        }
        for (name, spec) in &self.topics {
            plan.topics.push(self.address(&Address::topic(name.as_str())));
            for sub in spec.subscriptions.keys() {
                plan.sources.push(self.source(&Source::subscription(name.as_str(), sub.as_str())));
            }
        }
        plan
    }

    /// What a driver is told about an address; defaults for one that the topology does not name.
    pub fn address(&self, address: &Address) -> Entity<Address> {
        match address {
            Address::Queue(name) => self.source(&Source::Queue(name.clone())).map(|_| address.clone()),
            Address::Topic(name) => {
                let spec = self.topics.get(&**name);
                let physical = spec.and_then(|t| t.physical.as_deref());
                let mut entity = self.entity(address.clone(), ("topics", name), physical, spec.map(|t| &t.options));
                entity.settings.ordered = spec.is_some_and(|t| t.ordered);
                entity
            }
        }
    }

    /// What a driver is told about a source; defaults for one that the topology does not name.
    pub fn source(&self, source: &Source) -> Entity<Source> {
        match source.live() {
            Source::Subscription { topic, name } => {
                let parent = self.address(&Address::Topic(topic.clone()));
                let spec = self.topics.get(&**topic).and_then(|t| t.subscriptions.get(&**name));
                let physical = spec.and_then(|s| s.physical.as_deref()).map_or_else(|| name.clone(), Arc::from);
                let mut entity = Entity::new(source.clone(), physical);
                entity.fixed = spec.is_some_and(|s| s.physical.is_some());
                entity.declared = spec.is_some();
                entity.parent = Some(parent.physical);
                if let Some(spec) = spec {
                    entity.settings = spec.settings(parent.settings.ordered, &spec.types);
                    entity.settings.unwanted = spec.unwanted;
                    let key = format!("topics.{topic}.subscriptions.{name}");
                    let base = self.topics.get(&**topic).map(|t| &t.options);
                    let options = base.map_or_else(|| spec.options.clone(), |base| spec.options.over(base));
                    entity = entity.with_options(OptionTables::new(options), key);
                }
                entity
            }
            live => {
                let name = live.address();
                let spec = self.queues.get(name.name());
                let physical = spec.and_then(|q| q.physical.as_deref());
                let mut entity =
                    self.entity(source.clone(), ("queues", name.name()), physical, spec.map(|q| &q.options));
                if let Some(spec) = spec {
                    entity.settings = spec.settings(spec.ordered, &[]);
                }
                entity
            }
        }
    }

    fn entity<T>(
        &self,
        name: T,
        (kind, logical): (&str, &str),
        physical: Option<&str>,
        options: Option<&AdapterOptions>,
    ) -> Entity<T> {
        let given = match (physical, &self.prefix) {
            (Some(physical), _) => physical.to_owned(),
            (None, Some(prefix)) => format!("{prefix}_{logical}"),
            (None, None) => logical.to_owned(),
        };
        let mut entity = Entity::new(name, given);
        entity.fixed = physical.is_some();
        entity.declared = options.is_some();
        match options {
            Some(options) => entity.with_options(OptionTables::new(options.clone()), format!("{kind}.{logical}")),
            None => entity,
        }
    }
}

/// Which entity has which name at the broker.
type Taken = BTreeMap<Arc<str>, String>;

fn take(taken: &mut Taken, physical: Arc<str>, what: impl ToString, key: String) -> Result<()> {
    match taken.insert(physical.clone(), what.to_string()) {
        None => Ok(()),
        Some(other) => Err(Error::config(format!(
            "{other} and {} would both be {physical:?} at the broker: rename one or change its physical",
            what.to_string()
        ))
        .with_context("key", key)),
    }
}

fn check_physical(what: &str, key: &str, physical: Option<&str>) -> Result<()> {
    let wrong =
        |text: &str| Err(Error::config(format!("{what}: {text}")).with_context("key", format!("{key}.physical")));
    match physical {
        Some("") => wrong("physical must not be empty"),
        Some(name) if name.len() > 255 => wrong("physical is longer than 255 bytes"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_starts_from_its_topics_options() {
        let sub = SubscriptionSpec::new().option("a", serde_json::json!({"y": 3}));
        let topic = TopicSpec::new().option("a", serde_json::json!({"x": 1, "y": 2})).subscription("s", sub);
        let t = Topology::new().topic("t", topic);
        let entity = t.source(&Source::subscription("t", "s"));
        let options: std::collections::BTreeMap<String, u32> = entity.options("a").unwrap();
        assert_eq!(options, [("x".into(), 1), ("y".into(), 3)].into());
    }

    #[test]
    fn prefix_physical_and_inheritance() {
        let t = Topology::new()
            .prefix("shop")
            .queue("a", QueueSpec::new().ordered(true))
            .queue("b", QueueSpec::new().physical("Legacy.B"))
            .topic("t", TopicSpec::new().ordered(true).subscription("s", SubscriptionSpec::new().types(["x.*"])));
        t.check().unwrap();
        assert_eq!(&*t.address(&Address::queue("a")).physical, "shop_a");
        assert_eq!(&*t.address(&Address::queue("b")).physical, "Legacy.B");
        let s = t.source(&Source::subscription("t", "s").dead_letters());
        assert_eq!((&*s.physical, s.parent.as_deref()), ("s", Some("shop_t")));
        assert!(s.settings.ordered && s.settings.types[0].matches("x.y"));
        assert_eq!(t.plan().sources.len(), 3);
        assert_eq!(&*t.address(&Address::queue("unknown")).physical, "shop_unknown");
    }

    #[test]
    fn wrong_settings_name_the_entity() {
        for (t, word) in [
            (Topology::new().queue("A", QueueSpec::new()), "queue name"),
            (Topology::new().queue("a", QueueSpec::new().max_deliveries(0)), "queue:a: max_deliveries"),
            (Topology::new().prefix("x_y"), "prefix name"),
            (
                Topology::new().prefix("p").queue("a", QueueSpec::new()).queue("b", QueueSpec::new().physical("p_a")),
                "queue:a and queue:b would both be \"p_a\"",
            ),
            (
                Topology::new().topic(
                    "t",
                    TopicSpec::new()
                        .subscription("a", SubscriptionSpec::new().physical("b"))
                        .subscription("b", SubscriptionSpec::new()),
                ),
                "subscription:t/a and subscription:t/b",
            ),
        ] {
            let e = t.check().unwrap_err();
            assert!(e.kind() == crate::error::ErrorKind::ConfigInvalid && e.to_string().contains(word), "{e}");
        }
    }
}
