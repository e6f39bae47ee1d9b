//! Declaring and verifying: what polybus' entities are made of at the broker.

pub(crate) mod channel_operations;
pub(crate) mod delay_queues;
pub(crate) mod drift;
pub(crate) mod http_api;
pub(crate) mod names;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

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
    config::{Config, QueueType, Resolved},
    message::envelope::SLOT,
    topology::{
        channel_operations::{Binding, Scratch},
        delay_queues::{Rungs, Target},
        names::SLOTS,
    },
    transport::connection::Links,
};

/// The broker's own limit, far beyond what core allows: it only ends what no core sees, such as a consumer that crashes
/// over and over. Fixed, since an operator's `max_deliveries` must never be an immutable argument.
pub(crate) const BACKSTOP: i64 = 100;
/// Dead letters must not be lost to a limit. No limit at all means 20 on RabbitMQ 4, and −1 loses messages before 4.
const UNLIMITED: i64 = 1_000_000_000;
/// The setting of a difference that is a missing entity.
const EXISTS: &str = "exists";
/// How many entities are declared at once.
const WIDTH: usize = 8;

/// What one polybus entity is made of.
pub(crate) struct Pieces {
    label: String,
    pub(crate) exchanges: Vec<(String, ExchangeKind, FieldTable)>,
    /// With the label of what they hold.
    pub(crate) queues: Vec<(String, String, FieldTable)>,
    pub(crate) bindings: Vec<Binding>,
    /// The bindings from the topic, which change with the types.
    subscribed: Option<Subscribed>,
    /// Of a source: its name, and whether it is ordered. The other form would stand beside it, with its messages.
    form: Option<(String, bool)>,
    /// Of an ordered source.
    partitions: Option<u16>,
    /// The delays to make queues for.
    retries: BTreeSet<Duration>,
}

/// A subscription's place behind its topic.
struct Subscribed {
    topic: String,
    to: String,
    to_exchange: bool,
    keys: Vec<String>,
}

fn text(table: &mut FieldTable, key: &str, value: &str) {
    table.insert(key.into(), AMQPValue::LongString(value.into()));
}

fn integer(table: &mut FieldTable, key: &str, value: i64) {
    table.insert(key.into(), AMQPValue::LongLongInt(value));
}

fn plain(from: &str, to: &str, key: &str) -> Binding {
    let (from, to, key) = (from.to_owned(), to.to_owned(), key.to_owned());
    Binding { from, to, to_exchange: false, key, arguments: FieldTable::default() }
}

/// A topic: its exchange, and what takes the messages that no subscription wants, so that a delayed one never lacks a route.
pub(crate) fn topic(entity: &Entity<Address>) -> Pieces {
    let (exchange, label) = (names::exchange(entity), entity.name.to_string());
    let unrouted = names::unrouted(&exchange);
    let (mut alternate, mut discard) = (FieldTable::default(), FieldTable::default());
    text(&mut alternate, "alternate-exchange", &unrouted);
    text(&mut discard, "x-queue-type", "classic");
    integer(&mut discard, "x-message-ttl", 0);
    Pieces {
        bindings: vec![plain(&unrouted, &unrouted, "")],
        queues: vec![(label.clone(), unrouted.clone(), discard)],
        exchanges: vec![
            (unrouted, ExchangeKind::Fanout, FieldTable::default()),
            (exchange, ExchangeKind::Topic, alternate),
        ],
        subscribed: None,
        form: None,
        partitions: None,
        retries: BTreeSet::new(),
        label,
    }
}

/// A queue or subscription with its dead letters.
pub(crate) fn source(entity: &Entity<Source>, options: &Resolved) -> Pieces {
    let (base, label) = (names::base(entity), entity.name.to_string());
    let dead = names::dead_letters(&base);
    let ordered = entity.settings.ordered;
    let mut letters = FieldTable::default();
    text(&mut letters, "x-queue-type", options.queue_type.as_str());
    let mut live = letters.clone();
    text(&mut live, "x-dead-letter-exchange", "");
    text(&mut live, "x-dead-letter-routing-key", &dead);
    if options.queue_type == QueueType::Quorum {
        integer(&mut letters, "x-delivery-limit", UNLIMITED);
        integer(&mut live, "x-delivery-limit", BACKSTOP);
        text(&mut live, "x-dead-letter-strategy", "at-least-once");
        text(&mut live, "x-overflow", "reject-publish");
    }
    if ordered {
        live.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
    }
    // An ordered source holds its retries in the client.
    let retries = match entity.settings.retry_named && !ordered {
        true => delay_queues::of_retries(&entity.settings.retry),
        false => BTreeSet::new(),
    };
    let mut pieces = Pieces {
        retries,
        queues: vec![(entity.name.dead_letters().to_string(), dead, letters)],
        exchanges: vec![],
        bindings: vec![],
        subscribed: None,
        form: Some((base.clone(), ordered)),
        partitions: ordered.then_some(options.partitions),
        label,
    };
    // The first partition comes last: where it is, all are, and somebody who looks meanwhile does not take some for all.
    for queue in names::queues(&base, ordered, options.partitions).into_iter().rev() {
        pieces.queues.push((pieces.label.clone(), queue, live.clone()));
    }
    if ordered {
        slots(&base, options.partitions, &mut pieces);
    }
    if let Some(topic) = &entity.parent {
        let (topic, keys) = (topic.to_string(), names::binding_keys(entity));
        let to_bindings = keys.iter().map(|key| Binding { to_exchange: ordered, ..plain(&topic, &base, key) });
        pieces.bindings.extend(to_bindings);
        pieces.subscribed = Some(Subscribed { topic, to: base, to_exchange: ordered, keys });
    }
    pieces
}

/// An ordered source: a headers exchange spreads the slots over the partitions; what has no slot goes to the first.
fn slots(base: &str, partitions: u16, pieces: &mut Pieces) {
    let unslotted = names::unslotted(base);
    let mut alternate = FieldTable::default();
    text(&mut alternate, "alternate-exchange", &unslotted);
    pieces.bindings.push(plain(&unslotted, &names::partition(base, 0), ""));
    pieces.exchanges.push((unslotted, ExchangeKind::Fanout, FieldTable::default()));
    pieces.exchanges.push((base.to_owned(), ExchangeKind::Headers, alternate));
    for slot in 0..SLOTS {
        let mut arguments = FieldTable::default();
        text(&mut arguments, "x-match", "all");
        text(&mut arguments, SLOT, &slot.to_string());
        let partition = names::partition(base, u16::from(slot) % partitions);
        pieces.bindings.push(Binding { arguments, ..plain(base, &partition, &slot.to_string()) });
    }
}

/// Creates or verifies a plan.
pub(crate) async fn declare(
    links: &Arc<Links>,
    rungs: &Rungs,
    plan: &DeclarePlan,
    mode: DeclareMode,
) -> Result<DeclareReport> {
    let mut report = DeclareReport::default();
    if mode == DeclareMode::Off {
        return Ok(report);
    }
    let topics: Vec<Pieces> = plan.topics.iter().map(topic).collect();
    let sources: Vec<Pieces> =
        plan.sources.iter().map(|s| Ok(source(s, &links.config.options(s)?))).collect::<Result<_>>()?;
    // Subscriptions bind to their topics, so these come first.
    for all in [topics, sources] {
        for some in all.chunks(WIDTH) {
            for one in join_all(some.iter().map(|pieces| entity(links, rungs, pieces, mode))).await {
                let one = one?;
                report.created.extend(one.created);
                report.differences.extend(one.differences);
                report.unchecked.extend(one.unchecked);
            }
        }
    }
    Ok(report)
}

async fn entity(links: &Arc<Links>, rungs: &Rungs, pieces: &Pieces, mode: DeclareMode) -> Result<DeclareReport> {
    let mut scratch = Scratch::new(links);
    let mut report = DeclareReport::default();
    let mut created = false;
    if let Some((base, ordered)) = &pieces.form {
        let other = match ordered {
            true => scratch.find_queue(base).await?.is_some(),
            false => scratch.find_exchange(base).await?,
        };
        if other {
            scratch.finish().await;
            report.differences.push(EntityDifference::new(&pieces.label, "ordered", ordered, !ordered));
            return Ok(report);
        }
    }
    // Bindings beside the old ones would lead half the keys to two queues for good.
    if let (Some((base, _)), Some(wanted)) = (&pieces.form, pieces.partitions)
        && let Some(found) = drift::partitions(&mut scratch, base).await?.filter(|found| *found != wanted)
    {
        scratch.finish().await;
        report.differences.push(EntityDifference::new(&pieces.label, "partitions", wanted, found));
        return Ok(report);
    }
    for (name, kind, arguments) in &pieces.exchanges {
        let absent = !scratch.find_exchange(name).await?;
        if absent {
            if mode == DeclareMode::Verify {
                report.differences.push(missing(&pieces.label, &format!("exchange {name}")));
                continue;
            }
            created = true;
        }
        let declared = scratch.declare_exchange(name, kind.clone(), arguments.clone()).await;
        note(&mut report, &pieces.label, &format!("exchange {name}"), absent, declared)?;
    }
    for (label, name, arguments) in &pieces.queues {
        let what = format!("queue {name}");
        let mut absent = false;
        let differences = match mode {
            DeclareMode::Verify => drift::compare(&mut scratch, label, name, arguments.clone())
                .await
                .map(|found| found.unwrap_or_else(|| vec![missing(label, &what)])),
            _ => {
                absent = scratch.find_queue(name).await?.is_none();
                created |= absent;
                drift::declare(&mut scratch, label, name, arguments.clone()).await
            }
        };
        let declared = differences.map(|differences| report.differences.extend(differences));
        note(&mut report, label, &what, absent, declared)?;
    }
    if mode == DeclareMode::Create {
        scratch.bind(&pieces.bindings).await?;
        delays(&mut scratch, rungs, pieces, &mut report).await?;
    }
    scratch.finish().await;
    let missing = report.differences.iter().any(|d| d.setting == EXISTS && d.entity == pieces.label);
    if let Some(subscribed) = pieces.subscribed.as_ref().filter(|_| !missing) {
        bindings(&links.config, links, &pieces.label, subscribed, mode, &mut report).await;
    }
    if created {
        report.created.push(pieces.label.clone());
    }
    // One word for each, and none for the dead letters of what is not there itself.
    let gone = |d: &EntityDifference| d.setting == EXISTS;
    if missing {
        report.differences.retain(|d| !gone(d) || d.entity == pieces.label);
    }
    let mut told = false;
    report.differences.retain(|d| !(gone(d) && std::mem::replace(&mut told, true)));
    Ok(report)
}

/// The delay queues of the retries that the topology names. A queue this old when its first message comes is one that the
/// broker has written down; see the README's limits.
async fn delays(scratch: &mut Scratch<'_>, rungs: &Rungs, pieces: &Pieces, report: &mut DeclareReport) -> Result<()> {
    let Some((base, _)) = &pieces.form else { return Ok(()) };
    let target = Target::Queue(base.clone());
    for delay in &pieces.retries {
        let made = rungs.make(scratch, &target, *delay).await;
        note(report, &pieces.label, &format!("delay queue of {delay:?}"), false, made)?;
    }
    Ok(())
}

/// AMQP itself tells nothing about bindings.
async fn bindings(
    config: &Config,
    links: &Links,
    label: &str,
    wanted: &Subscribed,
    mode: DeclareMode,
    report: &mut DeclareReport,
) {
    if config.management.is_none() {
        if mode == DeclareMode::Verify {
            report.unchecked.push(format!("{label}: its bindings (the bus URL names no management=)"));
        }
        return;
    }
    match http_api::bindings(links, &wanted.topic, &wanted.to, wanted.to_exchange).await {
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

fn missing(label: &str, what: &str) -> EntityDifference {
    EntityDifference::new(label, EXISTS, "yes", format!("no {what}"))
}

/// An entity that stands in another form is a difference, not an error; one that stands and may not be declared by this user
/// is just not checked.
fn note(report: &mut DeclareReport, label: &str, what: &str, absent: bool, declared: Result<()>) -> Result<()> {
    match declared {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => {
            report.differences.push(difference(label, &e));
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
pub(crate) fn difference(label: &str, e: &Error) -> EntityDifference {
    let told = e.message();
    let setting = told.split_once("arg '").and_then(|(_, rest)| rest.split_once('\''));
    let values = told.split_once("received ").and_then(|(_, rest)| rest.split_once(" but current is "));
    let (wanted, found) = values.unwrap_or(("another form", told));
    EntityDifference::new(label, setting.map_or("arguments", |(name, _)| name), value(wanted), value(found))
}

/// `the value '10' of type 'signedint'` and `'10'` are `10`.
fn value(told: &str) -> &str {
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
            let d = difference("queue:q", &error::new(ErrorKind::AlreadyExists, "declare", told));
            assert_eq!((&*d.setting, &*d.wanted, &*d.found), (setting, wanted, found));
        }
    }
}
