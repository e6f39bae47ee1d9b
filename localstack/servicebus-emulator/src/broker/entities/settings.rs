//! Settings of entities, named as in the Atom API and Config.json. Times are milliseconds, and `None` means for ever.

use crate::broker::store::partitions::PARTITIONS;

/// What an entity may be used for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntityStatus {
    /// Everything.
    #[default]
    Active,
    /// Nothing.
    Disabled,
    /// Receiving only.
    SendDisabled,
    /// Sending only.
    ReceiveDisabled,
}

impl EntityStatus {
    pub(crate) fn sends(self) -> bool {
        matches!(self, Self::Active | Self::ReceiveDisabled)
    }

    pub(crate) fn receives(self) -> bool {
        matches!(self, Self::Active | Self::SendDisabled)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Active => "Active",
            Self::Disabled => "Disabled",
            Self::SendDisabled => "SendDisabled",
            Self::ReceiveDisabled => "ReceiveDisabled",
        }
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        [Self::Active, Self::Disabled, Self::SendDisabled, Self::ReceiveDisabled]
            .into_iter()
            .find(|status| status.name().eq_ignore_ascii_case(name))
    }
}

/// Settings of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// How long a message or a session is locked.
    pub lock_duration_ms: i64,
    /// Quota of what is stored, of each partition where there are some.
    pub max_size_in_megabytes: u64,
    /// Largest message; `None` for the namespace's limit.
    pub max_message_size_in_kilobytes: Option<u64>,
    /// Whether message ids are remembered.
    pub requires_duplicate_detection: bool,
    /// For how long they are.
    pub duplicate_detection_history_ms: i64,
    /// Whether every message belongs to a session.
    pub requires_session: bool,
    /// Longest time to live.
    pub default_time_to_live_ms: Option<i64>,
    /// Whether what expired becomes a dead letter.
    pub dead_lettering_on_expiration: bool,
    /// After this many deliveries a message becomes a dead letter.
    pub max_delivery_count: u32,
    /// What the queue may be used for.
    pub status: EntityStatus,
    /// Where every message goes on to.
    pub forward_to: Option<String>,
    /// Where dead letters go on to.
    pub forward_dead_lettered_to: Option<String>,
    /// Idle time after which the queue is deleted; carried, not acted on.
    pub auto_delete_on_idle_ms: Option<i64>,
    /// Carried, not acted on.
    pub enable_batched_operations: bool,
    /// Sixteen partitions: no order among them, and what goes together must belong to one.
    pub enable_partitioning: bool,
    /// Carried, not acted on.
    pub enable_express: bool,
    /// Free text.
    pub user_metadata: Option<String>,
    /// Access rules as they came, XML. Their keys open the entity where keys are checked.
    pub authorization_rules: Option<String>,
}

/// Settings of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Quota of what all subscriptions store, of each partition where there are some.
    pub max_size_in_megabytes: u64,
    /// Largest message; `None` for the namespace's limit.
    pub max_message_size_in_kilobytes: Option<u64>,
    /// Whether message ids are remembered.
    pub requires_duplicate_detection: bool,
    /// For how long they are.
    pub duplicate_detection_history_ms: i64,
    /// Longest time to live.
    pub default_time_to_live_ms: Option<i64>,
    /// What the topic may be used for.
    pub status: EntityStatus,
    /// Idle time after which the topic is deleted; carried, not acted on.
    pub auto_delete_on_idle_ms: Option<i64>,
    /// Carried: order is always kept.
    pub support_ordering: bool,
    /// Carried, not acted on.
    pub enable_batched_operations: bool,
    /// Sixteen partitions, of its subscriptions too: no order among them, and what goes together must belong to one.
    pub enable_partitioning: bool,
    /// Carried, not acted on.
    pub enable_express: bool,
    /// Whether a message that no subscription wants is refused.
    pub filtering_messages_before_publishing: bool,
    /// Free text.
    pub user_metadata: Option<String>,
    /// Access rules as they came, XML. Their keys open the entity where keys are checked.
    pub authorization_rules: Option<String>,
}

/// Settings of a subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionSettings {
    /// How long a message or a session is locked.
    pub lock_duration_ms: i64,
    /// Whether every message belongs to a session.
    pub requires_session: bool,
    /// Longest time to live.
    pub default_time_to_live_ms: Option<i64>,
    /// Whether what expired becomes a dead letter.
    pub dead_lettering_on_expiration: bool,
    /// Whether a message on which a filter fails becomes a dead letter.
    pub dead_lettering_on_filter_evaluation_exceptions: bool,
    /// After this many deliveries a message becomes a dead letter.
    pub max_delivery_count: u32,
    /// What the subscription may be used for.
    pub status: EntityStatus,
    /// Where every message goes on to.
    pub forward_to: Option<String>,
    /// Where dead letters go on to.
    pub forward_dead_lettered_to: Option<String>,
    /// Idle time after which the subscription is deleted; carried, not acted on.
    pub auto_delete_on_idle_ms: Option<i64>,
    /// Carried, not acted on.
    pub enable_batched_operations: bool,
    /// Free text.
    pub user_metadata: Option<String>,
}

/// Each partition has the quota of the whole entity.
fn quota(megabytes: u64, partitioned: bool) -> u64 {
    if partitioned { megabytes.saturating_mul(PARTITIONS.unsigned_abs()) } else { megabytes }
}

impl QueueSettings {
    /// The quota of all partitions together, which is what is shown.
    pub fn quota_in_megabytes(&self) -> u64 {
        quota(self.max_size_in_megabytes, self.enable_partitioning)
    }
}

impl TopicSettings {
    /// The quota of all partitions together, which is what is shown.
    pub fn quota_in_megabytes(&self) -> u64 {
        quota(self.max_size_in_megabytes, self.enable_partitioning)
    }
}

const MINUTE_MS: i64 = 60_000;

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            lock_duration_ms: MINUTE_MS,
            max_size_in_megabytes: 1024,
            max_message_size_in_kilobytes: None,
            requires_duplicate_detection: false,
            duplicate_detection_history_ms: 10 * MINUTE_MS,
            requires_session: false,
            default_time_to_live_ms: None,
            dead_lettering_on_expiration: false,
            max_delivery_count: 10,
            status: EntityStatus::Active,
            forward_to: None,
            forward_dead_lettered_to: None,
            auto_delete_on_idle_ms: None,
            enable_batched_operations: true,
            enable_partitioning: false,
            enable_express: false,
            user_metadata: None,
            authorization_rules: None,
        }
    }
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            max_size_in_megabytes: 1024,
            max_message_size_in_kilobytes: None,
            requires_duplicate_detection: false,
            duplicate_detection_history_ms: 10 * MINUTE_MS,
            default_time_to_live_ms: None,
            status: EntityStatus::Active,
            auto_delete_on_idle_ms: None,
            support_ordering: true,
            enable_batched_operations: true,
            enable_partitioning: false,
            enable_express: false,
            filtering_messages_before_publishing: false,
            user_metadata: None,
            authorization_rules: None,
        }
    }
}

impl Default for SubscriptionSettings {
    fn default() -> Self {
        Self {
            lock_duration_ms: MINUTE_MS,
            requires_session: false,
            default_time_to_live_ms: None,
            dead_lettering_on_expiration: false,
            dead_lettering_on_filter_evaluation_exceptions: true,
            max_delivery_count: 10,
            status: EntityStatus::Active,
            forward_to: None,
            forward_dead_lettered_to: None,
            auto_delete_on_idle_ms: None,
            enable_batched_operations: true,
            user_metadata: None,
        }
    }
}
