//! Topics at SNS and their subscriptions.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use aws_sdk_sns::{operation::list_subscriptions_by_topic::ListSubscriptionsByTopicOutput, types::Subscription};
use polybus_core::{Error, ErrorKind, Result};
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    config::Options,
    topology::policy,
    transport::{
        clients::{Clients, retryable},
        emulator_info,
    },
};

/// Attributes of topics.
pub(crate) const FIFO: &str = "FifoTopic";
pub(crate) const KMS_KEY: &str = "KmsMasterKeyId";
/// An attribute of subscriptions.
const REDRIVE: &str = "RedrivePolicy";

/// How long a throttled list is waited for the first time, twice as long each time, and the last: 13 s at most in all.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LAST_WAIT: Duration = Duration::from_millis(6400);

/// A subscription as it stands.
pub(crate) struct Subscribed {
    arn: String,
    pub(crate) raw: bool,
    pub(crate) filter: Option<String>,
    /// The filter looks into bodies instead of attributes.
    pub(crate) filters_bodies: bool,
    /// The queue's ARN for what the subscribed queue refuses.
    pub(crate) dead_letters: Option<String>,
}

/// Subscriptions by their queue's ARN.
type Listed = HashMap<String, String>;

/// The subscriptions of each topic, asked once for all of its sources: SNS answers 30 such calls a second for the whole account.
/// <https://docs.aws.amazon.com/sns/latest/api/API_ListSubscriptionsByTopic.html>
#[derive(Default)]
pub(crate) struct Listings(Mutex<HashMap<String, Arc<OnceCell<Listed>>>>);

impl Listings {
    /// The subscription of this queue, or `None`; none either where there is no such topic.
    pub(crate) async fn subscription(
        &self,
        clients: &Clients,
        topic_arn: &str,
        queue_arn: &str,
    ) -> Result<Option<Subscribed>> {
        let cell =
            self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(topic_arn.to_owned()).or_default().clone();
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
pub(crate) async fn find(clients: &Clients, arn: &str) -> Result<Option<HashMap<String, String>>> {
    match Box::pin(clients.sns.get_topic_attributes().topic_arn(arn).send()).await {
        Ok(output) => Ok(Some(output.attributes.unwrap_or_default())),
        Err(e) => match retryable(clients.failed(e, "declare")).with_context("topic", arn) {
            e if e.kind() == ErrorKind::NotFound => Ok(None),
            e => Err(e),
        },
    }
}

/// The settings of a topic that is about to be made.
pub(crate) fn attributes(ordered: bool, options: &Options) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if ordered {
        // As for queues: <https://docs.aws.amazon.com/sns/latest/dg/fifo-high-throughput.html>
        all.extend([(FIFO, "true".to_owned()), ("FifoThroughputScope", "MessageGroup".to_owned())]);
    }
    all.extend(options.kms_key.clone().map(|key| (KMS_KEY, key)));
    all
}

/// Makes the topic; fine if another did at the same time.
pub(crate) async fn create(clients: &Clients, name: &str, ordered: bool, options: &Options) -> Result<()> {
    let attributes = attributes(ordered, options).into_iter().map(|(name, value)| (name.to_owned(), value));
    let mut call = clients.sns.create_topic().name(name).set_attributes(Some(attributes.collect()));
    for (key, value) in &options.tags {
        let tag = aws_sdk_sns::types::Tag::builder().key(key).value(value).build();
        call = call.tags(tag.map_err(|e| crate::error::new(ErrorKind::InvalidArgument, "declare", e.to_string()))?);
    }
    match Box::pin(call.send()).await {
        Ok(output) => {
            clients.note_made(output.topic_arn().unwrap_or_default());
            Ok(())
        }
        Err(e) => Err(retryable(clients.failed(e, "declare")).with_context("topic", name)),
    }
}

/// The topic's tags.
pub(crate) async fn tags(clients: &Clients, arn: &str) -> Result<HashMap<String, String>> {
    match Box::pin(clients.sns.list_tags_for_resource().resource_arn(arn).send()).await {
        Ok(output) => Ok(output.tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect()),
        Err(e) => Err(retryable(clients.failed(e, "declare")).with_context("topic", arn)),
    }
}

/// Deletes the topic and its subscriptions; a missing one is fine.
pub(crate) async fn delete(clients: &Clients, arn: &str) -> Result<()> {
    clients.note_deleted(arn);
    match Box::pin(clients.sns.delete_topic().topic_arn(arn).send()).await {
        Ok(_) => Ok(()),
        Err(e) => match retryable(clients.failed(e, "delete")).with_context("topic", arn) {
            e if e.kind() == ErrorKind::NotFound => Ok(()),
            e => Err(e),
        },
    }
}

/// Queue and subscription of all that a topic has, in the order of SNS; none where there is no such topic.
async fn list(clients: &Clients, topic_arn: &str) -> Result<Vec<(String, String)>> {
    let (mut all, mut next): (Vec<(String, String)>, Option<String>) = (Vec::new(), None);
    loop {
        let page = match page(clients, topic_arn, next.take()).await {
            Ok(page) => page,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        all.extend(page.subscriptions().iter().filter_map(standing).map(|(q, arn)| (q.to_owned(), arn.to_owned())));
        match page.next_token() {
            Some(token) if !token.is_empty() => next = Some(token.to_owned()),
            _ => return Ok(all),
        }
    }
}

/// One page of up to 100. A fleet that starts at once is throttled here first, so that a page is waited for: each in its turn, where core
/// would begin the whole declare anew.
async fn page(clients: &Clients, topic_arn: &str, next: Option<String>) -> Result<ListSubscriptionsByTopicOutput> {
    let mut wait = FIRST_WAIT;
    loop {
        let call = clients.sns.list_subscriptions_by_topic().topic_arn(topic_arn).set_next_token(next.clone());
        let e = match Box::pin(call.send()).await {
            Ok(page) => return Ok(page),
            Err(e) => retryable(clients.failed(e, "declare")).with_context("topic", topic_arn),
        };
        if e.kind() != ErrorKind::Throttled || wait > LAST_WAIT {
            return Err(e);
        }
        // Spread over its second half, so that those who were refused together do not come again together.
        let spread = u32::from(Uuid::now_v7().as_bytes()[15]);
        tokio::time::sleep(wait / 2 + wait / 2 * spread / 256).await;
        wait *= 2;
    }
}

/// The subscription of this queue as it stands now, listed or not.
pub(crate) async fn subscription(clients: &Clients, topic_arn: &str, queue_arn: &str) -> Result<Option<Subscribed>> {
    let listed = list(clients, topic_arn).await?;
    match listed.iter().find(|(queue, _)| queue == queue_arn) {
        Some((_, arn)) => described(clients, topic_arn, arn).await,
        None => Ok(None),
    }
}

/// `None` if it is gone since it was listed.
async fn described(clients: &Clients, topic_arn: &str, arn: &str) -> Result<Option<Subscribed>> {
    let output = match Box::pin(clients.sns.get_subscription_attributes().subscription_arn(arn).send()).await {
        Ok(output) => output,
        Err(e) => match retryable(clients.failed(e, "declare")).with_context("topic", topic_arn) {
            e if e.kind() == ErrorKind::NotFound => return Ok(None),
            e => return Err(e),
        },
    };
    let attributes = output.attributes.unwrap_or_default();
    let dead_letters = attributes.get(REDRIVE).and_then(|policy| policy::read_discarded(policy));
    Ok(Some(Subscribed {
        arn: arn.to_owned(),
        raw: attributes.get("RawMessageDelivery").is_some_and(|v| v.eq_ignore_ascii_case("true")),
        filters_bodies: attributes.get("FilterPolicyScope").is_some_and(|v| v == "MessageBody"),
        filter: attributes.get("FilterPolicy").cloned(),
        dead_letters,
    }))
}

/// Subscribes a queue; fine if another did at the same time.
pub(crate) async fn subscribe(
    clients: &Clients,
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
        .attributes(REDRIVE, policy::discarded(dead_letters_arn));
    if filter != "{}" {
        call = call.attributes("FilterPolicy", filter).attributes("FilterPolicyScope", "MessageAttributes");
    }
    match Box::pin(call.send()).await {
        Ok(_) => Ok(()),
        Err(e) => Err(retryable(clients.failed(e, "declare")).with_context("topic", topic_arn)),
    }
}

/// Queue and ARN of a subscription. SNS lists others as well, with a word in place of the ARN: `Deleted`, `PendingConfirmation`.
fn standing(listed: &Subscription) -> Option<(&str, &str)> {
    Some((listed.endpoint()?, listed.subscription_arn().filter(|arn| arn.starts_with("arn:"))?))
}

/// Ends all but one of a queue's subscriptions to a topic. SNS never has several; LocalStack makes them where processes subscribe it in the
/// same instant, and each message would come as often. All keep the same one, so none ends the last.
pub(crate) async fn keep_one(clients: &Clients, topic_arn: &str, queue_arn: &str) -> Result<()> {
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
        match ended.map_err(|e| retryable(clients.failed(e, "declare")).with_context("topic", topic_arn)) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Lets more types through.
pub(crate) async fn widen(clients: &Clients, subscribed: &Subscribed, filter: &str) -> Result<()> {
    set(clients, subscribed, "FilterPolicy", filter).await
}

/// Where what the queue refuses goes from now on. SNS discards it where nothing is said.
/// <https://docs.aws.amazon.com/sns/latest/dg/sns-dead-letter-queues.html>
pub(crate) async fn keep_refused(clients: &Clients, subscribed: &Subscribed, dead_letters_arn: &str) -> Result<()> {
    set(clients, subscribed, REDRIVE, &policy::discarded(dead_letters_arn)).await
}

async fn set(clients: &Clients, subscribed: &Subscribed, name: &str, value: &str) -> Result<()> {
    let call = clients.sns.set_subscription_attributes().subscription_arn(&subscribed.arn);
    match Box::pin(call.attribute_name(name).attribute_value(value).send()).await {
        Ok(_) => Ok(()),
        Err(e) => Err(retryable(clients.failed(e, "declare")).with_context("subscription", &subscribed.arn)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deleted_or_pending_is_no_subscription() {
        let listed = |arn: &str| Subscription::builder().endpoint("arn:q").subscription_arn(arn).build();
        assert_eq!(standing(&listed("arn:t:1")), Some(("arn:q", "arn:t:1")));
        assert_eq!(["Deleted", "PendingConfirmation"].map(|word| standing(&listed(word)).is_some()), [false; 2]);
    }
}
