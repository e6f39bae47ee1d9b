//! Topics at SNS and their subscriptions.

use std::collections::HashMap;

use aws_sdk_sns::types::Subscription;
use polybus_core::{Kind, Result};

use crate::{
    clients::{Clients, retryable},
    config::Options,
};

/// Attributes of topics.
pub(crate) const FIFO: &str = "FifoTopic";
pub(crate) const KMS_KEY: &str = "KmsMasterKeyId";

/// A subscription as it stands.
pub(crate) struct Subscribed {
    arn: String,
    pub(crate) raw: bool,
    pub(crate) filter: Option<String>,
    /// The filter looks into bodies instead of attributes.
    pub(crate) filters_bodies: bool,
}

/// The topic's attributes, or `None` if there is no such topic.
pub(crate) async fn find(clients: &Clients, arn: &str) -> Result<Option<HashMap<String, String>>> {
    match Box::pin(clients.sns.get_topic_attributes().topic_arn(arn).send()).await {
        Ok(output) => Ok(Some(output.attributes.unwrap_or_default())),
        Err(e) => match retryable(clients.failed(e, "declare")).with("topic", arn) {
            e if e.kind() == Kind::NotFound => Ok(None),
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
        call = call.tags(tag.map_err(|e| crate::error::new(Kind::InvalidArgument, "declare", e.to_string()))?);
    }
    match Box::pin(call.send()).await {
        Ok(_) => Ok(()),
        Err(e) => Err(retryable(clients.failed(e, "declare")).with("topic", name)),
    }
}

/// The topic's tags.
pub(crate) async fn tags(clients: &Clients, arn: &str) -> Result<HashMap<String, String>> {
    match Box::pin(clients.sns.list_tags_for_resource().resource_arn(arn).send()).await {
        Ok(output) => Ok(output.tags.unwrap_or_default().into_iter().map(|tag| (tag.key, tag.value)).collect()),
        Err(e) => Err(retryable(clients.failed(e, "declare")).with("topic", arn)),
    }
}

/// Deletes the topic and its subscriptions; a missing one is fine.
pub(crate) async fn delete(clients: &Clients, arn: &str) -> Result<()> {
    match Box::pin(clients.sns.delete_topic().topic_arn(arn).send()).await {
        Ok(_) => Ok(()),
        Err(e) => match retryable(clients.failed(e, "delete")).with("topic", arn) {
            e if e.kind() == Kind::NotFound => Ok(()),
            e => Err(e),
        },
    }
}

/// The subscription of this queue, or `None`; none either where there is no such topic.
pub(crate) async fn subscription(clients: &Clients, topic_arn: &str, queue_arn: &str) -> Result<Option<Subscribed>> {
    let failed = |e: polybus_core::Error| retryable(e).with("topic", topic_arn);
    let mut next = None;
    let arn = loop {
        let call = clients.sns.list_subscriptions_by_topic().topic_arn(topic_arn).set_next_token(next.take());
        let page = match Box::pin(call.send()).await {
            Ok(page) => page,
            Err(e) => match failed(clients.failed(e, "declare")) {
                e if e.kind() == Kind::NotFound => return Ok(None),
                e => return Err(e),
            },
        };
        if let Some(arn) = page.subscriptions().iter().find_map(|s| standing(s, queue_arn)) {
            break arn.to_owned();
        }
        match page.next_token() {
            Some(token) if !token.is_empty() => next = Some(token.to_owned()),
            _ => return Ok(None),
        }
    };
    let call = clients.sns.get_subscription_attributes().subscription_arn(&arn);
    let output = match Box::pin(call.send()).await {
        Ok(output) => output,
        Err(e) => match failed(clients.failed(e, "declare")) {
            // Gone since it was listed.
            e if e.kind() == Kind::NotFound => return Ok(None),
            e => return Err(e),
        },
    };
    let attributes = output.attributes.unwrap_or_default();
    Ok(Some(Subscribed {
        arn,
        raw: attributes.get("RawMessageDelivery").is_some_and(|v| v.eq_ignore_ascii_case("true")),
        filters_bodies: attributes.get("FilterPolicyScope").is_some_and(|v| v == "MessageBody"),
        filter: attributes.get("FilterPolicy").cloned(),
    }))
}

/// Subscribes a queue; fine if another did at the same time.
pub(crate) async fn subscribe(clients: &Clients, topic_arn: &str, queue_arn: &str, filter: &str) -> Result<()> {
    let mut call = clients
        .sns
        .subscribe()
        .topic_arn(topic_arn)
        .protocol("sqs")
        .endpoint(queue_arn)
        .return_subscription_arn(true)
        .attributes("RawMessageDelivery", "true");
    if filter != "{}" {
        call = call.attributes("FilterPolicy", filter).attributes("FilterPolicyScope", "MessageAttributes");
    }
    match Box::pin(call.send()).await {
        Ok(_) => Ok(()),
        Err(e) => Err(retryable(clients.failed(e, "declare")).with("topic", topic_arn)),
    }
}

/// The ARN of a queue's subscription. SNS lists others as well, with a word in place of the ARN: `Deleted`, `PendingConfirmation`.
fn standing<'a>(listed: &'a Subscription, queue_arn: &str) -> Option<&'a str> {
    listed.subscription_arn().filter(|arn| listed.endpoint() == Some(queue_arn) && arn.starts_with("arn:"))
}

/// Ends all but one of a queue's subscriptions to a topic. SNS never has several; LocalStack makes them where processes subscribe in the
/// same instant, and each message would come as often. All keep the same one, so none ends the last.
pub(crate) async fn keep_one(clients: &Clients, topic_arn: &str, queue_arn: &str) -> Result<()> {
    let failed = |e: polybus_core::Error| retryable(e).with("topic", topic_arn);
    let mut arns = Vec::new();
    let mut pages = clients.sns.list_subscriptions_by_topic().topic_arn(topic_arn).into_paginator().send();
    while let Some(page) = Box::pin(pages.next()).await {
        let page = page.map_err(|e| failed(clients.failed(e, "declare")))?;
        arns.extend(page.subscriptions().iter().filter_map(|s| standing(s, queue_arn)).map(str::to_owned));
    }
    arns.sort_unstable();
    for arn in arns.iter().skip(1) {
        let call = clients.sns.unsubscribe().subscription_arn(arn);
        match Box::pin(call.send()).await.map_err(|e| failed(clients.failed(e, "declare"))) {
            Err(e) if e.kind() != Kind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Lets more types through.
pub(crate) async fn widen(clients: &Clients, subscribed: &Subscribed, filter: &str) -> Result<()> {
    let call = clients.sns.set_subscription_attributes().subscription_arn(&subscribed.arn);
    let call = call.attribute_name("FilterPolicy").attribute_value(filter);
    match Box::pin(call.send()).await {
        Ok(_) => Ok(()),
        Err(e) => Err(retryable(clients.failed(e, "declare")).with("subscription", &subscribed.arn)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deleted_or_pending_is_no_subscription() {
        let listed = |arn: &str| Subscription::builder().endpoint("arn:q").subscription_arn(arn).build();
        assert_eq!(standing(&listed("arn:t:1"), "arn:q"), Some("arn:t:1"));
        assert_eq!(standing(&listed("arn:t:1"), "arn:other"), None);
        assert_eq!(
            ["Deleted", "PendingConfirmation"].map(|word| standing(&listed(word), "arn:q").is_some()),
            [false; 2]
        );
    }
}
