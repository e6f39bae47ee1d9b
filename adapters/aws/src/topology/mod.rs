//! Declaring and verifying queues, topics and subscriptions.
//!
//! A queue is an SQS queue and one for its dead letters. A subscription is the same two queues, with a policy that
//! admits the topic, and a subscription at SNS. `queues` and `topics` make the calls, `policy` writes and reads AWS'
//! JSON documents, `drift` compares what exists with what `declare` would create, `names` has the physical names.

pub(crate) mod drift;
pub(crate) mod names;
pub(crate) mod policy;
pub(crate) mod queues;
pub(crate) mod topics;

use std::collections::{BTreeSet, HashMap};

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use futures_util::future::join_all;
use polybus_core::{
    Address, ErrorKind, Result, Source,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, EntityDifference},
};

use crate::{
    message::limits::{BACKSTOP, MAX_RECEIVES},
    topology::{policy::FilterPolicy, queues::QueueAttributes, topics::SubscriptionLists},
    transport::clients::AwsClients,
};

/// How many entities are declared at once.
const CONCURRENT: usize = 8;
/// The setting that a difference names where the entity itself is missing.
const EXISTS: &str = "exists";

/// The `maxReceiveCount` of a source's queue. It is above core's limit, so it only moves messages that no consumer of
/// polybus ends. On FIFO queues it is far above, since messages that are kept back for their key cost receives too.
fn backstop(max_deliveries: u32, ordered: bool) -> u32 {
    let limit = match ordered {
        true => max_deliveries.saturating_mul(10).max(100),
        false => max_deliveries.saturating_add(BACKSTOP),
    };
    limit.min(MAX_RECEIVES)
}

/// Creates or verifies a plan.
pub(crate) async fn declare(clients: &AwsClients, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport> {
    let mut report = DeclareReport::default();
    if mode == DeclareMode::Off {
        return Ok(report);
    }
    let mut add = |all: Vec<Result<DeclareReport>>| -> Result<()> {
        for one in all {
            let one = one?;
            report.created.extend(one.created);
            report.differences.extend(one.differences);
            report.unchecked.extend(one.unchecked);
        }
        Ok(())
    };
    // Subscriptions need their topics, so these come first.
    for chunk in plan.topics.chunks(CONCURRENT) {
        add(join_all(chunk.iter().map(|t| topic(clients, t, mode))).await)?;
    }
    let lists = SubscriptionLists::default();
    for chunk in plan.sources.chunks(CONCURRENT) {
        add(join_all(chunk.iter().map(|s| Box::pin(source(clients, &lists, s, mode)))).await)?;
    }
    Ok(report)
}

fn missing(label: impl ToString, what: &str) -> EntityDifference {
    EntityDifference::new(label, EXISTS, "yes", format!("no {what}"))
}

async fn topic(clients: &AwsClients, entity: &Entity<Address>, mode: DeclareMode) -> Result<DeclareReport> {
    let mut report = DeclareReport::default();
    let ordered = entity.settings.ordered;
    let name = names::topic(entity);
    if !entity.fixed {
        let other = names::topic(&toggled(entity));
        if topics::find(clients, &clients.topic_arn(&other).await?).await?.is_some() {
            report.differences.push(EntityDifference::new(&entity.name, "ordered", ordered, !ordered));
            return Ok(report);
        }
    }
    let options = clients.config.options(entity)?;
    let arn = clients.topic_arn(&name).await?;
    if let Some(found) = topics::find(clients, &arn).await? {
        drift::of_topic(entity, &found, &options, &mut report);
        if !options.tags.is_empty() {
            drift::tags(&entity.name, &options.tags, topics::tags(clients, &arn).await, &mut report)?;
        }
        return Ok(report);
    }
    if mode == DeclareMode::Verify {
        report.differences.push(missing(&entity.name, &format!("topic {name}")));
        return Ok(report);
    }
    topics::create(clients, &name, ordered, &options).await.map_err(|e| e.with_context("entity", &entity.name))?;
    report.created.push(entity.name.to_string());
    Ok(report)
}

/// The entity with the other setting of `ordered`. It has another physical name, so it may exist beside this one, with
/// messages of its own.
fn toggled<T: Clone>(entity: &Entity<T>) -> Entity<T> {
    let mut other = entity.clone();
    other.settings.ordered = !entity.settings.ordered;
    other
}

async fn source(
    clients: &AwsClients,
    lists: &SubscriptionLists,
    entity: &Entity<Source>,
    mode: DeclareMode,
) -> Result<DeclareReport> {
    let declared = Box::pin(declare_source(clients, lists, entity, mode)).await;
    declared.map_err(|e| e.with_context("entity", &entity.name))
}

async fn declare_source(
    clients: &AwsClients,
    lists: &SubscriptionLists,
    entity: &Entity<Source>,
    mode: DeclareMode,
) -> Result<DeclareReport> {
    let mut report = DeclareReport::default();
    let ordered = entity.settings.ordered;
    let options = clients.config.options(entity)?;
    if !entity.fixed && queues::find(clients, &names::queue(&toggled(entity)), "declare").await?.is_some() {
        report.differences.push(EntityDifference::new(&entity.name, "ordered", ordered, !ordered));
        return Ok(report);
    }
    let (live, dead) = (names::queue(entity), names::dead_letters(entity));
    let (found, letters) =
        (queues::find(clients, &live, "declare").await?, queues::find(clients, &dead, "declare").await?);
    if mode == DeclareMode::Verify {
        match (&found, &letters) {
            (None, _) => report.differences.push(missing(&entity.name, &format!("queue {live}"))),
            (_, None) => report.differences.push(missing(entity.name.dead_letters(), &format!("queue {dead}"))),
            _ => {}
        }
    }
    if !options.tags.is_empty() {
        for (label, queue, _) in [(&entity.name, &live, &found), (&entity.name.dead_letters(), &dead, &letters)]
            .into_iter()
            .filter(|(.., found)| found.is_some())
        {
            drift::tags(label, &options.tags, queues::tags(clients, queue).await, &mut report)?;
        }
    }
    let topic_arn = match names::parent(entity) {
        Some(topic) => Some(clients.topic_arn(&topic).await?),
        None => None,
    };
    // A new queue has its policy from the start. One that is set later takes up to a minute to be seen everywhere, and
    // SNS discards what a queue refuses meanwhile.
    // https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html
    let attributes_of = async |queue: &str| -> Result<HashMap<Attribute, String>> {
        let mut attributes = queues::attributes(ordered, clients.config.queue_bytes(), &options);
        if let Some(topic_arn) = &topic_arn {
            let queue_arn = names::arn("sqs", &clients.region, clients.account().await?, queue);
            attributes.insert(Attribute::Policy, policy::admit(None, &queue_arn, topic_arn));
        }
        Ok(attributes)
    };
    let mut created = false;
    let letters = match letters {
        None if mode == DeclareMode::Create => {
            created = true;
            Some(queues::create(clients, &dead, attributes_of(&dead).await?, &options).await?)
        }
        letters => letters,
    };
    let found = match (found, &letters) {
        (None, Some(letters)) if mode == DeclareMode::Create => {
            created = true;
            let mut attributes = attributes_of(&live).await?;
            let limit = backstop(entity.settings.max_deliveries, ordered);
            attributes.insert(Attribute::RedrivePolicy, policy::redrive(letters.arn(), limit));
            Some(queues::create(clients, &live, attributes, &options).await?)
        }
        (found, _) => found,
    };
    if let Some(letters) = &letters {
        drift::of_dead_letters(clients, entity, letters, &options, &mut report);
    }
    if let Some(found) = &found {
        drift::of_queue(clients, entity, found, letters.as_ref(), &options, &mut report);
        if let Some(arn) = &topic_arn {
            let found =
                SubscribedQueue { clients, lists, entity, topic_arn: arn, queue: found, letters: letters.as_ref() };
            created |= Box::pin(found.subscription(mode, &mut report)).await?;
        }
    }
    if created {
        report.created.push(entity.name.to_string());
    }
    Ok(report)
}

/// The queues of a subscription, and the topic that they belong to.
struct SubscribedQueue<'a> {
    clients: &'a AwsClients,
    lists: &'a SubscriptionLists,
    entity: &'a Entity<Source>,
    topic_arn: &'a str,
    queue: &'a QueueAttributes,
    letters: Option<&'a QueueAttributes>,
}

impl SubscribedQueue<'_> {
    /// Subscribes the queue to its topic and widens policy and filter as needed, or reports what differs. True if it
    /// was not subscribed before.
    async fn subscription(&self, mode: DeclareMode, report: &mut DeclareReport) -> Result<bool> {
        let Self { clients, entity, topic_arn, queue, .. } = *self;
        let create = mode == DeclareMode::Create;
        let names = [names::queue(entity), names::dead_letters(entity)];
        let labels = [entity.name.clone(), entity.name.dead_letters()];
        for ((found, name), label) in [Some(queue), self.letters].into_iter().zip(&names).zip(&labels) {
            if let Some(found) = found {
                self.admit(found, name, label, create, report).await?;
            }
        }
        let letters_arn = self.letters.map_or("", QueueAttributes::arn);
        let wanted = policy::types(&entity.settings.types);
        let mut subscribed = self.lists.subscription(clients, topic_arn, queue.arn()).await?;
        let new = subscribed.is_none();
        if new {
            if !create {
                report.differences.push(EntityDifference::new(&entity.name, "subscribed to", topic_arn, "none"));
                return Ok(false);
            }
            let filter = policy::filter(wanted.iter().map(|t| &**t));
            match topics::subscribe(clients, topic_arn, queue.arn(), letters_arn, &filter).await {
                Ok(()) => {
                    topics::keep_one(clients, topic_arn, queue.arn()).await?;
                    return Ok(true);
                }
                // Another process was faster, with other types.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    subscribed = topics::subscription(clients, topic_arn, queue.arn()).await?
                }
                Err(e) => return Err(e),
            }
        }
        let Some(subscribed) = subscribed else { return Ok(new) };
        drift::of_subscription(entity, &subscribed, report);
        match &subscribed.dead_letters {
            Some(there) if there == letters_arn => {}
            None if create => topics::keep_refused(clients, &subscribed, letters_arn).await?,
            there => {
                let there = there.as_deref().unwrap_or("none");
                report.differences.push(EntityDifference::new(&entity.name, "kept when refused", letters_arn, there));
            }
        }
        if subscribed.filters_bodies {
            return Ok(new);
        }
        let found = policy::read_filter(subscribed.filter.as_deref());
        if create && let Some(wider) = wider(&wanted, &found) {
            topics::widen(clients, &subscribed, &policy::filter(wider.iter().map(|t| &**t))).await?;
        } else {
            drift::types_missing(entity, &wanted, &found, report);
        }
        drift::types_left(entity, &wanted, &found, report);
        Ok(new)
    }

    /// Lets the topic send to this queue if it may not yet, or reports that it may not.
    async fn admit(
        &self,
        queue: &QueueAttributes,
        name: &str,
        label: &Source,
        create: bool,
        report: &mut DeclareReport,
    ) -> Result<()> {
        let admission = queue.get(&Attribute::Policy);
        if policy::admits(admission, self.topic_arn) {
            return Ok(());
        }
        if create {
            let wider = policy::admit(admission, queue.arn(), self.topic_arn);
            return queues::set(self.clients, name, Attribute::Policy, wider).await;
        }
        report.differences.push(EntityDifference::new(
            label,
            "policy",
            format!("admits {}", self.topic_arn),
            "does not",
        ));
        Ok(())
    }
}

/// The types that the filter must let through, if it keeps out some that are wanted. An empty set means all types.
fn wider(wanted: &BTreeSet<String>, found: &FilterPolicy) -> Option<BTreeSet<String>> {
    match found {
        FilterPolicy::Types(found) if wanted.is_empty() && !found.is_empty() => Some(BTreeSet::new()),
        FilterPolicy::Types(found) if !wanted.is_subset(found) => Some(wanted.union(found).cloned().collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(types: &[&str]) -> BTreeSet<String> {
        types.iter().map(|t| (*t).to_owned()).collect()
    }

    #[test]
    fn the_backstop_stays_above_core() {
        assert_eq!([backstop(5, false), backstop(5, true), backstop(50, true)], [10, 100, 500]);
        assert_eq!([backstop(995, false), backstop(200, true)], [1000, 1000]);
    }

    #[test]
    fn types_are_added_and_never_taken() {
        let types = |all: &[&str]| FilterPolicy::Types(set(all));
        assert_eq!(wider(&set(&["a", "b"]), &types(&["a", "c"])), Some(set(&["a", "b", "c"])));
        assert_eq!(wider(&set(&["a"]), &types(&["a", "c"])), None);
        assert_eq!(wider(&set(&[]), &types(&["a"])), Some(set(&[])));
        assert_eq!(wider(&set(&["a"]), &FilterPolicy::All), None);
        assert_eq!(wider(&set(&["a"]), &FilterPolicy::Other), None);
    }
}
