//! Validates names and settings as the service does.

use super::{QueueSettings, SubscriptionSettings, TopicSettings};
use crate::broker::address::Address;
use crate::broker::namespace::Namespace;
use crate::refusal::{Refusal, invalid};

const MIN_LOCK_MS: i64 = 5_000;
const MAX_LOCK_MS: i64 = 5 * 60_000;
const MAX_WINDOW_MS: i64 = 7 * 24 * 3_600_000;
const MIN_IDLE_MS: i64 = 5 * 60_000;
// The portal allows 2000 at most, but the API allows any positive `int`, and clients rely on that:
// <https://github.com/Particular/NServiceBus.Transport.AzureServiceBus> creates its queues with it.
const MAX_DELIVERIES: u32 = i32::MAX as u32;

/// Validates the name of a queue or topic.
pub(crate) fn name(name: &str) -> Result<(), Refusal> {
    let reserved = name.split('/').any(|segment| segment.is_empty() || segment.starts_with('$'));
    let allowed = |c: char| c.is_alphanumeric() || "._-/~".contains(c);
    if name.len() > 260 || reserved || !name.chars().all(allowed) {
        return Err(invalid(format!(
            "'{name}' is no name of a queue or topic: letters, digits and . _ - / ~, at most 260."
        )));
    }
    Ok(())
}

/// Validates the name of a subscription or rule.
pub(crate) fn subscription_name(name: &str) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_alphanumeric() || "._-$".contains(c);
    if name.is_empty() || name.chars().count() > 50 || !name.chars().all(allowed) {
        return Err(invalid(format!(
            "'{name}' is no name of a subscription or rule: letters, digits and . _ -, at most 50."
        )));
    }
    Ok(())
}

pub(crate) fn queue(namespace: &Namespace, settings: &QueueSettings) -> Result<(), Refusal> {
    first(queue_faults(settings))?;
    forwarding(namespace, settings.forward_to.as_deref())?;
    forwarding(namespace, settings.forward_dead_lettered_to.as_deref())
}

pub(crate) fn topic(settings: &TopicSettings) -> Result<(), Refusal> {
    first(topic_faults(settings))
}

/// All values that are out of range in a queue's settings.
pub(crate) fn queue_faults(settings: &QueueSettings) -> Vec<Refusal> {
    faults([
        lock(settings.lock_duration_ms),
        deliveries(settings.max_delivery_count),
        time_to_live(settings.default_time_to_live_ms),
        window(settings.duplicate_detection_history_ms),
        idle(settings.auto_delete_on_idle_ms),
    ])
}

/// All values that are out of range in a topic's settings.
pub(crate) fn topic_faults(settings: &TopicSettings) -> Vec<Refusal> {
    faults([
        time_to_live(settings.default_time_to_live_ms),
        idle(settings.auto_delete_on_idle_ms),
        window(settings.duplicate_detection_history_ms),
    ])
}

/// All values that are out of range in a subscription's settings.
pub(crate) fn subscription_faults(settings: &SubscriptionSettings) -> Vec<Refusal> {
    faults([
        lock(settings.lock_duration_ms),
        deliveries(settings.max_delivery_count),
        time_to_live(settings.default_time_to_live_ms),
        idle(settings.auto_delete_on_idle_ms),
    ])
}

fn faults<const N: usize>(checks: [Result<(), Refusal>; N]) -> Vec<Refusal> {
    checks.into_iter().filter_map(Result::err).collect()
}

fn first(faults: Vec<Refusal>) -> Result<(), Refusal> {
    faults.into_iter().next().map_or(Ok(()), Err)
}

pub(crate) fn subscription(namespace: &Namespace, settings: &SubscriptionSettings) -> Result<(), Refusal> {
    first(subscription_faults(settings))?;
    forwarding(namespace, settings.forward_to.as_deref())?;
    forwarding(namespace, settings.forward_dead_lettered_to.as_deref())
}

/// Refuses to change a setting that is fixed when the entity is created.
pub(crate) fn unchanged(kind: &str, setting: &str, old: bool, new: bool) -> Result<(), Refusal> {
    if old == new {
        return Ok(());
    }
    Err(invalid(format!("The value for the {setting} property of an existing {kind} cannot be changed. ")))
}

pub(crate) fn same_partitioning(kind: &str, old: bool, new: bool) -> Result<(), Refusal> {
    if old == new { Ok(()) } else { Err(invalid(format!("Partitioning cannot be changed for {kind}. "))) }
}

fn lock(ms: i64) -> Result<(), Refusal> {
    if (MIN_LOCK_MS..=MAX_LOCK_MS).contains(&ms) {
        return Ok(());
    }
    Err(invalid(format!("LockDuration is {ms} ms; it must be from five seconds to five minutes.")))
}

fn deliveries(max: u32) -> Result<(), Refusal> {
    if (1..=MAX_DELIVERIES).contains(&max) {
        return Ok(());
    }
    Err(invalid(format!("MaxDeliveryCount is {max}; it must be from 1 to {MAX_DELIVERIES}.")))
}

fn time_to_live(ms: Option<i64>) -> Result<(), Refusal> {
    match ms {
        Some(ms) if ms <= 0 => Err(invalid(format!("DefaultMessageTimeToLive is {ms} ms; it must be above zero."))),
        _ => Ok(()),
    }
}

fn idle(ms: Option<i64>) -> Result<(), Refusal> {
    match ms {
        Some(ms) if ms < MIN_IDLE_MS => {
            Err(invalid(format!("AutoDeleteOnIdle is {ms} ms; it must be at least five minutes.")))
        }
        _ => Ok(()),
    }
}

fn window(ms: i64) -> Result<(), Refusal> {
    if (1..=MAX_WINDOW_MS).contains(&ms) {
        return Ok(());
    }
    Err(invalid(format!(
        "DuplicateDetectionHistoryTimeWindow is {ms} ms; it must be above zero and at most seven days."
    )))
}

/// The target of forwarding must exist. The service allows forwarding from an entity with sessions, and from an entity
/// to itself.
fn forwarding(namespace: &Namespace, to: Option<&str>) -> Result<(), Refusal> {
    let Some(to) = to else { return Ok(()) };
    if !namespace.exists(&Address::parse(to).entity) {
        return Err(invalid(format!("The entity to forward to, '{to}', does not exist.")));
    }
    Ok(())
}
