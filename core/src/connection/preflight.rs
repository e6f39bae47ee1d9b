//! What core refuses before any I/O, with the same words on every broker.

use std::{collections::BTreeMap, time::Duration};

use time::OffsetDateTime;

use crate::{
    Address, Envelope, Error, Outgoing, Result, Source, Topology,
    driver::{Capabilities, Driver},
    runtime::{clock::Clock, duration},
    topology::Entity,
};

/// Checks that the topology is sound, that the driver can keep it, and that no two entities take one name at the
/// broker.
pub(crate) fn topology(driver: &dyn Driver, topology: &Topology) -> Result<()> {
    topology.check()?;
    let plan = topology.plan();
    for topic in &plan.topics {
        address(driver, topic)?;
    }
    for entity in &plan.sources {
        source(driver, entity)?;
    }
    let mut entity_by_name: BTreeMap<String, String> = BTreeMap::new();
    for (name, entity) in driver.physical_names(&plan) {
        if let Some(other) = entity_by_name.insert(name.clone(), entity.clone()) {
            let text =
                format!("{entity} and {other} would both be {name:?} at the broker: rename one, or set `physical`");
            return Err(Error::config(text).with_backend(driver.backend()));
        }
    }
    driver.check(&plan)
}

/// Checks that this driver can publish to the address: topics and order per key are capabilities.
pub(crate) fn address(driver: &dyn Driver, entity: &Entity<Address>) -> Result<()> {
    let can = driver.capabilities();
    if entity.name.is_topic() && !can.topics {
        return Err(Error::unsupported("this broker has no topics").with_context("address", &entity.name));
    }
    if entity.settings.ordered && can.ordered.is_none() {
        return Err(Error::unsupported("this broker keeps no order per key").with_context("address", &entity.name));
    }
    Ok(())
}

/// Checks that this driver can consume the source: topics, dead letters, order per key and the lock's length.
pub(crate) fn source(driver: &dyn Driver, entity: &Entity<Source>) -> Result<()> {
    let can = driver.capabilities();
    let refuse = |text: String| Err(Error::unsupported(text).with_context("source", &entity.name));
    if matches!(entity.name.live(), Source::Subscription { .. }) && !can.topics {
        return refuse("this broker has no topics".into());
    }
    if entity.name.is_dead_letters() && !can.dead_letters {
        return refuse("this broker has no dead letters".into());
    }
    if entity.settings.ordered && can.ordered.is_none() {
        return refuse("this broker keeps no order per key".into());
    }
    if let Some((min, max)) = can.lock_range
        && !(min..=max).contains(&entity.settings.lock)
    {
        let [lock, min, max] = [entity.settings.lock, min, max].map(duration::format);
        return refuse(format!("a lock of {lock}: this broker takes {min} to {max}"));
    }
    Ok(())
}

/// Refuses a message that cannot be published to `to`, and fills in its source and its expiry time.
pub(crate) fn outgoing(
    can: &Capabilities,
    clock: &dyn Clock,
    to: &Entity<Address>,
    mut message: Outgoing,
    source: &str,
) -> Result<Outgoing> {
    let delay = message.delay.filter(|d| !d.is_zero());
    message.delay = delay;
    if let Some(delay) = delay {
        let max = if to.name.is_topic() { can.max_topic_delay } else { can.max_queue_delay };
        if max.is_none_or(|max| delay > max) {
            let most = max.map_or_else(|| "none".into(), duration::format);
            let text = format!("a delay of {}: the longest this broker can do here is {most}", duration::format(delay));
            return Err(Error::unsupported(text));
        }
    }
    if message.expires_in.is_some() || message.envelope.expires_at.is_some() {
        let now = clock.now();
        if let Some(after) = message.expires_in.take() {
            let at = later(now, after).ok_or_else(|| Error::invalid("expires_in reaches past the year 9999"))?;
            message.envelope = message.envelope.expires_at(at);
        }
        let visible = later(now, delay.unwrap_or_default());
        if message.envelope.expires_at.is_some_and(|at| visible.is_none_or(|visible| at <= visible)) {
            return Err(Error::invalid("expires_at is not after now + delay: nobody could ever see the message"));
        }
    }
    if message.envelope.source.is_empty() {
        message.envelope = message.envelope.source(source);
    }
    if to.settings.ordered && message.envelope.key.is_none() {
        return Err(Error::invalid("an ordered address needs a key on every message: set Envelope::key"));
    }
    let checked: &Envelope = &message.envelope;
    checked.check()?;
    Ok(message)
}

/// `now + by`; `None` past the largest timestamp.
fn later(now: OffsetDateTime, by: Duration) -> Option<OffsetDateTime> {
    now.checked_add(by.try_into().ok()?)
}
