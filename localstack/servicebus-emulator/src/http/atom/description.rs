//! Writes the descriptions of entities. Their elements are in the order of the official schema, which SDKs rely on.

use crate::broker::{EntityTimes, MessageCounts, QueueInfo, SubscriptionInfo, Tier, TopicInfo};
use crate::http::iso8601::{duration, timestamp};
use crate::http::xml::Xml;

pub(super) const SCHEMA: &str = "http://schemas.microsoft.com/netservices/2010/10/servicebus/connect";
pub(super) const INSTANCE: &str = "http://www.w3.org/2001/XMLSchema-instance";
const COUNTS_SCHEMA: &str = "http://schemas.microsoft.com/netservices/2011/06/servicebus";

/// A root element of the schema.
pub(super) fn described(xml: &mut Xml, name: &str, inside: impl FnOnce(&mut Xml)) {
    xml.element(name, &[("xmlns", SCHEMA), ("xmlns:i", INSTANCE)], inside);
}

/// Writes a `QueueDescription`. `max_message_kilobytes` is the queue's limit, or the namespace's when the queue has
/// none.
pub(super) fn queue(xml: &mut Xml, info: &QueueInfo, max_message_kilobytes: u64) {
    let (settings, counts) = (&info.settings, &info.counts);
    described(xml, "QueueDescription", |xml| {
        xml.text("LockDuration", duration(Some(settings.lock_duration_ms)));
        xml.value("MaxSizeInMegabytes", settings.quota_in_megabytes());
        xml.value("RequiresDuplicateDetection", settings.requires_duplicate_detection);
        xml.value("RequiresSession", settings.requires_session);
        xml.text("DefaultMessageTimeToLive", duration(settings.default_time_to_live_ms));
        xml.value("DeadLetteringOnMessageExpiration", settings.dead_lettering_on_expiration);
        xml.text("DuplicateDetectionHistoryTimeWindow", duration(Some(settings.duplicate_detection_history_ms)));
        xml.value("MaxDeliveryCount", settings.max_delivery_count);
        xml.value("EnableBatchedOperations", settings.enable_batched_operations);
        xml.value("SizeInBytes", counts.size_bytes);
        xml.value("MessageCount", counts.total());
        xml.value("IsAnonymousAccessible", false);
        authorization_rules(xml, settings.authorization_rules.as_deref());
        xml.text("Status", settings.status.name());
        xml.optional("ForwardTo", settings.forward_to.as_deref());
        xml.optional("UserMetadata", settings.user_metadata.as_deref());
        times(xml, &info.times);
        xml.value("SupportOrdering", true);
        count_details(xml, counts);
        xml.text("AutoDeleteOnIdle", duration(settings.auto_delete_on_idle_ms));
        xml.value("EnablePartitioning", settings.enable_partitioning);
        xml.text("EntityAvailabilityStatus", "Available");
        xml.optional("ForwardDeadLetteredMessagesTo", settings.forward_dead_lettered_to.as_deref());
        xml.value("EnableExpress", settings.enable_express);
        xml.value("MaxMessageSizeInKilobytes", max_message_kilobytes);
    });
}

/// Writes a `TopicDescription`. `max_message_kilobytes` is the topic's limit, or the namespace's when the topic has
/// none. `filters` are the numbers of SQL and correlation filters, for clients whose API version has them.
pub(super) fn topic(xml: &mut Xml, info: &TopicInfo, max_message_kilobytes: u64, filters: Option<(usize, usize)>) {
    let settings = &info.settings;
    described(xml, "TopicDescription", |xml| {
        xml.text("DefaultMessageTimeToLive", duration(settings.default_time_to_live_ms));
        xml.value("MaxSizeInMegabytes", settings.quota_in_megabytes());
        xml.value("RequiresDuplicateDetection", settings.requires_duplicate_detection);
        xml.text("DuplicateDetectionHistoryTimeWindow", duration(Some(settings.duplicate_detection_history_ms)));
        xml.value("EnableBatchedOperations", settings.enable_batched_operations);
        xml.value("SizeInBytes", info.counts.size_bytes);
        xml.value("FilteringMessagesBeforePublishing", settings.filtering_messages_before_publishing);
        xml.value("IsAnonymousAccessible", false);
        authorization_rules(xml, settings.authorization_rules.as_deref());
        xml.text("Status", settings.status.name());
        xml.optional("UserMetadata", settings.user_metadata.as_deref());
        times(xml, &info.times);
        xml.value("SupportOrdering", settings.support_ordering);
        count_details(xml, &info.counts);
        xml.value("SubscriptionCount", info.subscriptions);
        xml.text("AutoDeleteOnIdle", duration(settings.auto_delete_on_idle_ms));
        xml.value("EnablePartitioning", settings.enable_partitioning);
        xml.text("EntityAvailabilityStatus", "Available");
        xml.value("EnableSubscriptionPartitioning", false);
        xml.value("EnableExpress", settings.enable_express);
        xml.value("MaxMessageSizeInKilobytes", max_message_kilobytes);
        if let Some((sql, correlation)) = filters {
            xml.value("SqlFilterCount", sql);
            xml.value("CorrelationFilterCount", correlation);
        }
    });
}

pub(super) fn subscription(xml: &mut Xml, info: &SubscriptionInfo) {
    let (settings, counts) = (&info.settings, &info.counts);
    described(xml, "SubscriptionDescription", |xml| {
        xml.text("LockDuration", duration(Some(settings.lock_duration_ms)));
        xml.value("RequiresSession", settings.requires_session);
        xml.text("DefaultMessageTimeToLive", duration(settings.default_time_to_live_ms));
        xml.value("DeadLetteringOnMessageExpiration", settings.dead_lettering_on_expiration);
        xml.value("DeadLetteringOnFilterEvaluationExceptions", settings.dead_lettering_on_filter_evaluation_exceptions);
        xml.value("MessageCount", counts.total());
        xml.value("MaxDeliveryCount", settings.max_delivery_count);
        xml.value("EnableBatchedOperations", settings.enable_batched_operations);
        xml.text("Status", settings.status.name());
        xml.optional("ForwardTo", settings.forward_to.as_deref());
        times(xml, &info.times);
        xml.optional("UserMetadata", settings.user_metadata.as_deref());
        count_details(xml, counts);
        xml.optional("ForwardDeadLetteredMessagesTo", settings.forward_dead_lettered_to.as_deref());
        xml.text("AutoDeleteOnIdle", duration(settings.auto_delete_on_idle_ms));
        xml.text("EntityAvailabilityStatus", "Available");
    });
}

/// Writes the `NamespaceInfo`.
pub(super) fn namespace(xml: &mut Xml, name: &str, tier: Tier, created_at: i64) {
    described(xml, "NamespaceInfo", |xml| {
        xml.text("CreatedTime", timestamp(created_at));
        xml.text("MessagingSKU", tier.name());
        xml.text("ModifiedTime", timestamp(created_at));
        xml.text("Name", name);
        xml.text("NamespaceType", "Messaging");
    });
}

fn authorization_rules(xml: &mut Xml, rules: Option<&str>) {
    xml.element("AuthorizationRules", &[], |xml| xml.push_raw(rules.unwrap_or_default()));
}

fn times(xml: &mut Xml, times: &EntityTimes) {
    xml.text("CreatedAt", timestamp(times.created));
    xml.text("UpdatedAt", timestamp(times.updated));
    xml.text("AccessedAt", timestamp(times.accessed));
}

/// Writes the counts. The JavaScript SDK takes the prefix from the namespace declaration, so there must be exactly one.
fn count_details(xml: &mut Xml, counts: &MessageCounts) {
    xml.element("CountDetails", &[("xmlns:d2p1", COUNTS_SCHEMA)], |xml| {
        xml.value("d2p1:ActiveMessageCount", counts.active);
        xml.value("d2p1:DeadLetterMessageCount", counts.dead_letter);
        xml.value("d2p1:ScheduledMessageCount", counts.scheduled);
        xml.value("d2p1:TransferMessageCount", counts.transfer);
        xml.value("d2p1:TransferDeadLetterMessageCount", counts.transfer_dead_letter);
    });
}
