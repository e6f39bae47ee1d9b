//! Publishing to a queue or a topic.

use std::sync::Arc;

use async_trait::async_trait;
use aws_sdk_sns::types::PublishBatchRequestEntry;
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result,
    driver::{Batching, PreparedMessage, Sender, kit::names::dedup_id},
    topology::Entity,
};

use crate::{
    error,
    message::{
        envelope::{self, EncodedMessage},
        limits::{ENTRIES, TOPIC_BYTES},
    },
    publish::batch_send::{self, BatchResults, FifoIds, QueueMessage},
    topology::names,
    transport::clients::AwsClients,
};

/// Most calls of one sender under way at once.
const IN_FLIGHT: usize = 8;

pub(crate) struct AwsSender {
    clients: Arc<AwsClients>,
    to: SendTarget,
    ordered: bool,
    max_size: usize,
}

enum SendTarget {
    /// A queue, by its name at SQS.
    Queue(String),
    /// A topic, by its ARN.
    Topic(String),
}

impl AwsSender {
    pub(crate) async fn open(clients: Arc<AwsClients>, to: &Entity<Address>) -> Result<Self> {
        let limit = clients.config.max_message_size;
        let (target, max_size) = if to.name.is_topic() {
            (SendTarget::Topic(clients.topic_arn(&names::topic(to)).await?), limit.min(TOPIC_BYTES))
        } else {
            let queue = names::queue(to);
            clients.url(&queue, "publish").await?;
            (SendTarget::Queue(queue), limit)
        };
        Ok(Self { clients, to: target, ordered: to.settings.ordered, max_size })
    }

    /// Group and deduplication id on an ordered address: `InvalidArgument` if the message has no key there.
    fn fifo_ids(&self, message: &Outgoing) -> Result<Option<FifoIds>> {
        let e = &message.envelope;
        match (&e.key, self.ordered) {
            (Some(key), true) => {
                Ok(Some(FifoIds { group: names::group(key), dedup: Some(dedup_id(&e.source, &e.id, 0)) }))
            }
            (None, true) => Err(Error::invalid("an ordered address needs a key").with_context("id", &e.id)),
            (_, false) => Ok(None),
        }
    }

    async fn send_to_queue(&self, queue: &str, batch: Vec<BatchItem<'_>>) -> Vec<Result<Receipt>> {
        let count = batch.len();
        let messages = batch.into_iter().map(|item| {
            let attributes = item.encoded.attributes.iter().map(|(n, v)| Ok(((*n).to_owned(), envelope::text(v)?)));
            Ok(QueueMessage {
                body: item.encoded.body.clone(),
                attributes: attributes.collect::<Result<_>>()?,
                size: item.encoded.size,
                delay: item.message.delay,
                fifo: item.fifo,
                trace: None,
            })
        });
        match messages.collect::<Result<Vec<_>>>() {
            Ok(messages) => batch_send::send(&self.clients, queue, messages, "publish").await,
            Err(e) => e.for_each_of(count),
        }
    }

    async fn send_to_topic(&self, arn: &str, batch: Vec<BatchItem<'_>>) -> Vec<Result<Receipt>> {
        let count = batch.len();
        let entries = batch.into_iter().enumerate().map(|(i, item)| {
            let mut entry = PublishBatchRequestEntry::builder().id(i.to_string()).message(&*item.encoded.body);
            for (name, value) in &item.encoded.attributes {
                entry = entry.message_attributes(*name, envelope::topic_text(value)?);
            }
            if let Some(fifo) = item.fifo {
                entry = entry.message_group_id(fifo.group).set_message_deduplication_id(fifo.dedup);
            }
            entry.build().map_err(|e| error::not_built(e, "publish"))
        });
        let entries = match entries.collect::<Result<Vec<_>>>() {
            Ok(entries) => entries,
            Err(e) => return e.for_each_of(count),
        };
        let call = self.clients.sns.publish_batch().topic_arn(arn).set_publish_batch_request_entries(Some(entries));
        let output = match Box::pin(call.send()).await {
            Ok(output) => output,
            Err(e) => {
                let e = self.clients.failed(e, "publish").with_context("topic", arn);
                return self.clients.missing(arn, e).for_each_of(count);
            }
        };
        let mut results = BatchResults::new(count, "publish");
        for done in output.successful() {
            let receipt = done.message_id().map(Receipt::with_broker_id).unwrap_or_default();
            results.set(done.id().unwrap_or_default(), Ok(receipt));
        }
        for failed in output.failed() {
            let e = self.clients.located(error::of_topic_entry(failed, "publish")).with_context("topic", arn);
            results.set(failed.id(), Err(e));
        }
        results.finish()
    }
}

/// One message of a batch.
struct BatchItem<'a> {
    message: &'a Outgoing,
    encoded: &'a EncodedMessage,
    fifo: Option<FifoIds>,
}

#[async_trait]
impl Sender for AwsSender {
    fn batching(&self) -> Batching {
        let queue = self.clients.config.queue_bytes();
        let bytes = if matches!(self.to, SendTarget::Topic(_)) { TOPIC_BYTES } else { queue };
        Batching::new(ENTRIES, bytes, IN_FLIGHT)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        self.fifo_ids(&message)?;
        if self.ordered && message.delay.is_some() {
            let text =
                "SQS delays no single message of a FIFO queue: publish it later, or use a queue that is not ordered";
            return Err(error::new(ErrorKind::Unsupported, "publish", text));
        }
        let encoded = envelope::encode(&message.envelope);
        if encoded.size > self.max_size {
            let (size, limit) = (encoded.size, self.max_size);
            let text = format!("message of {size} bytes, encoded as CloudEvents: at most {limit} are allowed here");
            return Err(error::new(ErrorKind::PayloadTooLarge, "publish", text)
                .with_context("size", size)
                .with_context("limit", limit));
        }
        let size = encoded.size;
        Ok(PreparedMessage::new(message, size).native(encoded))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        if let Err(e) = self.clients.ensure_open() {
            return e.for_each_of(batch.len());
        }
        let items = batch.iter().map(|prepared| {
            let foreign = || error::new(ErrorKind::Unexpected, "publish", "a message of another sender");
            let encoded = prepared.native.as_ref().ok_or_else(foreign)?.get::<EncodedMessage>()?;
            Ok(BatchItem { message: &prepared.message, encoded, fifo: self.fifo_ids(&prepared.message)? })
        });
        let items = match items.collect::<Result<Vec<_>>>() {
            Ok(items) => items,
            Err(e) => return e.for_each_of(batch.len()),
        };
        match &self.to {
            SendTarget::Queue(queue) => self.send_to_queue(queue, items).await,
            SendTarget::Topic(arn) => self.send_to_topic(arn, items).await,
        }
    }
}
