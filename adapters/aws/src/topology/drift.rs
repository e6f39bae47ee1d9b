//! Verifying: compares queues, topics and subscriptions with what `declare` would create. Every setting that `declare`
//! writes is compared here.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use polybus_core::{
    Address, ErrorKind, Result, Source,
    topology::{DeclareReport, Entity, EntityDifference},
};

use crate::{
    config::EntityOptions,
    message::limits::ROOM_FOR_REASON,
    topology::{
        policy::{self, FilterPolicy},
        queues::{self, QueueAttributes},
        topics::{self, TopicSubscription},
    },
    transport::clients::AwsClients,
};

/// Shown for a setting that is not there.
const NONE: &str = "none";

/// Compares the queue of a live source, and its redrive policy.
pub(crate) fn of_queue(
    clients: &AwsClients,
    entity: &Entity<Source>,
    found: &QueueAttributes,
    letters: Option<&QueueAttributes>,
    options: &EntityOptions,
    report: &mut DeclareReport,
) {
    if let Some(letters) = letters {
        redrive(entity, found, letters, report);
    }
    let least = clients.config.max_message_size as u64;
    settings(&entity.name, clients, entity.settings.ordered, found, options, least, report);
}

/// Compares the queue of its dead letters, whose messages are as large as live ones with a reason added.
pub(crate) fn of_dead_letters(
    clients: &AwsClients,
    entity: &Entity<Source>,
    found: &QueueAttributes,
    options: &EntityOptions,
    report: &mut DeclareReport,
) {
    let least = (clients.config.max_message_size + ROOM_FOR_REASON) as u64;
    settings(&entity.name.dead_letters(), clients, entity.settings.ordered, found, options, least, report);
}

/// Compares the redrive policy. A limit that moves messages before core does is a difference; any other is the
/// operator's choice.
fn redrive(entity: &Entity<Source>, found: &QueueAttributes, letters: &QueueAttributes, report: &mut DeclareReport) {
    let wanted = entity.settings.max_deliveries;
    match found.get(&Attribute::RedrivePolicy).and_then(policy::read_redrive) {
        None => report.differences.push(EntityDifference::new(&entity.name, "dead letters", letters.arn(), NONE)),
        Some((arn, _)) if arn != letters.arn() => {
            report.differences.push(EntityDifference::new(&entity.name, "dead letters", letters.arn(), arn));
        }
        Some((_, limit)) if limit <= wanted => {
            let wanted = format!("more than {wanted}");
            report.differences.push(EntityDifference::new(&entity.name, "maxReceiveCount", wanted, limit));
        }
        Some(_) => {}
    }
}

/// Compares the attributes that a new queue would get, so that none of them is left out.
fn settings(
    label: &Source,
    clients: &AwsClients,
    ordered: bool,
    found: &QueueAttributes,
    options: &EntityOptions,
    least_size: u64,
    report: &mut DeclareReport,
) {
    let mut differ = |setting: &str, wanted: String, found: String| {
        report.differences.push(EntityDifference::new(label, setting, wanted, found))
    };
    for (name, wanted) in queues::attributes(ordered, clients.config.queue_bytes(), options) {
        let there = found.get(&name).unwrap_or(NONE);
        match name {
            _ if there == wanted => {}
            Attribute::MaximumMessageSize if there.parse().is_ok_and(|size: u64| size >= least_size) => {}
            Attribute::MaximumMessageSize => {
                differ("max_message_size", format!("at least {least_size}"), there.to_owned());
            }
            Attribute::MessageRetentionPeriod => differ("retention", format!("{wanted} s"), format!("{there} s")),
            Attribute::KmsMasterKeyId if same_key(there, &wanted) => {}
            Attribute::KmsMasterKeyId => differ("kms_key", wanted, there.to_owned()),
            Attribute::FifoQueue => differ("ordered", "true".into(), "false".into()),
            _ => differ(name.as_str(), wanted, there.to_owned()),
        }
    }
    // SQS encrypts by default, so only a queue that somebody has changed is without encryption.
    let keyed = options.kms_key.is_some() || found.get(&Attribute::KmsMasterKeyId).is_some();
    if !keyed && found.get(&Attribute::SqsManagedSseEnabled) == Some("false") {
        differ("encryption", "on".into(), "off".into());
    }
}

/// Compares the attributes of a topic.
pub(crate) fn of_topic(
    entity: &Entity<Address>,
    found: &HashMap<String, String>,
    options: &EntityOptions,
    report: &mut DeclareReport,
) {
    for (name, wanted) in topics::attributes(entity.settings.ordered, options) {
        let there = found.get(name).map_or(NONE, String::as_str);
        let (setting, same) = match name {
            topics::KMS_KEY => ("kms_key", same_key(there, &wanted)),
            topics::FIFO => ("ordered", there == wanted),
            name => (name, there == wanted),
        };
        if !same {
            report.differences.push(EntityDifference::new(&entity.name, setting, wanted, there));
        }
    }
}

/// Whether two names mean one key, as far as the names show: an id and the ARN that ends in it, an alias and its ARN.
fn same_key(found: &str, wanted: &str) -> bool {
    let bare = |key: &str| {
        let name = if key.starts_with("arn:") { key.rsplit(':').next().unwrap_or(key) } else { key };
        name.strip_prefix("key/").unwrap_or(name).to_owned()
    };
    bare(found) == bare(wanted)
}

/// Compares the tags that are wanted; others may be there. Where listing tags is forbidden, they are reported as
/// unchecked.
pub(crate) fn tags(
    label: impl ToString,
    wanted: &BTreeMap<String, String>,
    found: Result<HashMap<String, String>>,
    report: &mut DeclareReport,
) -> Result<()> {
    let found = match found {
        Ok(found) => found,
        Err(e) if matches!(e.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            report.unchecked.push(format!("{}: tags ({e})", label.to_string()));
            return Ok(());
        }
        Err(e) => return Err(e),
    };
    let label = label.to_string();
    for (key, wanted) in wanted {
        let there = found.get(key).map_or(NONE, String::as_str);
        if there != wanted {
            report.differences.push(EntityDifference::new(&label, format!("tags.{key}"), wanted, there));
        }
    }
    Ok(())
}

/// Compares how a subscription delivers. Its types are compared by [`types_missing`] and [`types_left`].
pub(crate) fn of_subscription(entity: &Entity<Source>, found: &TopicSubscription, report: &mut DeclareReport) {
    if !found.raw {
        report.differences.push(EntityDifference::new(&entity.name, "RawMessageDelivery", "true", "false"));
    }
    if found.filters_bodies {
        report.differences.push(EntityDifference::new(
            &entity.name,
            "FilterPolicyScope",
            "MessageAttributes",
            "MessageBody",
        ));
    }
}

fn of_types<'a>(entity: &'a Entity<Source>, report: &'a mut DeclareReport) -> impl FnMut(&str, &str) + 'a {
    |wanted, found| report.differences.push(EntityDifference::new(&entity.name, "types", wanted, found))
}

/// Reports types that are wanted and that the filter policy keeps out.
pub(crate) fn types_missing(
    entity: &Entity<Source>,
    wanted: &BTreeSet<String>,
    found: &FilterPolicy,
    report: &mut DeclareReport,
) {
    let mut differ = of_types(entity, report);
    match found {
        FilterPolicy::All => {}
        FilterPolicy::Other => differ("a filter policy on cloudEvents_type alone", "another"),
        FilterPolicy::Types(found) if wanted.is_empty() => {
            let found: Vec<&str> = found.iter().map(|t| &**t).collect();
            differ("all", &found.join(", "));
        }
        FilterPolicy::Types(found) => wanted.difference(found).for_each(|t| differ(t, NONE)),
    }
}

/// Reports types that the filter policy lets through though they are not wanted. Core drops them, but each costs calls.
pub(crate) fn types_left(
    entity: &Entity<Source>,
    wanted: &BTreeSet<String>,
    found: &FilterPolicy,
    report: &mut DeclareReport,
) {
    let mut differ = of_types(entity, report);
    match found {
        FilterPolicy::All if !wanted.is_empty() => {
            let wanted: Vec<&str> = wanted.iter().map(|t| &**t).collect();
            differ(&wanted.join(", "), "all");
        }
        FilterPolicy::Types(found) if !wanted.is_empty() => found.difference(wanted).for_each(|t| differ(NONE, t)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_by_any_of_its_names() {
        for (found, wanted, same) in [
            ("1234-ab", "1234-ab", true),
            ("arn:aws:kms:eu-west-1:1:key/1234-ab", "1234-ab", true),
            ("alias/orders", "arn:aws:kms:eu-west-1:1:alias/orders", true),
            ("alias/orders", "orders", false),
            ("none", "1234-ab", false),
        ] {
            assert_eq!(same_key(found, wanted), same, "{found} {wanted}");
        }
    }
}
