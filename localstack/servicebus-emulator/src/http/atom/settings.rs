//! Reads the settings of entities from their XML descriptions.
//!
//! A description replaces the settings: an omitted element returns to its default. Exceptions are the settings that
//! cannot change.

use std::str::FromStr;

use super::authorization_rules;
use crate::broker::{EntityStatus, NamespaceLimits, QueueSettings, SubscriptionSettings, Tier, TopicSettings};
use crate::http::iso8601::parse_duration;
use crate::http::xml::XmlElement;
use crate::refusal::{Refusal, invalid};

const MAX_MESSAGE_KB: u64 = 100 * 1024;

/// Reads a `QueueDescription`. `now` are the current settings when it changes a queue.
pub(crate) fn queue(
    description: &XmlElement,
    now: Option<&QueueSettings>,
    limits: &NamespaceLimits,
) -> Result<QueueSettings, Refusal> {
    let read = DescriptionFields(description);
    let default = QueueSettings::default();
    let fixed = now.unwrap_or(&default);
    Ok(QueueSettings {
        lock_duration_ms: read.limited("LockDuration")?.unwrap_or(default.lock_duration_ms),
        max_size_in_megabytes: match read.parsed("MaxSizeInMegabytes")? {
            // Clients send back the value that they were shown, which is the quota of all partitions.
            Some(shown) if now.is_some_and(|now| now.quota_in_megabytes() == shown) => fixed.max_size_in_megabytes,
            given => given.unwrap_or(default.max_size_in_megabytes),
        },
        max_message_size_in_kilobytes: read.largest_message(limits)?,
        requires_duplicate_detection: read
            .truth("RequiresDuplicateDetection")?
            .unwrap_or(fixed.requires_duplicate_detection),
        duplicate_detection_history_ms: read
            .limited("DuplicateDetectionHistoryTimeWindow")?
            .unwrap_or(default.duplicate_detection_history_ms),
        requires_session: read.truth("RequiresSession")?.unwrap_or(fixed.requires_session),
        default_time_to_live_ms: read.duration("DefaultMessageTimeToLive")?,
        dead_lettering_on_expiration: read.truth("DeadLetteringOnMessageExpiration")?.unwrap_or(false),
        max_delivery_count: read.parsed("MaxDeliveryCount")?.unwrap_or(default.max_delivery_count),
        status: read.status()?,
        forward_to: read.text("ForwardTo"),
        forward_dead_lettered_to: read.text("ForwardDeadLetteredMessagesTo"),
        auto_delete_on_idle_ms: read.duration("AutoDeleteOnIdle")?,
        enable_batched_operations: read.truth("EnableBatchedOperations")?.unwrap_or(default.enable_batched_operations),
        enable_partitioning: read.truth("EnablePartitioning")?.unwrap_or(fixed.enable_partitioning),
        enable_express: read.truth("EnableExpress")?.unwrap_or(false),
        user_metadata: read.text("UserMetadata"),
        authorization_rules: authorization_rules::read(description),
    })
}

/// Reads a `TopicDescription`. `now` are the current settings when it changes a topic.
pub(crate) fn topic(
    description: &XmlElement,
    now: Option<&TopicSettings>,
    limits: &NamespaceLimits,
) -> Result<TopicSettings, Refusal> {
    let read = DescriptionFields(description);
    let default = TopicSettings::default();
    let fixed = now.unwrap_or(&default);
    Ok(TopicSettings {
        max_size_in_megabytes: match read.parsed("MaxSizeInMegabytes")? {
            Some(shown) if now.is_some_and(|now| now.quota_in_megabytes() == shown) => fixed.max_size_in_megabytes,
            given => given.unwrap_or(default.max_size_in_megabytes),
        },
        max_message_size_in_kilobytes: read.largest_message(limits)?,
        requires_duplicate_detection: read
            .truth("RequiresDuplicateDetection")?
            .unwrap_or(fixed.requires_duplicate_detection),
        duplicate_detection_history_ms: read
            .limited("DuplicateDetectionHistoryTimeWindow")?
            .unwrap_or(default.duplicate_detection_history_ms),
        default_time_to_live_ms: read.duration("DefaultMessageTimeToLive")?,
        status: read.status()?,
        auto_delete_on_idle_ms: read.duration("AutoDeleteOnIdle")?,
        support_ordering: read.truth("SupportOrdering")?.unwrap_or(default.support_ordering),
        enable_batched_operations: read.truth("EnableBatchedOperations")?.unwrap_or(default.enable_batched_operations),
        enable_partitioning: read.truth("EnablePartitioning")?.unwrap_or(fixed.enable_partitioning),
        enable_express: read.truth("EnableExpress")?.unwrap_or(false),
        filtering_messages_before_publishing: read.truth("FilteringMessagesBeforePublishing")?.unwrap_or(false),
        user_metadata: read.text("UserMetadata"),
        authorization_rules: authorization_rules::read(description),
    })
}

/// Reads a `SubscriptionDescription`. `now` are the current settings when it changes a subscription.
pub(crate) fn subscription(
    description: &XmlElement,
    now: Option<&SubscriptionSettings>,
) -> Result<SubscriptionSettings, Refusal> {
    let read = DescriptionFields(description);
    let default = SubscriptionSettings::default();
    let fixed = now.unwrap_or(&default);
    Ok(SubscriptionSettings {
        lock_duration_ms: read.limited("LockDuration")?.unwrap_or(default.lock_duration_ms),
        requires_session: read.truth("RequiresSession")?.unwrap_or(fixed.requires_session),
        default_time_to_live_ms: read.duration("DefaultMessageTimeToLive")?,
        dead_lettering_on_expiration: read.truth("DeadLetteringOnMessageExpiration")?.unwrap_or(false),
        dead_lettering_on_filter_evaluation_exceptions: read
            .truth("DeadLetteringOnFilterEvaluationExceptions")?
            .unwrap_or(default.dead_lettering_on_filter_evaluation_exceptions),
        max_delivery_count: read.parsed("MaxDeliveryCount")?.unwrap_or(default.max_delivery_count),
        status: read.status()?,
        forward_to: read.text("ForwardTo"),
        forward_dead_lettered_to: read.text("ForwardDeadLetteredMessagesTo"),
        auto_delete_on_idle_ms: read.duration("AutoDeleteOnIdle")?,
        enable_batched_operations: read.truth("EnableBatchedOperations")?.unwrap_or(default.enable_batched_operations),
        user_metadata: read.text("UserMetadata"),
    })
}

struct DescriptionFields<'a>(&'a XmlElement);

impl DescriptionFields<'_> {
    fn text(&self, name: &str) -> Option<String> {
        self.0.text_of(name).map(str::to_owned)
    }

    fn read<T>(&self, name: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Refusal> {
        let Some(text) = self.0.text_of(name) else { return Ok(None) };
        let bad = || invalid(format!("'{text}' is no value of {name}."));
        parse(text).ok_or_else(bad).map(Some)
    }

    fn parsed<T: FromStr>(&self, name: &str) -> Result<Option<T>, Refusal> {
        self.read(name, |text| text.parse().ok())
    }

    fn truth(&self, name: &str) -> Result<Option<bool>, Refusal> {
        self.read(name, |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        })
    }

    /// The largest message. Only a premium namespace lets it be chosen. A standard one accepts its own limit, because
    /// clients send back what they were shown.
    fn largest_message(&self, limits: &NamespaceLimits) -> Result<Option<u64>, Refusal> {
        let size = self.read("MaxMessageSizeInKilobytes", |text| {
            text.parse().ok().filter(|size| (1..=MAX_MESSAGE_KB).contains(size))
        })?;
        match (limits.tier, size) {
            (Tier::Standard, Some(size)) if size == limits.max_message_bytes / 1024 => Ok(None),
            (Tier::Standard, Some(size)) => Err(invalid(format!(
                "MaxMessageSizeInKilobytes is {size}; a namespace of the standard tier does not let it be set. --tier premium does."
            ))),
            (_, size) => Ok(size),
        }
    }

    fn status(&self) -> Result<EntityStatus, Refusal> {
        Ok(self.read("Status", EntityStatus::parse)?.unwrap_or_default())
    }

    /// A duration that may be for ever. An omitted one is for ever.
    fn duration(&self, name: &str) -> Result<Option<i64>, Refusal> {
        Ok(self.read(name, parse_duration)?.flatten())
    }

    /// A duration that must end.
    fn limited(&self, name: &str) -> Result<Option<i64>, Refusal> {
        self.read(name, |text| parse_duration(text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn premium() -> NamespaceLimits {
        NamespaceLimits { tier: Tier::Premium, ..NamespaceLimits::default() }
    }

    fn element(inside: &str) -> XmlElement {
        XmlElement::parse(format!("<d>{inside}</d>").as_bytes()).unwrap()
    }

    #[test]
    fn an_empty_description_is_the_default() {
        assert_eq!(queue(&element(""), None, &NamespaceLimits::default()), Ok(QueueSettings::default()));
        assert_eq!(topic(&element(""), None, &NamespaceLimits::default()), Ok(TopicSettings::default()));
        assert_eq!(subscription(&element(""), None), Ok(SubscriptionSettings::default()));
    }

    #[test]
    fn what_cannot_change_stays_when_it_is_left_out() {
        let now = QueueSettings { requires_session: true, max_delivery_count: 3, ..QueueSettings::default() };
        let changed =
            queue(&element("<LockDuration>PT30S</LockDuration>"), Some(&now), &NamespaceLimits::default()).unwrap();
        assert_eq!((changed.requires_session, changed.max_delivery_count), (true, 10));
        assert_eq!(changed.lock_duration_ms, 30_000);
    }

    #[test]
    fn the_largest_message_is_the_premium_tiers_to_choose() {
        let of = |size: u32, tier| {
            let description = element(&format!("<MaxMessageSizeInKilobytes>{size}</MaxMessageSizeInKilobytes>"));
            let queue = queue(&description, None, &NamespaceLimits { tier, ..NamespaceLimits::default() })
                .map(|queue| queue.max_message_size_in_kilobytes);
            assert_eq!(
                topic(&description, None, &NamespaceLimits { tier, ..NamespaceLimits::default() })
                    .map(|topic| topic.max_message_size_in_kilobytes),
                queue
            );
            queue
        };
        assert_eq!(of(2048, Tier::Premium), Ok(Some(2048)));
        assert_eq!(of(256, Tier::Standard), Ok(None), "it is what it is anyway");
        assert!(of(2048, Tier::Standard).unwrap_err().description.contains("--tier premium"));
    }

    #[test]
    fn what_was_shown_of_a_partitioned_queue_is_no_change() {
        let now = QueueSettings { enable_partitioning: true, ..QueueSettings::default() };
        let size = |megabytes: u32| {
            let description = element(&format!("<MaxSizeInMegabytes>{megabytes}</MaxSizeInMegabytes>"));
            queue(&description, Some(&now), &NamespaceLimits::default()).unwrap().max_size_in_megabytes
        };
        assert_eq!((size(16 * 1024), size(2048)), (1024, 2048));
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        for (name, text) in [
            ("LockDuration", "1 minute"),
            ("LockDuration", "P10675199DT2H48M5.4775807S"),
            ("MaxDeliveryCount", "-1"),
            ("MaxDeliveryCount", "99999999999"),
            ("MaxMessageSizeInKilobytes", "0"),
            ("MaxMessageSizeInKilobytes", "18446744073709551615"),
            ("RequiresSession", "maybe"),
            ("Status", "Sleeping"),
        ] {
            let refusal = queue(&element(&format!("<{name}>{text}</{name}>")), None, &premium()).expect_err(name);
            assert!(refusal.description.contains(name), "{refusal}");
        }
    }
}
