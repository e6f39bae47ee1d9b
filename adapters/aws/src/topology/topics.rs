//! Topics at SNS and their subscriptions: the calls that find, create, change and delete them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;

use aws_sdk_sns::{operation::list_subscriptions_by_topic::ListSubscriptionsByTopicOutput, types::Subscription};
use polybus_core::{Error, ErrorKind, Result};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    config::EntityOptions,
    topology::policy,
    transport::{
        clients::{AwsClients, none_if_missing},
        emulator_info,
    },
};

/// Attributes of topics.
pub(crate) const FIFO: &str = "FifoTopic";
pub(crate) const KMS_KEY: &str = "KmsMasterKeyId";
/// An attribute of subscriptions.
const REDRIVE: &str = "RedrivePolicy";

/// How long to wait before a throttled list is asked again: first this, then twice as long each time. In all 13 s at
/// most.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_millis(6400);

/// An existing subscription.
pub(crate) struct TopicSubscription {
    arn: String,
    pub(crate) raw: bool,
    pub(crate) filter: Option<String>,
    /// The filter looks into bodies instead of attributes.
    pub(crate) filters_bodies: bool,
    /// The ARN of the queue that gets what the subscribed queue refuses.
    pub(crate) dead_letters: Option<String>,
}

/// The ARNs of subscriptions by the ARN of their queue.
type SubscriptionArns = HashMap<String, String>;

/// The subscriptions of each topic. They are listed once for all sources of a topic, since SNS answers 30 such calls a
/// second for the whole account.
/// <https://docs.aws.amazon.com/sns/latest/api/API_ListSubscriptionsByTopic.html>
#[derive(Default)]
pub(crate) struct SubscriptionLists(Mutex<HashMap<String, Arc<OnceCell<SubscriptionArns>>>>);

impl SubscriptionLists {
    /// The subscription of this queue, or `None`. A missing topic has none either.
    pub(crate) async fn subscription(
        &self,
        clients: &AwsClients,
        topic_arn: &str,
        queue_arn: &str,
    ) -> Result<Option<TopicSubscription>> {
        let cell = self.0.lock().entry(topic_arn.to_owned()).or_default().clone();
        let listed = cell
            .get_or_try_init(|| async { Ok::<_, Error>(list(clients, topic_arn).await?.into_iter().collect()) })
            .await?;
        match listed.get(queue_arn) {
            Some(arn) => described(clients, topic_arn, arn).await,
            None => Ok(None),
        }
    }
}

/// The topic's attributes, or `None` if there is no such topic.
pub(crate) async fn find(clients: &AwsClients, arn: &str) -> Result<Option<HashMap<String, String>>> {
    let output = Box::pin(clients.sns.get_topic_attributes().topic_arn(arn).send()).await;
    let output = none_if_missing(output.map_err(|e| clients.entity_error(e, "declare", ("topic", arn))))?;
    Ok(output.map(|output| output.attributes.unwrap_or_default()))
}

/// The attributes of a new topic.
pub(crate) fn attributes(ordered: bool, options: &EntityOptions) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if ordered {
        // As for queues: <https://docs.aws.amazon.com/sns/latest/dg/fifo-high-throughput.html>
        all.extend([(FIFO, "true".to_owned()), ("FifoThroughputScope", "MessageGroup".to_owned())]);
    }
    all.extend(options.kms_key.clone().map(|key| (KMS_KEY, key)));
    all
}

/// Creates the topic. It is fine if another process does so at the same time.
pub(crate) async fn create(clients: &AwsClients, name: &str, ordered: bool, options: &EntityOptions) -> Result<()> {
    let attributes = attributes(ordered, options).into_iter().map(|(name, value)| (name.to_owned(), value));
    let mut call = clients.sns.create_topic().name(name).set_attributes(Some(attributes.collect()));
    for (key, value) in &options.tags {
        let tag = aws_sdk_sns::types::Tag::builder().key(key).value(value).build();
        call = call.tags(tag.map_err(|e| crate::error::new(ErrorKind::InvalidArgument, "declare", e.to_string()))?);
    }
    let output = Box::pin(call.send()).await.map_err(|e| clients.entity_error(e, "declare", ("topic", name)))?;
    clients.note_created(output.topic_arn().unwrap_or_default());
    Ok(())
}

/// The tags of a topic.
pub(crate) async fn tags(clients: &AwsClients, arn: &str) -> Result<HashMap<String, String>> {
    let output = Box::pin(clients.sns.list_tags_for_resource().resource_arn(arn).send()).await;
    let tags = output.map_err(|e| clients.entity_error(e, "declare", ("topic", arn)))?.tags.unwrap_or_default();
    Ok(tags.into_iter().map(|tag| (tag.key, tag.value)).collect())
}

/// Deletes the topic with its subscriptions. A missing one is fine.
pub(crate) async fn delete(clients: &AwsClients, arn: &str) -> Result<()> {
    clients.note_deleted(arn);
    let deleted = Box::pin(clients.sns.delete_topic().topic_arn(arn).send()).await;
    none_if_missing(deleted.map_err(|e| clients.entity_error(e, "delete", ("topic", arn)))).map(drop)
}

/// The ARNs of queue and subscription of all subscriptions of a topic, in SNS' order. A missing topic has none.
async fn list(clients: &AwsClients, topic_arn: &str) -> Result<Vec<(String, String)>> {
    let (mut all, mut next): (Vec<(String, String)>, Option<String>) = (Vec::new(), None);
    loop {
        let page = none_if_missing(page(clients, topic_arn, next.take()).await)?;
        let Some(page) = page else { return Ok(Vec::new()) };
        all.extend(page.subscriptions().iter().filter_map(arns).map(|(q, arn)| (q.to_owned(), arn.to_owned())));
        match page.next_token() {
            Some(token) if !token.is_empty() => next = Some(token.to_owned()),
            _ => return Ok(all),
        }
    }
}

/// One page of up to 100 subscriptions. Waits while SNS throttles: a fleet that starts at once is throttled here first,
/// and core would repeat the whole declare.
async fn page(clients: &AwsClients, topic_arn: &str, next: Option<String>) -> Result<ListSubscriptionsByTopicOutput> {
    let mut wait = FIRST_WAIT;
    loop {
        let call = clients.sns.list_subscriptions_by_topic().topic_arn(topic_arn).set_next_token(next.clone());
        let e = match Box::pin(call.send()).await {
            Ok(page) => return Ok(page),
            Err(e) => clients.entity_error(e, "declare", ("topic", topic_arn)),
        };
        if e.kind() != ErrorKind::Throttled || wait > LAST_WAIT {
            return Err(e);
        }
        // The second half of the wait is random, so that processes that were throttled together do not come back
        // together.
        let spread = u32::from(Uuid::now_v7().as_bytes()[15]);
        tokio::time::sleep(wait / 2 + wait / 2 * spread / 256).await;
        wait *= 2;
    }
}

/// The subscription of this queue as it is now, from a list of its own.
pub(crate) async fn subscription(
    clients: &AwsClients,
    topic_arn: &str,
    queue_arn: &str,
) -> Result<Option<TopicSubscription>> {
    let listed = list(clients, topic_arn).await?;
    match listed.iter().find(|(queue, _)| queue == queue_arn) {
        Some((_, arn)) => described(clients, topic_arn, arn).await,
        None => Ok(None),
    }
}

/// The attributes of a subscription. `None` if it was deleted after it was listed.
async fn described(clients: &AwsClients, topic_arn: &str, arn: &str) -> Result<Option<TopicSubscription>> {
    let output = Box::pin(clients.sns.get_subscription_attributes().subscription_arn(arn).send()).await;
    let output = none_if_missing(output.map_err(|e| clients.entity_error(e, "declare", ("topic", topic_arn))))?;
    let Some(output) = output else { return Ok(None) };
    let attributes = output.attributes.unwrap_or_default();
    let dead_letters = attributes.get(REDRIVE).and_then(|policy| policy::read_subscription_redrive(policy));
    Ok(Some(TopicSubscription {
        arn: arn.to_owned(),
        raw: attributes.get("RawMessageDelivery").is_some_and(|v| v.eq_ignore_ascii_case("true")),
        filters_bodies: attributes.get("FilterPolicyScope").is_some_and(|v| v == "MessageBody"),
        filter: attributes.get("FilterPolicy").cloned(),
        dead_letters,
    }))
}

/// Subscribes a queue. It is fine if another process does so at the same time.
pub(crate) async fn subscribe(
    clients: &AwsClients,
    topic_arn: &str,
    queue_arn: &str,
    dead_letters_arn: &str,
    filter: &str,
) -> Result<()> {
    let mut call = clients
        .sns
        .subscribe()
        .topic_arn(topic_arn)
        .protocol("sqs")
        .endpoint(queue_arn)
        .return_subscription_arn(true)
        .attributes("RawMessageDelivery", "true")
        .attributes(REDRIVE, policy::subscription_redrive(dead_letters_arn));
    if filter != "{}" {
        call = call.attributes("FilterPolicy", filter).attributes("FilterPolicyScope", "MessageAttributes");
    }
    Box::pin(call.send()).await.map(drop).map_err(|e| clients.entity_error(e, "declare", ("topic", topic_arn)))
}

/// The ARNs of queue and subscription. `None` for a subscription that is not in effect: SNS lists these with a word in
/// place of the ARN, `Deleted` or `PendingConfirmation`.
fn arns(listed: &Subscription) -> Option<(&str, &str)> {
    Some((listed.endpoint()?, listed.subscription_arn().filter(|arn| arn.starts_with("arn:"))?))
}

/// Ends all but one of a queue's subscriptions to a topic, at an emulator alone.
///
/// SNS never has several. LocalStack creates them where processes subscribe the queue in the same instant, and each
/// message would come as often. All processes keep the one with the lowest ARN, so none ends the last.
pub(crate) async fn keep_one(clients: &AwsClients, topic_arn: &str, queue_arn: &str) -> Result<()> {
    if emulator_info::endpoint(clients).is_none() {
        return Ok(());
    }
    let listed = list(clients, topic_arn).await?;
    let mut arns: Vec<String> =
        listed.into_iter().filter(|(queue, _)| queue == queue_arn).map(|(_, arn)| arn).collect();
    arns.sort_unstable();
    for arn in arns.iter().skip(1) {
        let call = clients.sns.unsubscribe().subscription_arn(arn);
        let ended = Box::pin(call.send()).await;
        none_if_missing(ended.map_err(|e| clients.entity_error(e, "declare", ("topic", topic_arn))))?;
    }
    Ok(())
}

/// Replaces the filter policy, by one that lets more types through.
pub(crate) async fn widen(clients: &AwsClients, subscribed: &TopicSubscription, filter: &str) -> Result<()> {
    set(clients, subscribed, "FilterPolicy", filter).await
}

/// Lets messages that the queue refuses go to its dead letters from now on. Without that SNS discards them.
/// <https://docs.aws.amazon.com/sns/latest/dg/sns-dead-letter-queues.html>
pub(crate) async fn keep_refused(
    clients: &AwsClients,
    subscribed: &TopicSubscription,
    dead_letters_arn: &str,
) -> Result<()> {
    set(clients, subscribed, REDRIVE, &policy::subscription_redrive(dead_letters_arn)).await
}

async fn set(clients: &AwsClients, subscribed: &TopicSubscription, name: &str, value: &str) -> Result<()> {
    let call = clients.sns.set_subscription_attributes().subscription_arn(&subscribed.arn);
    let set = Box::pin(call.attribute_name(name).attribute_value(value).send()).await;
    set.map(drop).map_err(|e| clients.entity_error(e, "declare", ("subscription", &*subscribed.arn)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_and_pending_subscriptions_do_not_count() {
        let listed = |arn: &str| Subscription::builder().endpoint("arn:q").subscription_arn(arn).build();
        assert_eq!(arns(&listed("arn:t:1")), Some(("arn:q", "arn:t:1")));
        assert_eq!(["Deleted", "PendingConfirmation"].map(|word| arns(&listed(word)).is_some()), [false; 2]);
    }
}
