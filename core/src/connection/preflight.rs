//! What core refuses before any I/O, on every broker alike.

use std::{collections::BTreeMap, time::Duration};

use time::OffsetDateTime;

use crate::{
    driver::{Capabilities, Driver},
    error::{Error, Result},
    message::{Envelope, Outgoing},
    runtime::{clock::Clock, duration},
    topology::{Address, Entity, Source, Topology},
};

/// Whether the topology is sound and this driver can keep it.
pub(crate) fn topology(driver: &dyn Driver, topology: &Topology) -> Result<()> {
    topology.check()?;
    let plan = topology.plan();
    for topic in &plan.topics {
        address(driver, topic)?;
    }
    for entity in &plan.sources {
        source(driver, entity)?;
    }
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for (name, entity) in driver.physical_names(&plan) {
        if let Some(other) = taken.insert(name.clone(), entity.clone()) {
            let text =
                format!("{entity} and {other} would both be {name:?} at the broker: rename one, or set `physical`");
            return Err(Error::config(text).with_backend(driver.backend()));
        }
    }
    driver.check(&plan)
}

/// Whether this driver can serve the address at all.
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

/// Whether this driver can serve the source at all.
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

/// Fills in what the bus knows and refuses what cannot be published there.
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

/// None past what a timestamp can tell.
fn later(now: OffsetDateTime, by: Duration) -> Option<OffsetDateTime> {
    now.checked_add(by.try_into().ok()?)
}
