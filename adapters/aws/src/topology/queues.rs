//! Queues at SQS: found, made, compared.

use std::{collections::HashMap, time::Duration};

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use polybus_core::{Error, ErrorKind, Result};
use tokio::time::Instant;

use crate::{
    config::{Options, RETENTION},
    error,
    transport::clients::{Clients, retryable},
};

/// How long a name is taken after its queue was deleted.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html>
const CONFLICT: Duration = Duration::from_secs(65);
const AGAIN: Duration = Duration::from_secs(1);

/// A queue as it stands.
pub(crate) struct Found {
    attributes: HashMap<Attribute, String>,
}

impl Found {
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

/// The queue as it stands, or `None`.
pub(crate) async fn find(clients: &Clients, queue: &str, operation: &'static str) -> Result<Option<Found>> {
    let url = match clients.url(queue, operation).await {
        Ok(url) => url,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let call = clients.sqs.get_queue_attributes().queue_url(&*url).attribute_names(Attribute::All);
    match Box::pin(call.send()).await {
        Ok(output) => Ok(Some(Found { attributes: output.attributes.unwrap_or_default() })),
        Err(e) => {
            let e = retryable(clients.failed(e, operation)).with_context("queue", queue);
            if e.kind() != ErrorKind::NotFound {
                return Err(e);
            }
            clients.forget(queue);
            Ok(None)
        }
    }
}

/// The settings of a queue that is about to be made, for messages of up to so many bytes.
pub(crate) fn attributes(ordered: bool, bytes: usize, options: &Options) -> HashMap<Attribute, String> {
    let retention = options.retention.unwrap_or(RETENTION).as_secs();
    let mut all = HashMap::from([
        (Attribute::MessageRetentionPeriod, retention.to_string()),
        (Attribute::MaximumMessageSize, bytes.to_string()),
    ]);
    if ordered {
        // Order is per group, and so may be all else: more than 300 calls a second.
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

/// Makes the queue, unless another did at the same time. Waits while the name is still taken by a queue that was deleted.
pub(crate) async fn create(
    clients: &Clients,
    queue: &str,
    attributes: HashMap<Attribute, String>,
    options: &Options,
) -> Result<Found> {
    let deadline = Instant::now() + CONFLICT;
    loop {
        let call = clients.sqs.create_queue().queue_name(queue).set_attributes(Some(attributes.clone()));
        let call = call.set_tags(Some(options.tags.clone().into_iter().collect()));
        let failed = match Box::pin(call.send()).await {
            Ok(output) => {
                clients.note_made(queue);
                clients.remember(queue, output.queue_url().unwrap_or_default());
                // It may not be seen everywhere at once.
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
        if !is_conflict(&failed) || Instant::now() + AGAIN > deadline {
            return Err(failed);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What passes by itself: a name that is not free yet, dead letters that are not seen yet.
fn is_conflict(e: &Error) -> bool {
    let unseen =
        e.kind() == ErrorKind::InvalidArgument && e.message().to_ascii_lowercase().contains("dead letter target");
    unseen || matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Throttled | ErrorKind::NotFound)
}

/// The queue's tags.
pub(crate) async fn tags(clients: &Clients, queue: &str) -> Result<HashMap<String, String>> {
    let url = clients.url(queue, "declare").await?;
    match Box::pin(clients.sqs.list_queue_tags().queue_url(&*url).send()).await {
        Ok(output) => Ok(output.tags.unwrap_or_default()),
        Err(e) => Err(retryable(clients.failed(e, "declare")).with_context("queue", queue)),
    }
}

/// Changes attributes that `declare` may add to.
pub(crate) async fn set(clients: &Clients, queue: &str, name: Attribute, value: String) -> Result<()> {
    let url = clients.url(queue, "declare").await?;
    let call = clients.sqs.set_queue_attributes().queue_url(&*url).attributes(name, value);
    match Box::pin(call.send()).await {
        Ok(_) => Ok(()),
        Err(e) => Err(retryable(clients.failed(e, "declare")).with_context("queue", queue)),
    }
}

/// Deletes the queue; a missing one is fine.
pub(crate) async fn delete(clients: &Clients, queue: &str) -> Result<()> {
    let url = match clients.url(queue, "delete").await {
        Ok(url) => url,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
    };
    let deleted = Box::pin(clients.sqs.delete_queue().queue_url(&*url).send()).await;
    clients.forget(queue);
    clients.note_deleted(queue);
    match deleted.map_err(|e| retryable(clients.failed(e, "delete")).with_context("queue", queue)) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
