//! The names at the broker of all that a polybus entity consists of.

use std::time::Duration;

use polybus_core::{
    Address, Source,
    driver::kit::{crc32c::crc32c, names::fit},
    topology::{Entity, TypeFilter},
};

/// The longest name in bytes: a short string of AMQP.
const LIMIT: usize = 255;

/// How many slots the keys of an ordered source are spread over. Each slot belongs to one partition.
pub(crate) const SLOTS: u8 = 64;

/// The name with a suffix, shortened to [`LIMIT`].
fn join(base: &str, tail: &str) -> String {
    fit(&format!("{base}{tail}"), LIMIT)
}

/// The live queue of a source, or the headers exchange before the partitions of an ordered one. Other names begin
/// with it.
pub(crate) fn base<T>(entity: &Entity<T>) -> String {
    match &entity.parent {
        Some(topic) if !entity.fixed => join(topic, &format!(".sub.{}", entity.physical)),
        _ => fit(&entity.physical, LIMIT),
    }
}

/// The queue of the dead letters.
pub(crate) fn dead_letters(base: &str) -> String {
    join(base, ".dlq")
}

/// The queue of a partition of an ordered source.
pub(crate) fn partition(base: &str, n: u16) -> String {
    join(base, &format!(".p{n}"))
}

/// The exchange that leads messages without a slot to partition 0.
pub(crate) fn unslotted(base: &str) -> String {
    join(base, ".unslotted")
}

/// The exchange, and the queue behind it, for messages that no subscription of a topic wants.
pub(crate) fn unrouted(topic: &str) -> String {
    join(topic, ".unrouted")
}

/// The queue in which messages to a target wait for this delay.
pub(crate) fn delay_queue(target: &str, delay: Duration) -> String {
    join(target, &format!(".delay.{}", delay.as_millis()))
}

/// The queues that hold the messages of a live source.
pub(crate) fn queues(base: &str, ordered: bool, partitions: u16) -> Vec<String> {
    if ordered { (0..partitions).map(|n| partition(base, n)).collect() } else { vec![base.to_owned()] }
}

/// The exchange of a topic.
pub(crate) fn exchange(topic: &Entity<Address>) -> String {
    fit(&topic.physical, LIMIT)
}

/// The binding key for a type filter. A `*` at the end is one or more words in polybus, but exactly one word in AMQP.
fn binding_key(filter: &TypeFilter) -> String {
    match filter {
        TypeFilter::Under(prefix) => format!("{prefix}.*.#"),
        exact => exact.to_string(),
    }
}

/// The keys by which a subscription is bound to its topic.
pub(crate) fn binding_keys(source: &Entity<Source>) -> Vec<String> {
    match source.settings.types.as_slice() {
        [] => vec!["#".to_owned()],
        types => types.iter().map(binding_key).collect(),
    }
}

/// The slot of a key: CRC-32C modulo [`SLOTS`].
pub(crate) fn slot(key: &str) -> u8 {
    (crc32c(key.as_bytes()) % u32::from(SLOTS)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_under_a_dot_is_one_or_more_words() {
        let key = |filter: &str| filter.parse().map(|f| binding_key(&f));
        assert_eq!(key("order.*").ok().as_deref(), Some("order.*.#"));
        assert_eq!(key("order.a").ok().as_deref(), Some("order.a"));
    }
}
