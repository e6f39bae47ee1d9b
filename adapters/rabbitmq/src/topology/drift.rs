//! Compares queues that stand with those that polybus would declare: reports each difference, and warns of those that
//! cost messages or their order.

use std::collections::BTreeMap;

use lapin::types::{AMQPValue, FieldTable};
use polybus_core::{
    Error, ErrorKind, Result, Source,
    topology::{Entity, EntityDifference},
};

use crate::{
    config::{EntityOptions, QueueType},
    message::envelope::value_as_text,
    topology::{
        self,
        channel_operations::{ProbeChannel, QueueFlags},
        names,
    },
    transport::connection::DriverConnections,
};

/// The most settings in which a queue is compared.
const MAX_DIFFERENCES: usize = 16;
/// The delivery limit that RabbitMQ 4 gives a quorum queue that names none:
/// <https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling>.
const DEFAULT_LIMIT: u32 = 20;

/// A setting that RabbitMQ compares after all others, with a value for which it never makes a queue.
///
/// Comparing is done by declaring, and a queue that is deleted meanwhile must not be made again by it. The next two
/// settings do the same: RabbitMQ does not compare them on the one type of queue, and refuses the value for a new
/// queue.
const LAST: (&str, &str) = ("x-queue-leader-locator", "never");
const NOT_OF_QUORUM: (&str, &str) = ("x-queue-mode", "never");
const NOT_OF_CLASSIC: (&str, &str) = ("x-dead-letter-strategy", "never");

/// The differences that [`declare`] reports, without making a queue; `None` if there is no queue.
pub(crate) async fn compare(
    probe: &mut ProbeChannel<'_>,
    label: &str,
    queue: &str,
    arguments: FieldTable,
) -> Result<Option<Vec<EntityDifference>>> {
    if probe.find_queue(queue).await?.is_none() {
        return Ok(None);
    }
    let with = |(setting, value): (&str, &str)| {
        let mut arguments = arguments.clone();
        arguments.insert(setting.into(), AMQPValue::LongString(value.into()));
        arguments
    };
    // A queue that is as it should be must cost no error: the broker would log one whenever a consumer is opened. So
    // the first declaration is one that such a queue passes.
    let classic = arguments.inner().get("x-queue-type").and_then(value_as_text).is_some_and(|t| t == "classic");
    let quietly = with(if classic { NOT_OF_CLASSIC } else { NOT_OF_QUORUM });
    if probe.declare_queue(queue, quietly).await.is_ok() {
        return Ok(Some(Vec::new()));
    }
    match declare(probe, label, queue, with(LAST)).await {
        Ok(mut differences) => {
            differences.retain(|d| d.setting != LAST.0);
            Ok(Some(differences))
        }
        Err(e) if e.kind() == ErrorKind::InvalidArgument && e.message().contains(LAST.0) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Declares a queue, and answers how a queue that stands differs. Nothing of it is changed.
///
/// The broker names only one differing setting. So the queue is declared again with that setting as the broker has it,
/// until the broker agrees.
pub(crate) async fn declare(
    probe: &mut ProbeChannel<'_>,
    label: &str,
    queue: &str,
    mut arguments: FieldTable,
) -> Result<Vec<EntityDifference>> {
    let mut flags = QueueFlags { durable: true, auto_delete: false, exclusive: false };
    let mut differences: Vec<EntityDifference> = Vec::new();
    for _ in 0..MAX_DIFFERENCES {
        let e = match probe.declare_queue_with(queue, arguments.clone(), flags).await {
            Ok(()) => return Ok(differences),
            Err(e) => e,
        };
        let told = match e.kind() {
            ErrorKind::AlreadyExists => topology::difference_from_error(label, &e),
            // The queue is of the other type, which was adopted before, and has no such argument.
            ErrorKind::InvalidArgument if !differences.is_empty() => match refused_argument(label, &e, &arguments) {
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

/// Reads `invalid arg 'x' for queue …`: the queue that stands has no such argument.
fn refused_argument(label: &str, e: &Error, arguments: &FieldTable) -> Option<EntityDifference> {
    let name = e.message().split_once("invalid arg '")?.1.split_once('\'')?.0;
    let wanted = value_as_text(arguments.inner().get(name)?)?;
    Some(EntityDifference::new(label, name, wanted, "none"))
}

/// Takes over a setting as the broker has it, by its text. Answers false if the text could not be read.
fn adopt(setting: &str, told: &str, arguments: &mut FieldTable, flags: &mut QueueFlags) -> bool {
    let found = told.split_once(" but current is ").map_or("none", |(_, found)| found);
    let quoted =
        |text: &str| text.split_once('\'').and_then(|(_, rest)| rest.split_once('\'')).map(|(v, _)| v.to_owned());
    let flag = match setting {
        "durable" => &mut flags.durable,
        "auto_delete" => &mut flags.auto_delete,
        "exclusive" => &mut flags.exclusive,
        _ => {
            let Some(value) = quoted(found) else {
                let mut kept = arguments.inner().clone();
                kept.remove(setting);
                *arguments = kept.into();
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

/// What was found on the queues of a source that somebody else may have declared.
pub(crate) struct SourceInspection {
    /// The settings that cost messages or their order, in words for an operator.
    pub(crate) dangers: Vec<String>,
    /// After how many failed deliveries the broker drops a message, if that differs from the limit that polybus sets.
    pub(crate) limit: Option<u32>,
}

/// Inspects the queues of a live source. It changes nothing and makes no queue.
pub(crate) async fn inspect(
    connections: &DriverConnections,
    source: &Entity<Source>,
    options: &EntityOptions,
) -> Result<SourceInspection> {
    let mut probe = ProbeChannel::new(connections);
    let mut found = SourceInspection { dangers: Vec::new(), limit: None };
    let base = names::base(source);
    if source.settings.ordered
        && let Some(count) = partitions(&mut probe, &base).await?.filter(|count| *count != options.partitions)
    {
        found.dangers.push(format!("{count} partitions instead of {}: keys are out of order", options.partitions));
    }
    let dead = names::dead_letters(&base);
    if probe.find_queue(&dead).await?.is_none() {
        found.dangers.push(format!("no queue {dead} for dead letters: nothing can be given up"));
    }
    let mut settings = BTreeMap::new();
    for (label, queue, arguments) in topology::source(source, options).queues {
        if label != source.name.to_string() {
            continue;
        }
        for d in compare(&mut probe, &label, &queue, arguments).await?.unwrap_or_default() {
            settings.entry(d.setting.to_string()).or_insert(d.found.to_string());
        }
    }
    probe.close().await;
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

/// The delivery limit of a queue, from the broker's text; `None` if there is no limit, as for any negative number.
fn delivery_limit(found: &str) -> Option<u32> {
    match found.parse::<i64>() {
        Ok(limit) => u32::try_from(limit).ok(),
        Err(_) => Some(DEFAULT_LIMIT),
    }
}

/// How many partitions an ordered source has. `None` if there are none yet, or they are being made: partition 0 is
/// made last.
pub(crate) async fn partitions(probe: &mut ProbeChannel<'_>, base: &str) -> Result<Option<u16>> {
    let mut count = 0;
    while probe.find_queue(&names::partition(base, count)).await?.is_some() {
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
