//! Entities: their names, and declaring and verifying them by the administration API ([`atom`]).
//!
//! [`names`] maps addresses and sources to paths, and type filters to rules, whose SQL is in [`sql_filter`].
//! [`targeting`] tells whether a copy on a topic can be meant for one subscription. [`lock_length`] and [`drift`] look
//! at entities that others may have made.

pub(crate) mod atom;
pub(crate) mod drift;
pub(crate) mod lock_length;
pub(crate) mod names;
pub(crate) mod sql_filter;
pub(crate) mod targeting;

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;

use futures_util::future::join_all;
use polybus_core::{
    Address, ErrorKind, Result, Source,
    driver::kit::duration,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, EntityDifference, TypeFilter},
};

use crate::{
    config::{self, ResolvedOptions},
    topology::{
        atom::{EntityInfo, NewEntity, format_duration},
        lock_length::LockLength,
        names::EntityPath,
    },
    transport::http::HttpPool,
};

/// How far the broker's own limit of deliveries is above core's: it only ends messages that core never sees.
const DELIVERY_COUNT_MARGIN: u32 = 5;
/// The setting that a report names where an entity is missing.
const EXISTS: &str = "exists";
/// How many entities are declared at once.
const CONCURRENT_DECLARATIONS: usize = 8;
/// How often a creation is tried again that has met another one, and the pause between.
const CREATE_RETRIES: (usize, Duration) = (20, Duration::from_millis(250));

/// The lock durations of entities by path, as far as the broker has told them.
#[derive(Default)]
pub(crate) struct KnownLocks(Mutex<HashMap<String, Duration>>);

impl KnownLocks {
    fn table(&self) -> parking_lot::MutexGuard<'_, HashMap<String, Duration>> {
        self.0.lock()
    }

    fn learn(&self, path: &str, found: &EntityInfo) {
        if let Some(lock) = found.duration("LockDuration") {
            self.table().insert(path.to_owned(), lock);
        }
    }

    /// The lock length of a source as it is now, and the entity. An operator may have changed it, so neither the
    /// topology nor an earlier answer is enough.
    pub(crate) async fn of(&self, http: &HttpPool, path: &str, wanted: Duration) -> (LockLength, Option<EntityInfo>) {
        let found = match atom::get(http, path).await {
            Ok(found) => found,
            Err(e) => {
                tracing::debug!(path, error = %e, "the lock duration is not told; taking what was known");
                None
            }
        };
        if let Some(found) = &found {
            self.learn(path, found);
        }
        let known = self.table().get(path).copied();
        (LockLength::new(known.unwrap_or(wanted), known.is_some(), http.clock.ahead()), found)
    }
}

/// Creates or verifies a plan. With `companions`, each source gets a queue beside it for dead letters.
pub(crate) async fn declare(
    http: &HttpPool,
    locks: &KnownLocks,
    plan: &DeclarePlan,
    mode: DeclareMode,
    companions: bool,
) -> Result<DeclareReport> {
    let mut report = DeclareReport::default();
    if mode == DeclareMode::Off {
        return Ok(report);
    }
    // Topics come before sources: a subscription needs its topic.
    let mut done = Vec::new();
    for some in plan.topics.chunks(CONCURRENT_DECLARATIONS) {
        done.extend(join_all(some.iter().map(|entity| declare_topic(http, entity, mode))).await);
    }
    for some in plan.sources.chunks(CONCURRENT_DECLARATIONS) {
        done.extend(join_all(some.iter().map(|entity| declare_source(http, locks, entity, mode, companions))).await);
    }
    for one in done {
        let one = one?;
        report.created.extend(one.created);
        report.differences.extend(one.differences);
        report.unchecked.extend(one.unchecked);
    }
    Ok(report)
}

/// Deletes the entities of a plan. Deleting a topic deletes its subscriptions.
pub(crate) async fn delete(http: &HttpPool, plan: &DeclarePlan) -> Result<()> {
    for source in &plan.sources {
        atom::delete(http, &EntityPath::of(source).path()).await?;
    }
    for topic in &plan.topics {
        atom::delete(http, &names::address(topic)).await?;
    }
    Ok(())
}

/// Creates an entity if it is missing and `mode` allows. Returns the entity, and whether it was created.
async fn ensure(http: &HttpPool, path: &str, new: &NewEntity, mode: DeclareMode) -> Result<(Option<EntityInfo>, bool)> {
    let (tries, pause) = CREATE_RETRIES;
    for attempt in 1.. {
        if let Some(found) = atom::get(http, path).await? {
            return Ok((Some(found), false));
        }
        if mode == DeclareMode::Verify {
            return Ok((None, false));
        }
        match atom::create(http, path, new).await {
            Ok(true) => return Ok((atom::get(http, path).await?, true)),
            // Another process was faster, and may not be done yet.
            Ok(false) if attempt < tries => {}
            Ok(false) => break,
            Err(e) if e.kind() == ErrorKind::Unavailable && attempt < tries => {}
            Err(e) => return Err(e),
        }
        tokio::time::sleep(pause).await;
    }
    Ok((None, false))
}

fn with_detection(entity: NewEntity, options: &ResolvedOptions) -> NewEntity {
    match options.duplicate_detection {
        Some(_) => entity.with_element("RequiresDuplicateDetection", true),
        None => entity,
    }
}

fn with_window(entity: NewEntity, options: &ResolvedOptions) -> NewEntity {
    match options.duplicate_detection {
        Some(window) => entity.with_element("DuplicateDetectionHistoryTimeWindow", format_duration(window)),
        None => entity,
    }
}

async fn declare_topic(http: &HttpPool, entity: &Entity<Address>, mode: DeclareMode) -> Result<DeclareReport> {
    let options = config::options(entity)?;
    let wanted = with_window(with_detection(NewEntity::new("TopicDescription"), &options), &options);
    let path = names::address(entity);
    let mut report = DeclareReport::default();
    let (found, created) = ensure(http, &path, &wanted, mode).await?;
    let label = entity.name.to_string();
    if created {
        report.created.push(label.clone());
    }
    match found {
        None => report.differences.push(missing(&label, &path)),
        Some(found) => compare_detection(&mut report, &label, &options, &found),
    }
    Ok(report)
}

async fn declare_source(
    http: &HttpPool,
    locks: &KnownLocks,
    entity: &Entity<Source>,
    mode: DeclareMode,
    companions: bool,
) -> Result<DeclareReport> {
    let options = config::options(entity)?;
    let (place, settings) = (EntityPath::of(entity), &entity.settings);
    let path = place.path();
    let mut report = DeclareReport::default();
    if companions {
        companion(http, entity, mode, &mut report).await?;
    }
    let limit = settings.max_deliveries.saturating_add(DELIVERY_COUNT_MARGIN);
    let lock = format_duration(settings.lock);
    let wanted = match &place {
        EntityPath::Queue(_) => with_window(
            with_detection(NewEntity::new("QueueDescription").with_element("LockDuration", lock), &options)
                .with_element("RequiresSession", settings.ordered)
                .with_element("DeadLetteringOnMessageExpiration", settings.dead_letter_expired),
            &options,
        )
        .with_element("MaxDeliveryCount", limit),
        EntityPath::Subscription { name, .. } => {
            let first = settings.types.first();
            NewEntity::new("SubscriptionDescription")
                .with_element("LockDuration", lock)
                .with_element("RequiresSession", settings.ordered)
                .with_element("DeadLetteringOnMessageExpiration", settings.dead_letter_expired)
                .with_element("DeadLetteringOnFilterEvaluationExceptions", false)
                // The rule is created with the subscription, so that no message passes before.
                .default_rule(&names::rule(first), &sql_filter::type_rule(name, first))
                .with_element("MaxDeliveryCount", limit)
        }
    };
    let (found, created) = ensure(http, &path, &wanted, mode).await?;
    let label = entity.name.to_string();
    if created {
        report.created.push(label.clone());
    }
    let Some(found) = found else {
        report.differences.push(missing(&label, &path));
        return Ok(report);
    };
    locks.learn(&path, &found);
    let mut differs = |setting: &str, wanted: String, found: Option<String>| {
        if let Some(found) = found.filter(|found| *found != wanted) {
            report.differences.push(EntityDifference::new(&label, setting, wanted, found));
        }
    };
    differs("ordered", settings.ordered.to_string(), found.flag("RequiresSession").map(|f| f.to_string()));
    differs("lock", duration::format(settings.lock), found.duration("LockDuration").map(duration::format));
    differs(
        "dead_letter_expired",
        settings.dead_letter_expired.to_string(),
        found.flag("DeadLetteringOnMessageExpiration").map(|f| f.to_string()),
    );
    // A limit above what core needs is no difference.
    let low = found.number("MaxDeliveryCount").filter(|found| *found <= u64::from(settings.max_deliveries));
    differs("max_deliveries", settings.max_deliveries.to_string(), low.map(|low| format!("MaxDeliveryCount {low}")));
    match &place {
        EntityPath::Queue(_) => compare_detection(&mut report, &label, &options, &found),
        EntityPath::Subscription { name, .. } => {
            add_rules(http, &path, name, (&settings.types, options.structured_events), &label, mode, &mut report)
                .await?
        }
    }
    Ok(report)
}

/// Declares the queue for dead letters beside a source. The broker never gives up on a message in it.
async fn companion(http: &HttpPool, of: &Entity<Source>, mode: DeclareMode, report: &mut DeclareReport) -> Result<()> {
    let path = EntityPath::of(of).companion().path();
    let wanted = NewEntity::new("QueueDescription")
        .with_element("LockDuration", format_duration(of.settings.lock))
        .with_element("RequiresSession", false)
        .with_element("MaxDeliveryCount", i32::MAX);
    let (found, _) = ensure(http, &path, &wanted, mode).await?;
    let label = of.name.dead_letters().to_string();
    match found {
        None => report.differences.push(missing(&label, &path)),
        Some(found) => {
            let low = found.number("MaxDeliveryCount").filter(|found| *found < i32::MAX as u64);
            if let Some(low) = low {
                report.differences.push(EntityDifference::new(&label, "MaxDeliveryCount", i32::MAX, low));
            }
        }
    }
    Ok(())
}

/// Adds the rules that are missing, and reports those that should not be there.
async fn add_rules(
    http: &HttpPool,
    path: &str,
    name: &str,
    (types, structured): (&[TypeFilter], bool),
    label: &str,
    mode: DeclareMode,
    report: &mut DeclareReport,
) -> Result<()> {
    let mut wanted: Vec<WantedRule> = match types {
        [] => vec![WantedRule::of(name, None)],
        types => types.iter().map(|filter| WantedRule::of(name, Some(filter))).collect(),
    };
    if !types.is_empty() {
        let (rule, sql) = (names::COPIES_RULE.into(), sql_filter::copies_rule(name));
        wanted.push(WantedRule { rule, sql, shown_as: "copies".into() });
        if structured {
            let (rule, sql) = (names::STRUCTURED_RULE.into(), sql_filter::structured_rule());
            wanted.push(WantedRule { rule, sql, shown_as: "structured events".into() });
        }
    }
    let found = atom::list(http, &format!("{path}/Rules")).await?.unwrap_or_default();
    for WantedRule { rule, sql, shown_as } in &wanted {
        match found.iter().find(|found| found.name == *rule) {
            Some(found) => {
                if let Some(other) = found.text("SqlExpression").filter(|other| other != sql) {
                    report.differences.push(EntityDifference::new(label, format!("rule {rule}"), sql, other));
                }
            }
            None if mode == DeclareMode::Create => {
                atom::create(http, &format!("{path}/Rules/{rule}"), &atom::rule(rule, sql)).await?;
            }
            None => report.differences.push(EntityDifference::new(label, "types", shown_as, "none")),
        }
    }
    for found in &found {
        if !wanted.iter().any(|wanted| wanted.rule == found.name) {
            report.differences.push(EntityDifference::new(label, "types", "none", &found.name));
        }
    }
    Ok(())
}

/// A rule of a subscription.
struct WantedRule {
    rule: String,
    sql: String,
    /// How a report names it.
    shown_as: String,
}

impl WantedRule {
    fn of(subscription: &str, filter: Option<&TypeFilter>) -> Self {
        let shown_as = filter.map_or_else(|| "all".to_owned(), ToString::to_string);
        Self { rule: names::rule(filter), sql: sql_filter::type_rule(subscription, filter), shown_as }
    }
}

fn compare_detection(report: &mut DeclareReport, label: &str, options: &ResolvedOptions, found: &EntityInfo) {
    let (wanted, there) = (options.duplicate_detection.is_some(), found.flag("RequiresDuplicateDetection"));
    if let Some(there) = there.filter(|there| *there != wanted) {
        report.differences.push(EntityDifference::new(label, "options.servicebus.duplicate_detection", wanted, there));
    }
}

fn missing(label: &str, path: &str) -> EntityDifference {
    EntityDifference::new(label, EXISTS, "yes", format!("no {path}"))
}
