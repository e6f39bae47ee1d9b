//! The entities of the namespace by name: created, found, changed, listed, deleted.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::address::{Address, SubQueue};
use super::dispatch::{EntityStores, StoreOwner};
use super::entities::{
    Queue, QueueInfo, QueueSettings, Subscription, SubscriptionInfo, SubscriptionSettings, Topic, TopicInfo,
    TopicSettings, validate,
};
use super::rules::{Rule, RuleFilter};
use super::source::Source;
use super::store::{MessageStore, StorePolicy};
use super::target::{Target, TargetEntity};
use super::timers::StoreTimers;
use crate::auth::AccessKey;
use crate::clock::Clock;
use crate::http::atom::authorization_rules;
use crate::refusal::{Condition, Refusal};

/// The broker of one namespace. A clone refers to the same broker.
#[derive(Clone)]
pub struct Broker(Arc<Namespace>);

/// The tier of a namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tier {
    /// 256 KiB a message.
    #[default]
    Standard,
    /// 1 MiB a message, and more where an entity says so.
    Premium,
}

impl Tier {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Standard => "Standard",
            Self::Premium => "Premium",
        }
    }

    /// The largest message where nothing else is said, in bytes.
    pub fn max_message_bytes(self) -> u64 {
        match self {
            Self::Standard => 256 * 1024,
            Self::Premium => 1024 * 1024,
        }
    }
}

/// Limits of the namespace. The defaults are those of the standard tier.
#[derive(Clone, Debug)]
pub struct NamespaceLimits {
    /// Whether clients may choose the largest message of an entity.
    pub tier: Tier,
    /// Largest message, in bytes, where the entity does not say.
    pub max_message_bytes: u64,
    /// Most queues and topics.
    pub max_entities: usize,
    /// Most subscriptions of a topic.
    pub max_per_topic: usize,
}

impl Default for NamespaceLimits {
    fn default() -> Self {
        Self { tier: Tier::Standard, max_message_bytes: 256 * 1024, max_entities: 10_000, max_per_topic: 2_000 }
    }
}

pub(crate) struct Namespace {
    pub(super) clock: Clock,
    limits: NamespaceLimits,
    timers: Arc<StoreTimers>,
    /// By name in lower case.
    entities: RwLock<BTreeMap<String, TargetEntity>>,
}

impl Namespace {
    pub(super) fn store(&self, path: Arc<str>, policy: StorePolicy, owner: StoreOwner) -> Arc<MessageStore> {
        MessageStore::new(path, policy, owner, self.clock.clone(), self.timers.clone())
    }

    pub(super) fn target(&self, address: &str) -> Result<Target, Refusal> {
        let parsed = Address::parse(address);
        if parsed.subscription.is_some() || parsed.sub_queue != SubQueue::Main {
            return Err(Refusal::new(
                Condition::NotAllowed,
                format!("A sender cannot be created on '{parsed}': only queues and topics are sent to."),
            ));
        }
        let entity = self.entity(&parsed.entity)?;
        Ok(Target { entity, max_message_bytes: self.limits.max_message_bytes })
    }

    pub(super) fn exists(&self, name: &str) -> bool {
        self.entities.read().unwrap_or_else(PoisonError::into_inner).contains_key(&name.to_lowercase())
    }

    fn entity(&self, name: &str) -> Result<TargetEntity, Refusal> {
        let entities = self.entities.read().unwrap_or_else(PoisonError::into_inner);
        entities.get(&name.to_lowercase()).cloned().ok_or_else(|| Refusal::no_entity(name))
    }

    fn queue(&self, name: &str) -> Result<Arc<Queue>, Refusal> {
        match self.entity(name)? {
            TargetEntity::Queue(queue) => Ok(queue),
            TargetEntity::Topic(_) => Err(Refusal::no_entity(name)),
        }
    }

    fn topic(&self, name: &str) -> Result<Arc<Topic>, Refusal> {
        match self.entity(name)? {
            TargetEntity::Topic(topic) => Ok(topic),
            TargetEntity::Queue(_) => Err(Refusal::no_entity(name)),
        }
    }

    fn subscription(&self, topic: &str, name: &str) -> Result<Arc<Subscription>, Refusal> {
        let topic = self.topic(topic)?;
        let subscriptions = topic.subscriptions.read().unwrap_or_else(PoisonError::into_inner);
        let found = subscriptions.get(&name.to_lowercase()).cloned();
        found.ok_or_else(|| Refusal::no_entity(&format!("{}/Subscriptions/{name}", topic.name)))
    }

    fn add(&self, name: &str, entity: TargetEntity) -> Result<(), Refusal> {
        let mut entities = self.entities.write().unwrap_or_else(PoisonError::into_inner);
        let key = name.to_lowercase();
        if entities.contains_key(&key) {
            return Err(Refusal::exists(name));
        }
        if entities.len() >= self.limits.max_entities {
            return Err(Refusal::new(
                Condition::QuotaExceeded,
                format!("There are {} queues and topics, which is the most there may be.", entities.len()),
            ));
        }
        entities.insert(key, entity);
        Ok(())
    }
}

impl Broker {
    /// A broker without entities. Its timers run while [`Broker::run_timers`] does, and whenever the clock is moved.
    pub fn new(clock: Clock, limits: NamespaceLimits) -> Self {
        let timers = Arc::new(StoreTimers::default());
        let (moved, on) = (Arc::downgrade(&timers), clock.clone());
        let on = move || on.now_ms();
        clock.on_move(move || {
            moved.upgrade().is_some_and(|timers| {
                timers.run_due(on());
                true
            })
        });
        Self(Arc::new(Namespace { clock, limits, timers, entities: RwLock::default() }))
    }

    /// Runs the timers for as long as it is polled.
    pub async fn run_timers(&self) {
        self.0.timers.run(&self.0.clock).await;
    }

    /// The namespace's limits.
    pub fn limits(&self) -> &NamespaceLimits {
        &self.0.limits
    }

    /// The clock this broker goes by.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The target at this address, to send to.
    pub fn target(&self, address: &str) -> Result<Target, Refusal> {
        self.0.target(address)
    }

    /// The source at this address, to receive from.
    pub fn source(&self, address: &str) -> Result<Source, Refusal> {
        let address = Address::parse(address);
        let (backing, subscription): (Arc<EntityStores>, _) = match &address.subscription {
            Some(name) => {
                let subscription = self.0.subscription(&address.entity, name)?;
                (subscription.backing.clone(), Some(subscription))
            }
            None => match self.0.entity(&address.entity)? {
                TargetEntity::Queue(queue) => (queue.backing.clone(), None),
                TargetEntity::Topic(topic) => {
                    return Err(Refusal::new(
                        Condition::NotAllowed,
                        format!("A receiver cannot be created on topic '{}', only on its subscriptions.", topic.name),
                    ));
                }
            },
        };
        Ok(Source { backing, subscription, sub_queue: address.sub_queue })
    }

    /// The keys of the access policy of the entity at an address.
    pub(crate) fn access_keys(&self, address: &str) -> Vec<AccessKey> {
        let path = Address::parse(address).entity;
        // An address below an entity's belongs to the entity: `/messages`, `/$management`, `/Subscriptions/…`.
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        let found = ends.filter_map(|end| self.0.entity(&path[..end]).ok());
        let rules = found.filter_map(|entity| match entity {
            TargetEntity::Queue(queue) => Some((queue.name.clone(), queue.settings().authorization_rules?)),
            TargetEntity::Topic(topic) => Some((topic.name.clone(), topic.settings().authorization_rules?)),
        });
        rules.flat_map(|(name, rules)| authorization_rules::keys(&rules, &name)).collect()
    }

    /// Whether there is a queue or topic of this name.
    pub fn exists(&self, name: &str) -> bool {
        self.0.exists(name)
    }

    /// Creates a queue.
    pub fn create_queue(&self, name: &str, settings: QueueSettings) -> Result<QueueInfo, Refusal> {
        validate::name(name)?;
        validate::queue(&self.0, &settings)?;
        let queue = Arc::new(Queue::new(name, settings, &self.0));
        self.0.add(name, TargetEntity::Queue(queue.clone()))?;
        Ok(queue.info())
    }

    /// Changes a queue's settings.
    pub fn update_queue(&self, name: &str, settings: QueueSettings) -> Result<QueueInfo, Refusal> {
        let queue = self.0.queue(name)?;
        validate::queue(&self.0, &settings)?;
        let old = queue.settings();
        validate::unchanged("Queue", "RequiresSession", old.requires_session, settings.requires_session)?;
        validate::unchanged(
            "Queue",
            "RequiresDuplicateDetection",
            old.requires_duplicate_detection,
            settings.requires_duplicate_detection,
        )?;
        validate::same_partitioning("Queue", old.enable_partitioning, settings.enable_partitioning)?;
        queue.update(settings, self.0.clock.now_ms());
        Ok(queue.info())
    }

    /// A queue.
    pub fn queue(&self, name: &str) -> Result<QueueInfo, Refusal> {
        Ok(self.0.queue(name)?.info())
    }

    /// All queues, by name.
    pub fn queues(&self) -> Vec<QueueInfo> {
        self.entities()
            .iter()
            .filter_map(|entity| match entity {
                TargetEntity::Queue(queue) => Some(queue.info()),
                TargetEntity::Topic(_) => None,
            })
            .collect()
    }

    /// Deletes a queue or a topic with its messages. Waiting receivers are woken and refused.
    pub fn delete(&self, name: &str) -> Result<(), Refusal> {
        let gone = {
            let mut entities = self.0.entities.write().unwrap_or_else(PoisonError::into_inner);
            entities.remove(&name.to_lowercase()).ok_or_else(|| Refusal::no_entity(name))?
        };
        match gone {
            TargetEntity::Queue(queue) => queue.backing.close(),
            TargetEntity::Topic(topic) => topic.close(),
        }
        Ok(())
    }

    /// Creates a topic.
    pub fn create_topic(&self, name: &str, settings: TopicSettings) -> Result<TopicInfo, Refusal> {
        validate::name(name)?;
        validate::topic(&settings)?;
        let topic = Topic::new(name, settings, &self.0);
        self.0.add(name, TargetEntity::Topic(topic.clone()))?;
        Ok(topic.info())
    }

    /// Changes a topic's settings.
    pub fn update_topic(&self, name: &str, settings: TopicSettings) -> Result<TopicInfo, Refusal> {
        let topic = self.0.topic(name)?;
        validate::topic(&settings)?;
        let old = topic.settings();
        validate::unchanged(
            "Topic",
            "RequiresDuplicateDetection",
            old.requires_duplicate_detection,
            settings.requires_duplicate_detection,
        )?;
        validate::same_partitioning("Topic", old.enable_partitioning, settings.enable_partitioning)?;
        topic.update(settings.clone(), self.0.clock.now_ms());
        for subscription in topic.subscriptions() {
            subscription.apply(&settings);
        }
        Ok(topic.info())
    }

    /// A topic.
    pub fn topic(&self, name: &str) -> Result<TopicInfo, Refusal> {
        Ok(self.0.topic(name)?.info())
    }

    /// The numbers of SQL and correlation filters of a topic's subscriptions. True and false filters count as SQL.
    pub fn filters(&self, topic: &str) -> Result<(usize, usize), Refusal> {
        let rules: Vec<Arc<Rule>> = self.0.topic(topic)?.subscriptions().iter().flat_map(|one| one.rules()).collect();
        let correlation = rules.iter().filter(|rule| matches!(rule.filter, RuleFilter::Correlation(_))).count();
        Ok((rules.len() - correlation, correlation))
    }

    /// All topics, by name.
    pub fn topics(&self) -> Vec<TopicInfo> {
        self.entities()
            .iter()
            .filter_map(|entity| match entity {
                TargetEntity::Topic(topic) => Some(topic.info()),
                TargetEntity::Queue(_) => None,
            })
            .collect()
    }

    /// Creates a subscription with its first rule: `$Default`, which lets everything through, unless another is given.
    pub fn create_subscription(
        &self,
        topic: &str,
        name: &str,
        settings: SubscriptionSettings,
        rule: Option<Rule>,
    ) -> Result<SubscriptionInfo, Refusal> {
        let topic = self.0.topic(topic)?;
        validate::subscription_name(name)?;
        validate::subscription(&self.0, &settings)?;
        let subscription = Arc::new(Subscription::new(&topic, name, settings, &self.0));
        subscription.add_rule(rule.unwrap_or_else(Rule::default_rule))?;
        let mut subscriptions = topic.subscriptions.write().unwrap_or_else(PoisonError::into_inner);
        let key = name.to_lowercase();
        if subscriptions.contains_key(&key) {
            return Err(Refusal::exists(&format!("{}/Subscriptions/{name}", topic.name)));
        }
        if subscriptions.len() >= self.0.limits.max_per_topic {
            return Err(Refusal::new(
                Condition::QuotaExceeded,
                format!(
                    "Topic '{}' has {} subscriptions, which is the most there may be.",
                    topic.name,
                    subscriptions.len()
                ),
            ));
        }
        subscriptions.insert(key, subscription.clone());
        drop(subscriptions);
        Ok(subscription.info())
    }

    /// Changes a subscription's settings.
    pub fn update_subscription(
        &self,
        topic: &str,
        name: &str,
        settings: SubscriptionSettings,
    ) -> Result<SubscriptionInfo, Refusal> {
        let subscription = self.0.subscription(topic, name)?;
        validate::subscription(&self.0, &settings)?;
        let old = subscription.settings();
        validate::unchanged("Subscription", "RequiresSession", old.requires_session, settings.requires_session)?;
        let topic = self.0.topic(topic)?.settings();
        subscription.update(settings, &topic, self.0.clock.now_ms());
        Ok(subscription.info())
    }

    /// A subscription.
    pub fn subscription(&self, topic: &str, name: &str) -> Result<SubscriptionInfo, Refusal> {
        Ok(self.0.subscription(topic, name)?.info())
    }

    /// All subscriptions of a topic, by name.
    pub fn subscriptions(&self, topic: &str) -> Result<Vec<SubscriptionInfo>, Refusal> {
        Ok(self.0.topic(topic)?.subscriptions().iter().map(|subscription| subscription.info()).collect())
    }

    /// Deletes a subscription with its messages. Waiting receivers are woken and refused.
    pub fn delete_subscription(&self, topic: &str, name: &str) -> Result<(), Refusal> {
        let subscription = self.0.subscription(topic, name)?;
        let topic = self.0.topic(topic)?;
        topic.subscriptions.write().unwrap_or_else(PoisonError::into_inner).remove(&name.to_lowercase());
        subscription.backing.close();
        Ok(())
    }

    /// The rules of a subscription, by name.
    pub fn rules(&self, topic: &str, subscription: &str) -> Result<Vec<Arc<Rule>>, Refusal> {
        Ok(self.0.subscription(topic, subscription)?.rules())
    }

    /// Adds a rule to a subscription.
    pub fn add_rule(&self, topic: &str, subscription: &str, rule: Rule) -> Result<(), Refusal> {
        self.0.subscription(topic, subscription)?.add_rule(rule)
    }

    /// Replaces the rule of the same name.
    pub fn update_rule(&self, topic: &str, subscription: &str, rule: Rule) -> Result<(), Refusal> {
        self.0.subscription(topic, subscription)?.replace_rule(rule)
    }

    /// Removes a rule from a subscription.
    pub fn remove_rule(&self, topic: &str, subscription: &str, name: &str) -> Result<(), Refusal> {
        self.0.subscription(topic, subscription)?.remove_rule(name)
    }

    fn entities(&self) -> Vec<TargetEntity> {
        self.0.entities.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}
