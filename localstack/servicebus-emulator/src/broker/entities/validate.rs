//! What the service refuses in names and settings.

use super::address::Address;
use super::namespace::Namespace;
use super::settings::{QueueSettings, SubscriptionSettings, TopicSettings};
use crate::refusal::{Condition, Refusal};

const MIN_LOCK_MS: i64 = 5_000;
const MAX_LOCK_MS: i64 = 5 * 60_000;
const MAX_WINDOW_MS: i64 = 7 * 24 * 3_600_000;
const MIN_IDLE_MS: i64 = 5 * 60_000;
// The portal takes 2000 at most, the API any positive `int`: <https://github.com/Particular/NServiceBus.Transport.AzureServiceBus>
// creates its queues with it.
const MAX_DELIVERIES: u32 = i32::MAX as u32;

/// A queue's or a topic's name.
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

/// The name of a subscription or a rule.
pub(crate) fn subscription_name(name: &str) -> Result<(), Refusal> {
    let allowed = |c: char| c.is_alphanumeric() || "._-$".contains(c);
    if name.is_empty() || name.chars().count() > 50 || !name.chars().all(allowed) {
        return Err(invalid(format!(
            "'{name}' is no name of a subscription or rule: letters, digits and . _ -, at most 50."
        )));
    }
    Ok(())
}

pub(super) fn queue(namespace: &Namespace, settings: &QueueSettings) -> Result<(), Refusal> {
    first(queue_faults(settings))?;
    forwarding(namespace, settings.forward_to.as_deref())?;
    forwarding(namespace, settings.forward_dead_lettered_to.as_deref())
}

pub(super) fn topic(settings: &TopicSettings) -> Result<(), Refusal> {
    first(topic_faults(settings))
}

/// Everything that is out of range in a queue's settings.
pub(crate) fn queue_faults(settings: &QueueSettings) -> Vec<Refusal> {
    faults([
        lock(settings.lock_duration_ms),
        deliveries(settings.max_delivery_count),
        time_to_live(settings.default_time_to_live_ms),
        window(settings.duplicate_detection_history_ms),
        idle(settings.auto_delete_on_idle_ms),
    ])
}

/// Everything that is out of range in a topic's settings.
pub(crate) fn topic_faults(settings: &TopicSettings) -> Vec<Refusal> {
    faults([
        time_to_live(settings.default_time_to_live_ms),
        idle(settings.auto_delete_on_idle_ms),
        window(settings.duplicate_detection_history_ms),
    ])
}

/// Everything that is out of range in a subscription's settings.
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

pub(super) fn subscription(namespace: &Namespace, settings: &SubscriptionSettings) -> Result<(), Refusal> {
    first(subscription_faults(settings))?;
    forwarding(namespace, settings.forward_to.as_deref())?;
    forwarding(namespace, settings.forward_dead_lettered_to.as_deref())
}

/// A setting that is fixed when the entity is created.
pub(super) fn unchanged(kind: &str, setting: &str, old: bool, new: bool) -> Result<(), Refusal> {
    if old == new {
        return Ok(());
    }
    Err(invalid(format!("The value for the {setting} property of an existing {kind} cannot be changed. ")))
}

pub(super) fn same_partitioning(kind: &str, old: bool, new: bool) -> Result<(), Refusal> {
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

/// The service takes forwarding from an entity with sessions, and from one to itself.
fn forwarding(namespace: &Namespace, to: Option<&str>) -> Result<(), Refusal> {
    let Some(to) = to else { return Ok(()) };
    if !namespace.exists(&Address::parse(to).entity) {
        return Err(invalid(format!("The entity to forward to, '{to}', does not exist.")));
    }
    Ok(())
}

fn invalid(description: String) -> Refusal {
    Refusal::new(Condition::InvalidField, description)
}
