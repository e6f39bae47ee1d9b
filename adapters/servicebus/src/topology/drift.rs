//! Warnings where an entity differs from the topology in a way that its consumer should know of.

use polybus_core::{Result, Source, topology::Entity};

use crate::{config, topology::atom::EntityInfo};

/// Warns where the entity's own settings would lose messages, their order or their attempts. `sessions` is whether the
/// transport has sessions.
pub(crate) fn warn(from: &Entity<Source>, found: &EntityInfo, sessions: bool) -> Result<()> {
    let (source, settings) = (&from.name, &from.settings);
    match (settings.ordered, found.flag("RequiresSession")) {
        (true, Some(false)) => {
            tracing::warn!(%source, "ordered by the topology, but the entity has no sessions: it can be received from by unordered sources only");
        }
        (false, Some(true)) => {
            tracing::warn!(%source, "the entity has sessions, but the topology does not say `ordered = true`: nothing can be received");
        }
        (true, _) if !sessions => tracing::warn!(%source, "this transport has no sessions"),
        _ => {}
    }
    if let Some(limit) = found.number("MaxDeliveryCount").filter(|limit| *limit <= u64::from(settings.max_deliveries)) {
        let wanted = settings.max_deliveries;
        tracing::warn!(%source, limit, wanted, "the broker's own MaxDeliveryCount is not above max_deliveries: it dead-letters before polybus does");
    }
    let detects = found.flag("RequiresDuplicateDetection") == Some(true);
    if detects && config::options(from)?.duplicate_detection.is_none() {
        tracing::warn!(%source, "the entity detects duplicates, and the topology does not say so: the broker drops a message published under the id of an \
            earlier one, whatever its source; set options.servicebus.duplicate_detection. Retries and redrives have ids of their own");
    }
    if found.flag("EnablePartitioning") == Some(true) && !settings.ordered {
        tracing::debug!(%source, "the entity is partitioned: each partition has an order of its own");
    }
    if let Some(target) = found.text("ForwardTo").filter(|target| !target.is_empty()) {
        tracing::warn!(%source, target, "the entity forwards what it gets, so nothing is received from it");
    }
    if let Some(target) = found.text("ForwardDeadLetteredMessagesTo").filter(|target| !target.is_empty()) {
        tracing::warn!(%source, target, "dead letters are forwarded, so they are not found in the entity's own");
    }
    Ok(())
}
