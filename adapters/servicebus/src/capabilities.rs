//! What both transports promise and refuse alike: capabilities, names, limits.

use std::time::Duration;

use polybus_core::{
    Error, ErrorKind, Outgoing, Result,
    driver::{Capabilities, kit::duration},
    topology::DeclarePlan,
};
use time::OffsetDateTime;

use crate::{
    BACKEND,
    config::{self, Config},
    error,
    topology::names::{self, EntityPath},
};

/// The shortest and the longest lock.
/// <https://learn.microsoft.com/azure/service-bus-messaging/message-transfers-locks-settlement#peeklock>
pub(crate) const LOCK_RANGE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// The longest delay of messages and retries. It is a limit of polybus: it is not certain that every part of the
/// service can handle later dates.
const MAX_DELAY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The detail of a message that is dead-lettered because it would expire before its retry is due.
pub(crate) const EXPIRES_BEFORE_RETRY: &str = "the time to live that its sender gave it ends before its retry is due";

/// What both transports can do.
pub(crate) fn capabilities(config: &Config) -> Capabilities {
    let mut capabilities = Capabilities::default();
    capabilities.topics = true;
    capabilities.confirmed_settlement = true;
    capabilities.locks = true;
    capabilities.lock_range = Some(LOCK_RANGE);
    capabilities.dead_letters = true;
    capabilities.redrive = true;
    capabilities.max_retry_delay = Some(MAX_DELAY);
    capabilities.max_queue_delay = Some(MAX_DELAY);
    capabilities.max_topic_delay = Some(MAX_DELAY);
    capabilities.max_queue_payload = Some(config.max_message_size);
    capabilities.max_topic_payload = Some(config.max_message_size);
    capabilities.attempts_across_crash = true;
    capabilities.stats = true;
    capabilities.purge = true;
    capabilities.declare = true;
    capabilities
}

/// The names of entities as the broker compares them: in lower case, since it ignores case. A queue and a topic cannot
/// have the same name.
pub(crate) fn physical_names(plan: &DeclarePlan) -> Vec<(String, String)> {
    let topics = plan.topics.iter().map(|t| (names::address(t).to_lowercase(), t.name.to_string()));
    let sources = plan.sources.iter().map(|s| (EntityPath::of(s).path().to_lowercase(), s.name.to_string()));
    topics.chain(sources).map(|(path, label)| (format!("entity {path}"), label)).collect()
}

/// Refuses a plan that neither transport can keep.
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

/// When the broker is to enqueue a message that is published now; `None` for at once.
pub(crate) fn enqueue_time(message: &Outgoing) -> Result<Option<OffsetDateTime>> {
    let delay = message.delay.filter(|d| !d.is_zero());
    if delay.is_some_and(|d| d > MAX_DELAY) {
        return Err(error::new(ErrorKind::Unsupported, "publish", "Service Bus delays messages by ten years at most"));
    }
    Ok(delay.map(|d| OffsetDateTime::now_utc() + d))
}

/// How many messages a purge deletes at most. There is a limit, since messages that are published meanwhile would keep
/// a purge going for ever.
///
/// `ready` is the broker's count at the beginning. The count may lag, so the limit is above it. Without the right to
/// count there is no limit, and only an empty queue ends the purge.
pub(crate) fn most_to_purge(ready: Option<u64>) -> u64 {
    ready.map_or(u64::MAX, |ready| ready.saturating_mul(2).saturating_add(1_000))
}
