//! Resolves a topology: checks it, and works out what a driver is told about each queue, topic and subscription.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    AdapterOptions, Address, DeclarePlan, Entity, Source, Topology, entity::OptionTables, names::check_name,
    specs::check_physical,
};
use crate::{Error, Result};

impl Topology {
    /// Checks all names and settings, and that no two queues, topics or subscriptions of a topic take one name at the
    /// broker.
    ///
    /// `Bus::new` runs it, so an application need not.
    ///
    /// # Errors
    /// `ConfigInvalid` names the entity, and its place in a configuration file as context `key`.
    ///
    /// ```
    /// use polybus_core::{QueueSpec, Topology};
    ///
    /// let error = Topology::new().queue("Payments", QueueSpec::new()).check().unwrap_err();
    /// assert_eq!(error.context("key"), Some("queues.Payments"));
    /// ```
    pub fn check(&self) -> Result<()> {
        let name = |what: &str, name: &str, key: &str| {
            check_name(what, name).map_err(|e| Error::config(e.message()).with_context("key", key))
        };
        if let Some(prefix) = &self.prefix {
            name("prefix", prefix, "bus.prefix")?;
        }
        let mut owners = NameOwners::new();
        for (queue, spec) in &self.queues {
            let key = format!("queues.{queue}");
            name("queue", queue, &key)?;
            let what = Source::queue(queue.as_str());
            spec.check(&what.to_string(), &key)?;
            claim(&mut owners, self.source(&what).physical, what, key)?;
        }
        let mut owners = NameOwners::new();
        for (topic, spec) in &self.topics {
            let key = format!("topics.{topic}");
            name("topic", topic, &key)?;
            let what = Address::topic(topic.as_str());
            check_physical(&what.to_string(), &key, spec.physical.as_deref())?;
            claim(&mut owners, self.address(&what).physical, what, key)?;
            let mut owners = NameOwners::new();
            for (sub, spec) in &spec.subscriptions {
                let key = format!("topics.{topic}.subscriptions.{sub}");
                name("subscription", sub, &key)?;
                let what = Source::subscription(topic.as_str(), sub.as_str());
                spec.check(&what.to_string(), &key)?;
                for filter in &spec.types {
                    filter.check().map_err(|e| Error::config(e.message()).with_context("key", &key))?;
                }
                claim(&mut owners, self.source(&what).physical, what, key)?;
            }
        }
        Ok(())
    }

    /// All entities with everything resolved, as [`Driver::declare`](crate::driver::Driver::declare) is given them.
    ///
    /// ```
    /// use polybus_core::{QueueSpec, SubscriptionSpec, TopicSpec, Topology};
    ///
    /// let orders = TopicSpec::new().subscription("billing", SubscriptionSpec::new());
    /// let plan = Topology::new().queue("payments", QueueSpec::new()).topic("orders", orders).plan();
    /// assert_eq!((plan.topics.len(), plan.sources.len()), (1, 2));
    /// ```
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

    /// What a driver is told about an address. One that the topology does not name gets defaults.
    ///
    /// ```
    /// use polybus_core::{Address, QueueSpec, Topology};
    ///
    /// let topology = Topology::new().prefix("shop").queue("payments", QueueSpec::new());
    /// let entity = topology.address(&Address::queue("payments"));
    /// assert_eq!((&*entity.physical, entity.declared), ("shop_payments", true));
    /// assert!(!topology.address(&Address::queue("unknown")).declared);
    /// ```
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

    /// What a driver is told about a source. One that the topology does not name gets defaults.
    ///
    /// ```
    /// use polybus_core::{Source, SubscriptionSpec, TopicSpec, Topology};
    ///
    /// let orders = TopicSpec::new().ordered(true).subscription("billing", SubscriptionSpec::new());
    /// let entity = Topology::new().topic("orders", orders).source(&Source::subscription("orders", "billing"));
    /// assert_eq!((&*entity.physical, entity.parent.as_deref()), ("billing", Some("orders")));
    /// assert!(entity.settings.ordered, "as its topic is");
    /// ```
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

    /// An entity of a queue or topic with its name at the broker and its options.
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

/// The names at the broker that are taken, and the entity that has each.
type NameOwners = BTreeMap<Arc<str>, String>;

/// Takes a name at the broker for an entity. Two entities with one name are an error.
fn claim(owners: &mut NameOwners, physical: Arc<str>, what: impl ToString, key: String) -> Result<()> {
    match owners.insert(physical.clone(), what.to_string()) {
        None => Ok(()),
        Some(other) => Err(Error::config(format!(
            "{other} and {} would both be {physical:?} at the broker: rename one or change its physical",
            what.to_string()
        ))
        .with_context("key", key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{QueueSpec, SubscriptionSpec, TopicSpec};

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
