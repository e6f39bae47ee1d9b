//! Entities at the broker: what a queue, topic or subscription of polybus consists of, and how it is declared and
//! verified.
//!
//! [`source`] and [`topic`] say which exchanges, queues and bindings an entity needs, by the [`names`] of the broker.
//! [`declare`] makes them or, for `verify`, only compares; [`drift`] reads from the broker's errors how a queue
//! differs. [`delay_queues`] are for messages that wait. All of it goes over [`channel_operations`], and over the
//! [`http_api`] where AMQP tells nothing.

pub(crate) mod channel_operations;
pub(crate) mod delay_queues;
pub(crate) mod drift;
pub(crate) mod http_api;
pub(crate) mod names;

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use lapin::{
    ExchangeKind,
    types::{AMQPValue, FieldTable},
};
use polybus_core::{
    Address, Error, ErrorKind, Result, Source,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, EntityDifference},
};

use crate::{
    config::{EntityOptions, QueueType},
    message::envelope::SLOT,
    topology::{
        channel_operations::{ExchangeBinding, ProbeChannel, short},
        delay_queues::{DelayQueue, KnownDelayQueues, PublishTarget},
        names::SLOTS,
    },
    transport::connection::DriverConnections,
};

/// The delivery limit that polybus sets on live quorum queues. Core dead-letters a message before that. Only a
/// message that core never gets to handle, such as one that crashes its consumer each time, reaches it.
///
/// It is the same on all queues, since `max_deliveries` may change and a queue's arguments never do.
pub(crate) const BACKSTOP: i64 = 100;
/// The delivery limit that polybus sets on quorum queues of dead letters, which must not be lost to a limit. No limit
/// means 20 on RabbitMQ 4, and −1 loses messages before 4.
const UNLIMITED: i64 = 1_000_000_000;
/// The setting in the difference that reports a missing entity.
const EXISTS: &str = "exists";
/// How many entities are declared at once.
const ENTITIES_AT_ONCE: usize = 8;

/// The exchanges, queues and bindings of one polybus entity.
#[derive(Default)]
pub(crate) struct BrokerEntities {
    /// The polybus entity, for reports.
    pub(crate) label: String,
    pub(crate) exchanges: Vec<(String, ExchangeKind, FieldTable)>,
    /// For each queue: the polybus source whose messages it holds, its name, and its arguments.
    pub(crate) queues: Vec<(String, String, FieldTable)>,
    pub(crate) bindings: Vec<ExchangeBinding>,
    /// The bindings of a subscription to its topic, which change with the types.
    subscribed: Option<SubscriptionBinding>,
    /// Of a source: its base name, and whether it is ordered. An entity of the other form would not conflict at the
    /// broker, but stand beside this one and keep its messages.
    form: Option<(String, bool)>,
    /// How many partitions an ordered source has.
    partitions: Option<u16>,
    /// The delays for which delay queues are made.
    retries: BTreeSet<Duration>,
}

/// How a subscription is bound to its topic.
struct SubscriptionBinding {
    topic: String,
    /// The queue of the subscription, or the exchange of an ordered one.
    to: String,
    to_exchange: bool,
    keys: Vec<String>,
}

/// Sets an argument to a text.
fn put_text(table: &mut FieldTable, key: &str, value: &str) {
    table.insert(key.into(), AMQPValue::LongString(value.into()));
}

/// Sets an argument to a number.
fn put_integer(table: &mut FieldTable, key: &str, value: i64) {
    table.insert(key.into(), AMQPValue::LongLongInt(value));
}

/// A binding to a queue, without arguments.
fn plain_binding(from: &str, to: &str, key: &str) -> ExchangeBinding {
    let (from, to, key) = (from.to_owned(), to.to_owned(), key.to_owned());
    ExchangeBinding { from, to, to_exchange: false, key, arguments: FieldTable::default() }
}

/// The entities of a topic: its exchange, and a queue that discards what no subscription wants. Without that queue a
/// delayed message could not leave its delay queue.
pub(crate) fn topic(entity: &Entity<Address>) -> BrokerEntities {
    let (exchange, label) = (names::exchange(entity), entity.name.to_string());
    let unrouted = names::unrouted(&exchange);
    let (mut alternate, mut discard) = (FieldTable::default(), FieldTable::default());
    put_text(&mut alternate, "alternate-exchange", &unrouted);
    put_text(&mut discard, "x-queue-type", "classic");
    put_integer(&mut discard, "x-message-ttl", 0);
    BrokerEntities {
        bindings: vec![plain_binding(&unrouted, &unrouted, "")],
        queues: vec![(label.clone(), unrouted.clone(), discard)],
        exchanges: vec![
            (unrouted, ExchangeKind::Fanout, FieldTable::default()),
            (exchange, ExchangeKind::Topic, alternate),
        ],
        label,
        ..BrokerEntities::default()
    }
}

/// The entities of a queue or subscription, with its dead letters.
pub(crate) fn source(entity: &Entity<Source>, options: &EntityOptions) -> BrokerEntities {
    let (base, label) = (names::base(entity), entity.name.to_string());
    let dead = names::dead_letters(&base);
    let ordered = entity.settings.ordered;
    let mut letters = FieldTable::default();
    put_text(&mut letters, "x-queue-type", options.queue_type.as_str());
    let mut live = letters.clone();
    put_text(&mut live, "x-dead-letter-exchange", "");
    put_text(&mut live, "x-dead-letter-routing-key", &dead);
    if options.queue_type == QueueType::Quorum {
        put_integer(&mut letters, "x-delivery-limit", UNLIMITED);
        put_integer(&mut live, "x-delivery-limit", BACKSTOP);
        put_text(&mut live, "x-dead-letter-strategy", "at-least-once");
        put_text(&mut live, "x-overflow", "reject-publish");
    }
    if ordered {
        live.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    // Retries of an ordered source wait in the client, so it needs no delay queues.
    let retries = match entity.settings.retry_named && !ordered {
        true => delay_queues::delays_for_retries(&entity.settings.retry),
        false => BTreeSet::new(),
    };
    let mut entities = BrokerEntities {
        retries,
        queues: vec![(entity.name.dead_letters().to_string(), dead, letters)],
        form: Some((base.clone(), ordered)),
        partitions: ordered.then_some(options.partitions),
        label,
        ..BrokerEntities::default()
    };
    // The order matters: partition 0 is declared last, so where it exists all partitions do. Another process that
    // counts them meanwhile does not take some for all.
    for queue in names::queues(&base, ordered, options.partitions).into_iter().rev() {
        entities.queues.push((entities.label.clone(), queue, live.clone()));
    }
    if ordered {
        add_partitions(&base, options.partitions, &mut entities);
    }
    if let Some(topic) = &entity.parent {
        let (topic, keys) = (topic.to_string(), names::binding_keys(entity));
        let to_bindings =
            keys.iter().map(|key| ExchangeBinding { to_exchange: ordered, ..plain_binding(&topic, &base, key) });
        entities.bindings.extend(to_bindings);
        entities.subscribed = Some(SubscriptionBinding { topic, to: base, to_exchange: ordered, keys });
    }
    entities
}

/// Adds the headers exchange of an ordered source, which spreads the slots over the partitions. A message without a
/// slot goes to partition 0.
fn add_partitions(base: &str, partitions: u16, entities: &mut BrokerEntities) {
    let unslotted = names::unslotted(base);
    let mut alternate = FieldTable::default();
    put_text(&mut alternate, "alternate-exchange", &unslotted);
    entities.bindings.push(plain_binding(&unslotted, &names::partition(base, 0), ""));
    entities.exchanges.push((unslotted, ExchangeKind::Fanout, FieldTable::default()));
    entities.exchanges.push((base.to_owned(), ExchangeKind::Headers, alternate));
    for slot in 0..SLOTS {
        let mut arguments = FieldTable::default();
        put_text(&mut arguments, "x-match", "all");
        put_text(&mut arguments, SLOT, &slot.to_string());
        let partition = names::partition(base, u16::from(slot) % partitions);
        entities.bindings.push(ExchangeBinding { arguments, ..plain_binding(base, &partition, &slot.to_string()) });
    }
}

/// Creates or verifies all entities of a plan. Differences are reported, not errors.
pub(crate) async fn declare(
    connections: &DriverConnections,
    delay_queues: &KnownDelayQueues,
    plan: &DeclarePlan,
    mode: DeclareMode,
) -> Result<DeclareReport> {
    let mut report = DeclareReport::default();
    if mode == DeclareMode::Off {
        return Ok(report);
    }
    let topics: Vec<BrokerEntities> = plan.topics.iter().map(topic).collect();
    let sources: Vec<BrokerEntities> =
        plan.sources.iter().map(|s| Ok(source(s, &connections.config.options(s)?))).collect::<Result<_>>()?;
    // Topics come first, since subscriptions bind to them.
    for all in [topics, sources] {
        for some in all.chunks(ENTITIES_AT_ONCE) {
            let declaring = some.iter().map(|entities| declare_entity(connections, delay_queues, entities, mode));
            for one in join_all(declaring).await {
                let one = one?;
                report.created.extend(one.created);
                report.differences.extend(one.differences);
                report.unchecked.extend(one.unchecked);
            }
        }
    }
    Ok(report)
}

/// Creates or verifies one entity.
async fn declare_entity(
    connections: &DriverConnections,
    delay_queues: &KnownDelayQueues,
    entities: &BrokerEntities,
    mode: DeclareMode,
) -> Result<DeclareReport> {
    let mut probe = ProbeChannel::new(connections);
    let mut report = DeclareReport::default();
    let mut created = false;
    if let Some((base, ordered)) = &entities.form {
        let other = match ordered {
            true => probe.find_queue(base).await?.is_some(),
            false => probe.find_exchange(base).await?,
        };
        if other {
            probe.close().await;
            report.differences.push(EntityDifference::new(&entities.label, "ordered", ordered, !ordered));
            return Ok(report);
        }
    }
    // With another number of partitions nothing is declared: new bindings beside the old ones would lead keys to two
    // queues.
    if let (Some((base, _)), Some(wanted)) = (&entities.form, entities.partitions)
        && let Some(found) = drift::partitions(&mut probe, base).await?.filter(|found| *found != wanted)
    {
        probe.close().await;
        report.differences.push(EntityDifference::new(&entities.label, "partitions", wanted, found));
        return Ok(report);
    }
    for (name, kind, arguments) in &entities.exchanges {
        let absent = !probe.find_exchange(name).await?;
        if absent {
            if mode == DeclareMode::Verify {
                report.differences.push(missing_entity(&entities.label, &format!("exchange {name}")));
                continue;
            }
            created = true;
        }
        let declared = probe.declare_exchange(name, kind.clone(), arguments.clone()).await;
        record(&mut report, &entities.label, &format!("exchange {name}"), absent, declared)?;
    }
    for (label, name, arguments) in &entities.queues {
        let what = format!("queue {name}");
        let mut absent = false;
        let differences = match mode {
            DeclareMode::Verify => drift::compare(&mut probe, label, name, arguments.clone())
                .await
                .map(|found| found.unwrap_or_else(|| vec![missing_entity(label, &what)])),
            _ => {
                absent = probe.find_queue(name).await?.is_none();
                created |= absent;
                drift::declare(&mut probe, label, name, arguments.clone()).await
            }
        };
        let declared = differences.map(|differences| report.differences.extend(differences));
        record(&mut report, label, &what, absent, declared)?;
    }
    if mode == DeclareMode::Create {
        probe.bind(&entities.bindings).await?;
        // A quorum queue can lose its messages if its only node is killed within half a second of the queue's making.
        // A delay queue that is made here is older than that when its first message comes.
        if let Some((base, _)) = &entities.form {
            for delay in &entities.retries {
                let queue = DelayQueue { target: PublishTarget::Queue(short(base)?), delay: *delay };
                let made = delay_queues.make(&mut probe, &queue).await;
                record(&mut report, &entities.label, &format!("delay queue of {delay:?}"), false, made)?;
            }
        }
    }
    probe.close().await;
    let missing = report.differences.iter().any(|d| d.setting == EXISTS && d.entity == entities.label);
    if let Some(subscribed) = entities.subscribed.as_ref().filter(|_| !missing) {
        compare_bindings(connections, &entities.label, subscribed, mode, &mut report).await;
    }
    if created {
        report.created.push(entities.label.clone());
    }
    // A missing entity is reported once, and its dead letters are not reported beside it.
    let gone = |d: &EntityDifference| d.setting == EXISTS;
    if missing {
        report.differences.retain(|d| !gone(d) || d.entity == entities.label);
    }
    let mut told = false;
    report.differences.retain(|d| !(gone(d) && std::mem::replace(&mut told, true)));
    Ok(report)
}

/// Compares the bindings of a subscription by the management API, since AMQP tells nothing about bindings. A
/// difference, or what could not be compared, is added to the report.
async fn compare_bindings(
    connections: &DriverConnections,
    label: &str,
    wanted: &SubscriptionBinding,
    mode: DeclareMode,
    report: &mut DeclareReport,
) {
    if connections.config.management.is_none() {
        if mode == DeclareMode::Verify {
            report.unchecked.push(format!("{label}: its bindings (the bus URL names no management=)"));
        }
        return;
    }
    match http_api::bindings(connections, &wanted.topic, &wanted.to, wanted.to_exchange).await {
        Ok(found) => {
            for key in wanted.keys.iter().filter(|key| !found.contains(*key)) {
                report.differences.push(EntityDifference::new(label, "types", key, "none"));
            }
            for key in found.iter().filter(|key| !wanted.keys.contains(*key)) {
                report.differences.push(EntityDifference::new(label, "types", "none", key));
            }
        }
        Err(e) => report.unchecked.push(format!("{label}: its bindings ({e})")),
    }
}

fn missing_entity(label: &str, what: &str) -> EntityDifference {
    EntityDifference::new(label, EXISTS, "yes", format!("no {what}"))
}

/// Adds the outcome of a declaration to the report.
///
/// Other settings of an entity that stands are a difference, not an error. An entity that stands and may not be
/// declared by this user is unchecked. Any other error ends the declaration.
fn record(report: &mut DeclareReport, label: &str, what: &str, absent: bool, declared: Result<()>) -> Result<()> {
    match declared {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            report.differences.push(difference_from_error(label, &e));
            Ok(())
        }
        Err(e) if e.kind() == ErrorKind::PermissionDenied && !absent => {
            report.unchecked.push(format!("{label}: arguments of {what} ({})", e.message()));
            Ok(())
        }
        Err(e) => Err(e.with_context("entity", label)),
    }
}

/// Reads `… inequivalent arg 'x' for queue 'q' in vhost '/': received A but current is B`.
pub(crate) fn difference_from_error(label: &str, e: &Error) -> EntityDifference {
    let told = e.message();
    let setting = told.split_once("arg '").and_then(|(_, rest)| rest.split_once('\''));
    let values = told.split_once("received ").and_then(|(_, rest)| rest.split_once(" but current is "));
    let (wanted, found) = values.unwrap_or(("another form", told));
    let setting = setting.map_or("arguments", |(name, _)| name);
    EntityDifference::new(label, setting, quoted_value(wanted), quoted_value(found))
}

/// `the value '10' of type 'signedint'` and `'10'` are `10`.
fn quoted_value(told: &str) -> &str {
    match told.split_once('\'').and_then(|(_, rest)| rest.split_once('\'')) {
        Some((value, _)) => value,
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error;

    #[test]
    fn a_refused_declaration_names_the_argument() {
        for (told, setting, wanted, found) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': received the value '100' of type 'signedint' but current is the value '5' of type 'long'",
                "x-delivery-limit",
                "100",
                "5",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'e' in vhost '/': received 'topic' but current is 'fanout'",
                "type",
                "topic",
                "fanout",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-overflow' for queue 'q' in vhost '/': received the value 'reject-publish' of type 'longstr' but current is none",
                "x-overflow",
                "reject-publish",
                "none",
            ),
        ] {
            let d = difference_from_error("queue:q", &error::new(ErrorKind::AlreadyExists, "declare", told));
            assert_eq!((&*d.setting, &*d.wanted, &*d.found), (setting, wanted, found));
        }
    }
}
