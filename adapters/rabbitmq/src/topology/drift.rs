//! How a queue that stands differs from what polybus would make: all of it, and what of it costs messages.

use std::{collections::BTreeMap, sync::Arc};

use lapin::types::{AMQPValue, FieldTable};
use polybus_core::{
    Error, ErrorKind, Result, Source,
    topology::{Entity, EntityDifference},
};

use crate::{
    config::{QueueType, Resolved},
    topology::{
        self,
        channel_operations::{Flags, Scratch},
        names,
    },
    transport::connection::Links,
};

/// Settings that a queue can differ in.
const MOST: usize = 16;
/// What RabbitMQ 4 limits a quorum queue to that names no limit. <https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>
const DEFAULT_LIMIT: u32 = 20;

/// Settings that RabbitMQ compares last, or on such a queue not at all, with a value with which it makes no queue: one that is deleted
/// while it is looked at must not be made again.
const LAST: (&str, &str) = ("x-queue-leader-locator", "never");
const NOT_OF_QUORUM: (&str, &str) = ("x-queue-mode", "never");
const NOT_OF_CLASSIC: (&str, &str) = ("x-dead-letter-strategy", "never");

/// What [`declare`] tells, without making a queue: `None` if there is none.
pub(crate) async fn compare(
    scratch: &mut Scratch<'_>,
    label: &str,
    queue: &str,
    arguments: FieldTable,
) -> Result<Option<Vec<EntityDifference>>> {
    if scratch.find_queue(queue).await?.is_none() {
        return Ok(None);
    }
    let with = |(setting, value): (&str, &str)| {
        let mut arguments = arguments.clone();
        arguments.insert(setting.into(), AMQPValue::LongString(value.into()));
        arguments
    };
    // One that is as it should be costs no error, which would stand in the broker's log whenever a consumer is opened.
    let classic =
        arguments.inner().get("x-queue-type").and_then(crate::message::envelope::text).is_some_and(|t| t == "classic");
    let quietly = with(if classic { NOT_OF_CLASSIC } else { NOT_OF_QUORUM });
    if scratch.declare_queue(queue, quietly).await.is_ok() {
        return Ok(Some(Vec::new()));
    }
    match declare(scratch, label, queue, with(LAST)).await {
        Ok(mut differences) => {
            differences.retain(|d| d.setting != LAST.0);
            Ok(Some(differences))
        }
        Err(e) if e.kind() == ErrorKind::InvalidArgument && e.message().contains(LAST.0) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Declares a queue. What differs is not changed, but told: the broker names one setting at a time, and is asked again with that one as it
/// found it, until it agrees.
pub(crate) async fn declare(
    scratch: &mut Scratch<'_>,
    label: &str,
    queue: &str,
    mut arguments: FieldTable,
) -> Result<Vec<EntityDifference>> {
    let mut flags = Flags { durable: true, auto_delete: false, exclusive: false };
    let mut differences: Vec<EntityDifference> = Vec::new();
    for _ in 0..MOST {
        let e = match scratch.declare_lasting(queue, arguments.clone(), flags).await {
            Ok(()) => return Ok(differences),
            Err(e) => e,
        };
        let told = match e.kind() {
            ErrorKind::AlreadyExists => topology::difference(label, &e),
            // An argument of the other type of queue, once the type itself is as it was found.
            ErrorKind::InvalidArgument if !differences.is_empty() => match refused(label, &e, &arguments) {
                Some(told) => told,
                None => return Ok(differences),
            },
            _ if !differences.is_empty() => return Ok(differences),
            _ => return Err(e),
        };
        let last = told.setting == LAST.0;
        let again = differences.iter().any(|d| d.setting == told.setting);
        let adopted = adopt(&told.setting, e.message(), &mut arguments, &mut flags);
        if !again {
            differences.push(told);
        }
        if again || last || !adopted {
            break;
        }
    }
    Ok(differences)
}

/// `invalid arg 'x' for queue …`: the queue that stands has none of it.
fn refused(label: &str, e: &Error, arguments: &FieldTable) -> Option<EntityDifference> {
    let name = e.message().split_once("invalid arg '")?.1.split_once('\'')?.0;
    let wanted = crate::message::envelope::text(arguments.inner().get(name)?)?;
    Some(EntityDifference::new(label, name, wanted, "none"))
}

/// Takes a setting over as the broker told that it found it.
fn adopt(setting: &str, told: &str, arguments: &mut FieldTable, flags: &mut Flags) -> bool {
    let found = told.split_once(" but current is ").map_or("none", |(_, found)| found);
    let quoted =
        |text: &str| text.split_once('\'').and_then(|(_, rest)| rest.split_once('\'')).map(|(v, _)| v.to_owned());
    let flag = match setting {
        "durable" => &mut flags.durable,
        "auto_delete" => &mut flags.auto_delete,
        "exclusive" => &mut flags.exclusive,
        _ => {
            let Some(value) = quoted(found) else {
                let name = setting.into();
                let kept: FieldTable = arguments.inner().iter().filter(|(n, _)| **n != name).fold(
                    FieldTable::default(),
                    |mut kept, (n, value)| {
                        kept.insert(n.clone(), value.clone());
                        kept
                    },
                );
                *arguments = kept;
                return found.starts_with("none");
            };
            let number = value.parse().ok();
            let value = match (number, value.as_str()) {
                (Some(number), _) if !found.contains("longstr") => AMQPValue::LongLongInt(number),
                (_, "true") if !found.contains("longstr") => AMQPValue::Boolean(true),
                (_, "false") if !found.contains("longstr") => AMQPValue::Boolean(false),
                _ => AMQPValue::LongString(value.into()),
            };
            arguments.insert(setting.into(), value);
            return true;
        }
    };
    *flag = !*flag;
    true
}

/// What is to be known of a source that somebody else may have declared.
pub(crate) struct Found {
    /// What costs messages or their order, as an operator reads it.
    pub(crate) dangers: Vec<String>,
    /// After how many failed deliveries the broker drops a message, if not after those that polybus sets.
    pub(crate) limit: Option<u32>,
}

/// Looks at a live source's queues. Changes nothing, and makes none that is missing.
pub(crate) async fn inspect(links: &Arc<Links>, source: &Entity<Source>, options: &Resolved) -> Result<Found> {
    let mut scratch = Scratch::new(links);
    let mut found = Found { dangers: Vec::new(), limit: None };
    let base = names::base(source);
    if source.settings.ordered
        && let Some(count) = partitions(&mut scratch, &base).await?.filter(|count| *count != options.partitions)
    {
        found.dangers.push(format!("{count} partitions instead of {}: keys are out of order", options.partitions));
    }
    let dead = names::dead_letters(&base);
    if scratch.find_queue(&dead).await?.is_none() {
        found.dangers.push(format!("no queue {dead} for dead letters: nothing can be given up"));
    }
    let mut settings = BTreeMap::new();
    for (label, queue, arguments) in topology::source(source, options).queues {
        if label != source.name.to_string() {
            continue;
        }
        for d in compare(&mut scratch, &label, &queue, arguments).await?.unwrap_or_default() {
            settings.entry(d.setting.to_string()).or_insert(d.found.to_string());
        }
    }
    scratch.finish().await;
    let is = |name: &str| settings.get(name).map(String::as_str);
    let classic = options.queue_type == QueueType::Classic;
    let limit = is("x-delivery-limit").filter(|_| !classic && is("x-queue-type").is_none());
    if let Some(limit) = limit.and_then(delivery_limit) {
        found.limit = Some(limit);
        if limit < source.settings.max_deliveries {
            found.dangers.push(format!(
                "the broker drops what failed {limit} times, max_deliveries is {}",
                source.settings.max_deliveries
            ));
        }
    }
    for (setting, danger) in [
        ("x-dead-letter-exchange", "no dead letters of the broker's: what it drops is gone"),
        ("x-dead-letter-routing-key", "the broker's dead letters go elsewhere"),
        ("x-single-active-consumer", "no single active consumer: several consumers take one key's messages at once"),
        ("x-queue-type", "another type of queue than the topology says"),
        ("durable", "not durable: a restart of the broker loses all"),
        ("auto_delete", "deleted with its last consumer"),
        ("x-expires", "deleted when nobody uses it"),
        ("x-max-length", "bounded: what is too much is dropped"),
        ("x-max-length-bytes", "bounded: what is too much is dropped"),
    ] {
        if let Some(value) = is(setting) {
            found.dangers.push(format!("{danger} ({setting} is {value})"));
        }
    }
    Ok(found)
}

/// The limit that a queue of others has; `None` for no limit, which is any negative number.
fn delivery_limit(found: &str) -> Option<u32> {
    match found.parse::<i64>() {
        Ok(limit) => u32::try_from(limit).ok(),
        Err(_) => Some(DEFAULT_LIMIT),
    }
}

/// How many partitions an ordered source has; `None` while there are none, or they are being made: the first is made last.
pub(crate) async fn partitions(scratch: &mut Scratch<'_>, base: &str) -> Result<Option<u16>> {
    let mut count = 0;
    while scratch.find_queue(&names::partition(base, count)).await?.is_some() {
        count += 1;
    }
    Ok(Some(count).filter(|count| *count > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_negative_delivery_limit_is_none() {
        assert_eq!(["7", "0", "-1", "none"].map(delivery_limit), [Some(7), Some(0), None, Some(DEFAULT_LIMIT)]);
    }
}
