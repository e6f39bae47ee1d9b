//! What both transports promise and refuse alike.

use std::time::Duration;

use polybus_core::{
    Error, Result,
    driver::{Capabilities, kit::duration},
    topology::DeclarePlan,
};

use crate::{
    BACKEND,
    amqp::sender::MAX_DELAY,
    config::{self, Config},
    topology::names::{self, Place},
};

/// <https://learn.microsoft.com/azure/service-bus-messaging/message-transfers-locks-settlement#peeklock>
pub(crate) const LOCKS: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// What either transport can do.
pub(crate) fn capabilities(config: &Config) -> Capabilities {
    let mut can = Capabilities::default();
    can.topics = true;
    can.confirmed_settlement = true;
    can.locks = true;
    can.lock_range = Some(LOCKS);
    can.dead_letters = true;
    can.redrive = true;
    can.max_retry_delay = Some(MAX_DELAY);
    can.max_queue_delay = Some(MAX_DELAY);
    can.max_topic_delay = Some(MAX_DELAY);
    can.max_queue_payload = Some(config.max_message_size);
    can.max_topic_payload = Some(config.max_message_size);
    can.attempts_across_crash = true;
    can.stats = true;
    can.purge = true;
    can.declare = true;
    can
}

/// The broker ignores case, and gives queues and topics one namespace.
pub(crate) fn physical_names(plan: &DeclarePlan) -> Vec<(String, String)> {
    let topics = plan.topics.iter().map(|t| (names::address(t).to_lowercase(), t.name.to_string()));
    let sources = plan.sources.iter().map(|s| (Place::of(s).path().to_lowercase(), s.name.to_string()));
    topics.chain(sources).map(|(path, label)| (format!("entity {path}"), label)).collect()
}

/// Refuses what neither transport can keep.
pub(crate) fn check(plan: &DeclarePlan) -> Result<()> {
    for topic in &plan.topics {
        config::options(topic)?;
    }
    for source in &plan.sources {
        config::options(source)?;
        if let Some(delay) = source.settings.retry.iter().find(|d| **d > MAX_DELAY) {
            let text = format!("retry of {}: Service Bus delays by ten years at most", duration::format(*delay));
            return Err(Error::unsupported(text).with_backend(BACKEND).with_context("source", &source.name));
        }
    }
    Ok(())
}

/// What ends a purge at last: what is published meanwhile must not keep it going for ever, and counts lag. Without the right to count
/// only an empty queue does.
pub(crate) fn most_to_purge(ready: Option<u64>) -> u64 {
    ready.map_or(u64::MAX, |ready| ready.saturating_mul(2).saturating_add(1_000))
}
