//! Queues at SQS: the calls that find, create, change and delete them.

use std::{collections::HashMap, time::Duration};

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use polybus_core::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::{
    config::{EntityOptions, RETENTION},
    error,
    transport::clients::{AwsClients, none_if_missing},
};

/// How long a create is tried again. A name is taken for a minute after its queue was deleted.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
const CREATE_LIMIT: Duration = Duration::from_secs(65);
const CREATE_INTERVAL: Duration = Duration::from_secs(1);

/// The attributes of an existing queue.
pub(crate) struct QueueAttributes {
    attributes: HashMap<Attribute, String>,
}

impl QueueAttributes {
    pub(crate) fn get(&self, name: &Attribute) -> Option<&str> {
        self.attributes.get(name).map(String::as_str).filter(|v| !v.is_empty())
    }

    pub(crate) fn arn(&self) -> &str {
        self.get(&Attribute::QueueArn).unwrap_or_default()
    }

    pub(crate) fn number(&self, name: &Attribute) -> Option<u64> {
        self.get(name)?.parse().ok()
    }
}

/// The attributes of a queue, or `None` if there is no such queue.
pub(crate) async fn find(
    clients: &AwsClients,
    queue: &str,
    operation: &'static str,
) -> Result<Option<QueueAttributes>> {
    let Some(url) = none_if_missing(clients.url(queue, operation).await)? else { return Ok(None) };
    let call = clients.sqs.get_queue_attributes().queue_url(&*url).attribute_names(Attribute::All);
    let output = Box::pin(call.send()).await.map_err(|e| clients.entity_error(e, operation, ("queue", queue)));
    let output = none_if_missing(output)?;
    if output.is_none() {
        clients.forget(queue);
    }
    Ok(output.map(|output| QueueAttributes { attributes: output.attributes.unwrap_or_default() }))
}

/// The attributes of a new queue for messages of up to `bytes`.
pub(crate) fn attributes(ordered: bool, bytes: usize, options: &EntityOptions) -> HashMap<Attribute, String> {
    let retention = options.retention.unwrap_or(RETENTION).as_secs();
    let mut all = HashMap::from([
        (Attribute::MessageRetentionPeriod, retention.to_string()),
        (Attribute::MaximumMessageSize, bytes.to_string()),
    ]);
    if ordered {
        // Order is per group. With limits and deduplication per group too, SQS takes more than 300 calls a second.
        // <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/high-throughput-fifo.html>
        all.insert(Attribute::FifoQueue, "true".into());
        all.insert(Attribute::DeduplicationScope, "messageGroup".into());
        all.insert(Attribute::FifoThroughputLimit, "perMessageGroupId".into());
    }
    if let Some(key) = &options.kms_key {
        all.insert(Attribute::KmsMasterKeyId, key.clone());
    }
    all
}

/// Creates the queue. It is fine if another process does so at the same time. Waits while the name is still taken by a
/// queue that was deleted.
pub(crate) async fn create(
    clients: &AwsClients,
    queue: &str,
    attributes: HashMap<Attribute, String>,
    options: &EntityOptions,
) -> Result<QueueAttributes> {
    let deadline = Instant::now() + CREATE_LIMIT;
    loop {
        let call = clients.sqs.create_queue().queue_name(queue).set_attributes(Some(attributes.clone()));
        let call = call.set_tags(Some(options.tags.clone().into_iter().collect()));
        let failed = match Box::pin(call.send()).await {
            Ok(output) => {
                clients.note_created(queue);
                clients.remember(queue, output.queue_url().unwrap_or_default());
                // The host that answers may not know the new queue yet.
                match find(clients, queue, "declare").await? {
                    Some(found) => return Ok(found),
                    None => error::new(ErrorKind::NotFound, "declare", "the queue was made, but cannot be found"),
                }
            }
            Err(e) => {
                let e = clients.failed(e, "declare").with_context("queue", queue);
                if e.kind() == ErrorKind::AlreadyExists
                    && let Some(found) = find(clients, queue, "declare").await?
                {
                    return Ok(found);
                }
                e
            }
        };
        if !is_conflict(&failed) || Instant::now() + CREATE_INTERVAL > deadline {
            return Err(failed);
        }
        tokio::time::sleep(CREATE_INTERVAL).await;
    }
}

/// Whether the failure of a create passes by itself: the name is not free yet, or the dead letters' queue is not known
/// everywhere yet.
fn is_conflict(e: &Error) -> bool {
    let unseen =
        e.kind() == ErrorKind::InvalidArgument && e.message().to_ascii_lowercase().contains("dead letter target");
    unseen || matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Throttled | ErrorKind::NotFound)
}

/// The tags of a queue.
pub(crate) async fn tags(clients: &AwsClients, queue: &str) -> Result<HashMap<String, String>> {
    let url = clients.url(queue, "declare").await?;
    let output = Box::pin(clients.sqs.list_queue_tags().queue_url(&*url).send()).await;
    Ok(output.map_err(|e| clients.entity_error(e, "declare", ("queue", queue)))?.tags.unwrap_or_default())
}

/// Sets one attribute of an existing queue.
pub(crate) async fn set(clients: &AwsClients, queue: &str, name: Attribute, value: String) -> Result<()> {
    let url = clients.url(queue, "declare").await?;
    let call = clients.sqs.set_queue_attributes().queue_url(&*url).attributes(name, value);
    Box::pin(call.send()).await.map(drop).map_err(|e| clients.entity_error(e, "declare", ("queue", queue)))
}

/// Deletes the queue. A missing one is fine.
pub(crate) async fn delete(clients: &AwsClients, queue: &str) -> Result<()> {
    let Some(url) = none_if_missing(clients.url(queue, "delete").await)? else { return Ok(()) };
    let deleted = Box::pin(clients.sqs.delete_queue().queue_url(&*url).send()).await;
    clients.forget(queue);
    clients.note_deleted(queue);
    none_if_missing(deleted.map_err(|e| clients.entity_error(e, "delete", ("queue", queue)))).map(drop)
}
