//! Queues, topics and subscriptions: their settings, their stores, and the information that management shows.

mod settings;
pub(crate) mod validate;

pub use settings::{EntityStatus, QueueSettings, SubscriptionSettings, TopicSettings};

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::address::{Address, SubQueue};
use super::dispatch::{EntityStores, Forwarding, StoreOwner};
use super::namespace::Namespace;
use super::rules::Rule;
use super::store::DuplicateHistory;
use super::store::{DueRoute, MessageStore, StorePolicy};

/// The numbers of an entity's messages, and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MessageCounts {
    /// To be received, locked and deferred ones included.
    pub active: u64,
    /// In the dead letters.
    pub dead_letter: u64,
    /// Not due yet.
    pub scheduled: u64,
    /// Being forwarded. Always 0, because forwarding is done at once.
    pub transfer: u64,
    /// Could not be forwarded.
    pub transfer_dead_letter: u64,
    /// Bytes of all of them.
    pub size_bytes: u64,
}

impl MessageCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.active + self.dead_letter + self.scheduled + self.transfer + self.transfer_dead_letter
    }
}

/// When an entity was made, changed and used, milliseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntityTimes {
    /// Made.
    pub created: i64,
    /// Settings changed.
    pub updated: i64,
    /// Sent to or received from.
    pub accessed: i64,
}

/// A queue as it is now.
#[derive(Clone, Debug)]
pub struct QueueInfo {
    /// Its name, in the case it was created with.
    pub name: String,
    /// Its settings.
    pub settings: QueueSettings,
    /// What is in it.
    pub counts: MessageCounts,
    /// Its times.
    pub times: EntityTimes,
}

/// A topic as it is now.
#[derive(Clone, Debug)]
pub struct TopicInfo {
    /// Its name, in the case it was created with.
    pub name: String,
    /// Its settings.
    pub settings: TopicSettings,
    /// What it has scheduled, and the size of what its subscriptions store.
    pub counts: MessageCounts,
    /// How many subscriptions it has.
    pub subscriptions: usize,
    /// Its times.
    pub times: EntityTimes,
}

/// A subscription as it is now.
#[derive(Clone, Debug)]
pub struct SubscriptionInfo {
    /// Its topic.
    pub topic: String,
    /// Its name, in the case it was created with.
    pub name: String,
    /// Its settings.
    pub settings: SubscriptionSettings,
    /// What is in it.
    pub counts: MessageCounts,
    /// Its times.
    pub times: EntityTimes,
}

pub(super) struct EntityTimeRecord {
    created: i64,
    updated: AtomicI64,
    accessed: AtomicI64,
}

impl EntityTimeRecord {
    fn new(now: i64) -> Self {
        Self { created: now, updated: AtomicI64::new(now), accessed: AtomicI64::new(0) }
    }

    /// A subscription counts as accessed when it is created.
    fn used(now: i64) -> Self {
        Self { accessed: AtomicI64::new(now), ..Self::new(now) }
    }

    pub(super) fn touch(&self, now: i64) {
        self.accessed.store(now, Ordering::Relaxed);
    }

    fn update(&self, now: i64) {
        self.updated.store(now, Ordering::Relaxed);
    }

    fn info(&self) -> EntityTimes {
        EntityTimes {
            created: self.created,
            updated: self.updated.load(Ordering::Relaxed),
            accessed: self.accessed.load(Ordering::Relaxed),
        }
    }
}

pub(super) struct Queue {
    pub(super) name: String,
    pub(super) settings: RwLock<QueueSettings>,
    pub(super) backing: Arc<EntityStores>,
    pub(super) duplicates: Mutex<DuplicateHistory>,
    pub(super) times: EntityTimeRecord,
}

pub(super) struct Topic {
    pub(super) name: String,
    pub(super) settings: RwLock<TopicSettings>,
    /// By name in lower case.
    pub(super) subscriptions: RwLock<BTreeMap<String, Arc<Subscription>>>,
    /// The scheduled messages that are not due. It also gives out the topic's sequence numbers.
    pub(super) scheduled: Arc<MessageStore>,
    pub(super) duplicates: Mutex<DuplicateHistory>,
    pub(super) times: EntityTimeRecord,
}

pub(super) struct Subscription {
    pub(super) topic: String,
    pub(super) name: String,
    pub(super) settings: RwLock<SubscriptionSettings>,
    pub(super) backing: Arc<EntityStores>,
    /// By name in lower case.
    pub(super) rules: RwLock<BTreeMap<String, Arc<Rule>>>,
    pub(super) times: EntityTimeRecord,
}

impl Queue {
    pub(super) fn new(name: &str, settings: QueueSettings, namespace: &Arc<Namespace>) -> Self {
        let policy = policy_of_queue(&settings);
        let forwarding =
            Forwarding { to: settings.forward_to.clone(), dead_letters_to: settings.forward_dead_lettered_to.clone() };
        Self {
            name: name.to_owned(),
            settings: RwLock::new(settings),
            backing: EntityStores::new(&Address::parse(name), policy, forwarding, namespace),
            duplicates: Mutex::default(),
            times: EntityTimeRecord::new(namespace.clock.now_ms()),
        }
    }

    pub(super) fn settings(&self) -> QueueSettings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, settings: QueueSettings, now: i64) {
        self.backing.set_forwarding(&settings.forward_to, &settings.forward_dead_lettered_to);
        self.backing.set_policy(policy_of_queue(&settings));
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        self.times.update(now);
    }

    pub(super) fn info(&self) -> QueueInfo {
        QueueInfo {
            name: self.name.clone(),
            settings: self.settings(),
            counts: self.backing.counts(),
            times: self.times.info(),
        }
    }
}

impl Topic {
    pub(super) fn new(name: &str, settings: TopicSettings, namespace: &Arc<Namespace>) -> Arc<Self> {
        let policy = StorePolicy {
            lock_ms: 0,
            max_delivery_count: None,
            default_ttl_ms: None,
            dead_letter_expired: false,
            sessions: false,
            flow: DueRoute::Route,
            status: EntityStatus::Active,
            partitioned: settings.enable_partitioning,
            detects_duplicates: settings.requires_duplicate_detection,
        };
        Arc::new_cyclic(|this| Self {
            name: name.to_owned(),
            settings: RwLock::new(settings),
            subscriptions: RwLock::default(),
            scheduled: namespace.store(Arc::from(name), policy, StoreOwner::Topic(this.clone())),
            duplicates: Mutex::default(),
            times: EntityTimeRecord::new(namespace.clock.now_ms()),
        })
    }

    pub(super) fn settings(&self) -> TopicSettings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, settings: TopicSettings, now: i64) {
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        self.times.update(now);
    }

    pub(super) fn subscriptions(&self) -> Vec<Arc<Subscription>> {
        self.subscriptions.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn info(&self) -> TopicInfo {
        let scheduled = self.scheduled.with(|state, _, _| state.tally);
        let subscriptions = self.subscriptions();
        let stored: u64 = subscriptions.iter().map(|subscription| subscription.backing.bytes()).sum();
        TopicInfo {
            name: self.name.clone(),
            settings: self.settings(),
            counts: MessageCounts {
                scheduled: scheduled.scheduled,
                size_bytes: scheduled.bytes + stored,
                ..MessageCounts::default()
            },
            subscriptions: subscriptions.len(),
            times: self.times.info(),
        }
    }

    pub(super) fn close(&self) {
        self.scheduled.close();
        for subscription in self.subscriptions() {
            subscription.backing.close();
        }
    }
}

impl Subscription {
    pub(super) fn new(topic: &Topic, name: &str, settings: SubscriptionSettings, namespace: &Arc<Namespace>) -> Self {
        let policy = policy_of_subscription(&settings, &topic.settings());
        let forwarding =
            Forwarding { to: settings.forward_to.clone(), dead_letters_to: settings.forward_dead_lettered_to.clone() };
        let address =
            Address { entity: topic.name.clone(), subscription: Some(name.to_owned()), sub_queue: SubQueue::Main };
        Self {
            topic: topic.name.clone(),
            name: name.to_owned(),
            settings: RwLock::new(settings),
            backing: EntityStores::new(&address, policy, forwarding, namespace),
            rules: RwLock::default(),
            times: EntityTimeRecord::used(namespace.clock.now_ms()),
        }
    }

    pub(super) fn settings(&self) -> SubscriptionSettings {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn update(&self, settings: SubscriptionSettings, topic: &TopicSettings, now: i64) {
        self.backing.set_forwarding(&settings.forward_to, &settings.forward_dead_lettered_to);
        self.backing.set_policy(policy_of_subscription(&settings, topic));
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
        self.times.update(now);
    }

    pub(super) fn rules(&self) -> Vec<Arc<Rule>> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn info(&self) -> SubscriptionInfo {
        SubscriptionInfo {
            topic: self.topic.clone(),
            name: self.name.clone(),
            settings: self.settings(),
            counts: self.backing.counts(),
            times: self.times.info(),
        }
    }
}

impl EntityStores {
    fn new(address: &Address, policy: StorePolicy, forwarding: Forwarding, namespace: &Arc<Namespace>) -> Arc<Self> {
        let path = |sub_queue| Arc::from(Address { sub_queue, ..address.clone() }.to_string());
        let aside = aside(&policy);
        Arc::new_cyclic(|this| Self {
            path: path(SubQueue::Main),
            main: namespace.store(path(SubQueue::Main), policy, StoreOwner::Entity(this.clone())),
            dead_letters: namespace.store(path(SubQueue::DeadLetters), aside.clone(), StoreOwner::Nobody),
            transfer_dead_letters: namespace.store(path(SubQueue::TransferDeadLetters), aside, StoreOwner::Nobody),
            forwarding: RwLock::new(forwarding),
            namespace: Arc::downgrade(namespace),
        })
    }

    pub(super) fn store(&self, sub_queue: SubQueue) -> &Arc<MessageStore> {
        match sub_queue {
            SubQueue::Main => &self.main,
            SubQueue::DeadLetters => &self.dead_letters,
            SubQueue::TransferDeadLetters => &self.transfer_dead_letters,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.main.bytes() + self.dead_letters.bytes() + self.transfer_dead_letters.bytes()
    }

    fn set_forwarding(&self, to: &Option<String>, dead_letters_to: &Option<String>) {
        *self.forwarding.write().unwrap_or_else(PoisonError::into_inner) =
            Forwarding { to: to.clone(), dead_letters_to: dead_letters_to.clone() };
    }

    fn set_policy(&self, policy: StorePolicy) {
        let aside = aside(&policy);
        self.main.set_policy(policy);
        self.dead_letters.set_policy(aside.clone());
        self.transfer_dead_letters.set_policy(aside);
    }

    fn counts(&self) -> MessageCounts {
        let (all, tally) = self.main.with(|state, _, _| (state.entries.len() as u64, state.tally));
        let held = |store: &MessageStore| store.with(|state, _, _| state.entries.len() as u64);
        MessageCounts {
            active: all - tally.scheduled,
            scheduled: tally.scheduled,
            dead_letter: held(&self.dead_letters),
            transfer: 0,
            transfer_dead_letter: held(&self.transfer_dead_letters),
            size_bytes: self.bytes(),
        }
    }

    pub(super) fn close(&self) {
        for store in [&self.main, &self.dead_letters, &self.transfer_dead_letters] {
            store.close();
        }
    }
}

/// The policy of the dead-letter queues: nothing expires in them, and no delivery count is limited.
fn aside(main: &StorePolicy) -> StorePolicy {
    StorePolicy {
        lock_ms: main.lock_ms,
        max_delivery_count: None,
        default_ttl_ms: None,
        dead_letter_expired: false,
        sessions: false,
        flow: DueRoute::Keep,
        status: EntityStatus::Active,
        ..*main
    }
}

fn policy_of_queue(settings: &QueueSettings) -> StorePolicy {
    StorePolicy {
        lock_ms: settings.lock_duration_ms,
        max_delivery_count: Some(settings.max_delivery_count),
        default_ttl_ms: settings.default_time_to_live_ms,
        dead_letter_expired: settings.dead_lettering_on_expiration,
        sessions: settings.requires_session,
        flow: if settings.forward_to.is_some() { DueRoute::Forward } else { DueRoute::Keep },
        status: settings.status,
        partitioned: settings.enable_partitioning,
        detects_duplicates: settings.requires_duplicate_detection,
    }
}

fn policy_of_subscription(settings: &SubscriptionSettings, topic: &TopicSettings) -> StorePolicy {
    StorePolicy {
        lock_ms: settings.lock_duration_ms,
        max_delivery_count: Some(settings.max_delivery_count),
        // The topic's time to live is the longest that a message gets; the subscription may shorten it.
        default_ttl_ms: settings.default_time_to_live_ms.into_iter().chain(topic.default_time_to_live_ms).min(),
        dead_letter_expired: settings.dead_lettering_on_expiration,
        sessions: settings.requires_session,
        flow: if settings.forward_to.is_some() { DueRoute::Forward } else { DueRoute::Keep },
        // The subscriptions of a disabled topic cannot be received from:
        // <https://learn.microsoft.com/dotnet/api/microsoft.servicebus.messaging.entitystatus>.
        status: if topic.status == EntityStatus::Disabled { EntityStatus::Disabled } else { settings.status },
        partitioned: topic.enable_partitioning,
        detects_duplicates: topic.requires_duplicate_detection,
    }
}
