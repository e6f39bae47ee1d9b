//! Declaring and verifying entities by the administration API.

pub(crate) mod atom;
pub(crate) mod drift;
pub(crate) mod lock_length;
pub(crate) mod names;
pub(crate) mod sql_filter;
pub(crate) mod targeting;

use std::{collections::HashMap, sync::Mutex, time::Duration};

use futures_util::future::join_all;
use polybus_core::{
    Address, ErrorKind, Result, Source,
    driver::kit::duration,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, EntityDifference, TypeFilter},
};

use crate::{
    config::{self, Resolved},
    topology::{
        atom::{Description, Found, format_duration},
        lock_length::LockLength,
        names::Place,
    },
    transport::http::Http,
};

/// The broker's own limit is this much above core's: it only ends what no core sees.
const BACKSTOP: u32 = 5;
/// The setting of a difference that is a missing entity.
const EXISTS: &str = "exists";
/// How many entities are declared at once.
const WIDTH: usize = 8;
/// How often a creation is tried again that met another one, and how long between.
const AGAIN: (usize, Duration) = (20, Duration::from_millis(250));

/// How long the broker holds a delivery, by path, as far as was told.
#[derive(Default)]
pub(crate) struct Locks(Mutex<HashMap<String, Duration>>);

impl Locks {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<String, Duration>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn learn(&self, path: &str, found: &Found) {
        if let Some(lock) = found.duration("LockDuration") {
            self.table().insert(path.to_owned(), lock);
        }
    }

    /// The lock of a source as it is now. An operator may have changed it: neither the topology's word nor an earlier answer is
    /// enough.
    pub(crate) async fn of(&self, http: &Http, path: &str, wanted: Duration) -> (LockLength, Option<Found>) {
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

/// Creates or verifies a plan. With `companions`, each source has a queue beside it for dead letters.
pub(crate) async fn declare(
    http: &Http,
    locks: &Locks,
    plan: &DeclarePlan,
    mode: DeclareMode,
    companions: bool,
) -> Result<DeclareReport> {
    let mut report = DeclareReport::default();
    if mode == DeclareMode::Off {
        return Ok(report);
    }
    // Subscriptions need their topics.
    let mut done = Vec::new();
    for some in plan.topics.chunks(WIDTH) {
        done.extend(join_all(some.iter().map(|entity| topic(http, entity, mode))).await);
    }
    for some in plan.sources.chunks(WIDTH) {
        done.extend(join_all(some.iter().map(|entity| source(http, locks, entity, mode, companions))).await);
    }
    for one in done {
        let one = one?;
        report.created.extend(one.created);
        report.differences.extend(one.differences);
        report.unchecked.extend(one.unchecked);
    }
    Ok(report)
}

/// Deletes what `declare` makes. A topic takes its subscriptions along.
pub(crate) async fn delete(http: &Http, plan: &DeclarePlan) -> Result<()> {
    for source in &plan.sources {
        atom::delete(http, &Place::of(source).path()).await?;
    }
    for topic in &plan.topics {
        atom::delete(http, &names::address(topic)).await?;
    }
    Ok(())
}

/// Makes an entity that is missing, if so wanted, and tells what is there.
async fn ensure(http: &Http, path: &str, entity: &Description, mode: DeclareMode) -> Result<(Option<Found>, bool)> {
    let (tries, pause) = AGAIN;
    for attempt in 1.. {
        if let Some(found) = atom::get(http, path).await? {
            return Ok((Some(found), false));
        }
        if mode == DeclareMode::Verify {
            return Ok((None, false));
        }
        match atom::create(http, path, entity).await {
            Ok(true) => return Ok((atom::get(http, path).await?, true)),
            // Another process was quicker, and perhaps is not done yet.
            Ok(false) if attempt < tries => {}
            Ok(false) => break,
            Err(e) if e.kind() == ErrorKind::Unavailable && attempt < tries => {}
            Err(e) => return Err(e),
        }
        tokio::time::sleep(pause).await;
    }
    Ok((None, false))
}

fn detection(entity: Description, options: &Resolved) -> Description {
    match options.duplicate_detection {
        Some(_) => entity.with_element("RequiresDuplicateDetection", true),
        None => entity,
    }
}

fn window(entity: Description, options: &Resolved) -> Description {
    match options.duplicate_detection {
        Some(window) => entity.with_element("DuplicateDetectionHistoryTimeWindow", format_duration(window)),
        None => entity,
    }
}

async fn topic(http: &Http, entity: &Entity<Address>, mode: DeclareMode) -> Result<DeclareReport> {
    let options = config::options(entity)?;
    let wanted = window(detection(Description::new("TopicDescription"), &options), &options);
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

async fn source(
    http: &Http,
    locks: &Locks,
    entity: &Entity<Source>,
    mode: DeclareMode,
    companions: bool,
) -> Result<DeclareReport> {
    let options = config::options(entity)?;
    let (place, settings) = (Place::of(entity), &entity.settings);
    let path = place.path();
    let mut report = DeclareReport::default();
    if companions {
        companion(http, entity, mode, &mut report).await?;
    }
    let limit = settings.max_deliveries.saturating_add(BACKSTOP);
    let lock = format_duration(settings.lock);
    let wanted = match &place {
        Place::Queue(_) => window(
            detection(Description::new("QueueDescription").with_element("LockDuration", lock), &options)
                .with_element("RequiresSession", settings.ordered)
                .with_element("DeadLetteringOnMessageExpiration", settings.dead_letter_expired),
            &options,
        )
        .with_element("MaxDeliveryCount", limit),
        Place::Subscription { name, .. } => {
            let first = settings.types.first();
            Description::new("SubscriptionDescription")
                .with_element("LockDuration", lock)
                .with_element("RequiresSession", settings.ordered)
                .with_element("DeadLetteringOnMessageExpiration", settings.dead_letter_expired)
                .with_element("DeadLetteringOnFilterEvaluationExceptions", false)
                // Made with it, so that no message slips in before.
                .default_rule(&names::rule(first), &sql_filter::sql(name, first))
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
    // More than core needs is fine.
    let low = found.number("MaxDeliveryCount").filter(|found| *found <= u64::from(settings.max_deliveries));
    differs("max_deliveries", settings.max_deliveries.to_string(), low.map(|low| format!("MaxDeliveryCount {low}")));
    match &place {
        Place::Queue(_) => compare_detection(&mut report, &label, &options, &found),
        Place::Subscription { name, .. } => {
            rules(http, &path, name, (&settings.types, options.structured_events), &label, mode, &mut report).await?
        }
    }
    Ok(report)
}

/// The queue for dead letters. It never gives up on one.
async fn companion(http: &Http, of: &Entity<Source>, mode: DeclareMode, report: &mut DeclareReport) -> Result<()> {
    let path = Place::of(of).companion().path();
    let wanted = Description::new("QueueDescription")
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

/// Adds the rules that are missing, and tells those that are too many.
async fn rules(
    http: &Http,
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
        wanted.push(WantedRule { rule: names::COPIES.into(), sql: sql_filter::copies(name), told: "copies".into() });
        if structured {
            let (rule, sql) = (names::STRUCTURED.into(), sql_filter::structured());
            wanted.push(WantedRule { rule, sql, told: "structured events".into() });
        }
    }
    let found = atom::list(http, &format!("{path}/Rules")).await?.unwrap_or_default();
    for WantedRule { rule, sql, told } in &wanted {
        match found.iter().find(|found| found.name == *rule) {
            Some(found) => {
                if let Some(other) = found.text("SqlExpression").filter(|other| other != sql) {
                    report.differences.push(EntityDifference::new(label, format!("rule {rule}"), sql, other));
                }
            }
            None if mode == DeclareMode::Create => {
                atom::create(http, &format!("{path}/Rules/{rule}"), &atom::rule(rule, sql)).await?;
            }
            None => report.differences.push(EntityDifference::new(label, "types", told, "none")),
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
    /// What a report calls it.
    told: String,
}

impl WantedRule {
    fn of(subscription: &str, filter: Option<&TypeFilter>) -> Self {
        let told = filter.map_or_else(|| "all".to_owned(), ToString::to_string);
        Self { rule: names::rule(filter), sql: sql_filter::sql(subscription, filter), told }
    }
}

fn compare_detection(report: &mut DeclareReport, label: &str, options: &Resolved, found: &Found) {
    let (wanted, there) = (options.duplicate_detection.is_some(), found.flag("RequiresDuplicateDetection"));
    if let Some(there) = there.filter(|there| *there != wanted) {
        report.differences.push(EntityDifference::new(label, "options.servicebus.duplicate_detection", wanted, there));
    }
}

fn missing(label: &str, path: &str) -> EntityDifference {
    EntityDifference::new(label, EXISTS, "yes", format!("no {path}"))
}
