//! The sender of one address: encodes messages as AMQP, and publishes batches with confirms.
//!
//! An unordered queue is published to by the default exchange, an ordered one by its headers exchange, a topic by its
//! own exchange. A delayed message goes into a delay queue first, from which the broker moves it to the address.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use async_trait::async_trait;
use lapin::types::ShortString;
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result,
    driver::{Batching, PreparedMessage, Sender},
    message::cloudevents::CopyState,
    topology::Entity,
};

use crate::{
    error,
    message::envelope::{self, ContentHeader},
    publish::{confirm_channel::PublishRequest, confirmed_publisher::ConfirmedPublisher},
    topology::{
        channel_operations::short,
        delay_queues::{DelayQueue, KnownDelayQueues, PublishTarget},
        names,
    },
    transport::connection::{ConnectionRole, DriverConnections},
};

/// The most messages in one batch.
const MAX_BATCH_MESSAGES: usize = 1_000;
/// The most bytes in one batch, bodies and headers together.
const MAX_BATCH_BYTES: usize = 8 << 20;

/// Whether this is where a client waits by direct reply-to. The broker returns a mandatory message for it in any case,
/// also where it delivers it: <https://www.rabbitmq.com/docs/direct-reply-to#limitations>. So a client that has left is
/// not told from one that waits.
fn is_direct_reply(queue: &str) -> bool {
    queue.starts_with("amq.rabbitmq.reply-to.")
}

/// The broker ends the connection (541) where it can make nothing of the name of a direct reply. Sending it again would
/// do the same.
fn unreadable_reply_name(e: Error) -> Error {
    let closed = std::error::Error::source(&e).and_then(|cause| cause.downcast_ref::<lapin::Error>());
    match closed.and_then(error::reply) {
        Some((541, _)) => {
            let text = "the broker knows no client that waits by this direct reply-to";
            error::new(ErrorKind::NotFound, "publish", text)
        }
        _ => e,
    }
}

/// Publishes to one queue or topic.
pub(crate) struct RabbitmqSender {
    connections: Arc<DriverConnections>,
    publisher: ConfirmedPublisher,
    target: PublishTarget,
    is_direct_reply: bool,
    ordered: bool,
    /// The delays that the topology names.
    named: Vec<Duration>,
}

/// A message as `prepare` has encoded it.
struct EncodedMessage {
    /// The first attempt takes it, and later attempts encode the message again: most messages are sent once.
    head: Mutex<Option<ContentHeader>>,
    exchange: ShortString,
    routing_key: ShortString,
    mandatory: bool,
    slot: Option<u8>,
    delay_queue: Option<DelayQueue>,
}

impl RabbitmqSender {
    pub(crate) fn new(
        connections: Arc<DriverConnections>,
        delay_queues: Arc<KnownDelayQueues>,
        to: &Entity<Address>,
    ) -> Result<Self> {
        let ordered = to.settings.ordered;
        let (target, exchange) = if to.name.is_topic() {
            let exchange = names::exchange(to);
            (PublishTarget::Topic(short(&exchange)?), Some(exchange))
        } else if ordered {
            let exchange = names::base(to);
            (PublishTarget::Slots(short(&exchange)?), Some(exchange))
        } else {
            (PublishTarget::Queue(short(&names::base(to))?), None)
        };
        let mut publisher = ConfirmedPublisher::new(connections.clone(), delay_queues, exchange, to.name.to_string());
        let is_direct_reply = matches!(&target, PublishTarget::Queue(queue) if is_direct_reply(queue.as_str()));
        if is_direct_reply {
            publisher = publisher.through(ConnectionRole::DirectReply);
        }
        Ok(Self { connections, publisher, target, is_direct_reply, ordered, named: to.settings.retry.clone() })
    }

    /// Encodes the properties and headers of a message.
    fn head(&self, message: &Outgoing, slot: Option<u8>) -> Result<ContentHeader> {
        let mut head = envelope::encode(&message.envelope, &CopyState::default(), &self.connections.config.names)?;
        if let Some(slot) = slot {
            head.set_slot(slot);
        }
        Ok(head)
    }
}

#[async_trait]
impl Sender for RabbitmqSender {
    /// Up to 1,000 messages or 8 MiB in a batch, and 4 batches at once.
    fn batching(&self) -> Batching {
        Batching::new(MAX_BATCH_MESSAGES, MAX_BATCH_BYTES, 4)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let envelope = &message.envelope;
        let slot = match (&envelope.key, self.ordered) {
            (Some(key), true) => Some(names::slot(key)),
            (None, true) => {
                return Err(Error::invalid("an ordered address needs a key").with_context("id", &envelope.id));
            }
            (_, false) => None,
        };
        let head = self.head(&message, slot)?;
        let size = head.check_sizes(
            envelope.data.len(),
            self.connections.config.max_message_size,
            self.connections.frame_max(),
        )?;
        // The broker returns a mandatory message that no queue takes. A topic without subscribers is no error.
        let (exchange, routing_key, mandatory) = match &self.target {
            PublishTarget::Queue(queue) => (ShortString::default(), queue.clone(), !self.is_direct_reply),
            PublishTarget::Slots(exchange) => (exchange.clone(), short(&envelope.event_type)?, true),
            PublishTarget::Topic(exchange) => (exchange.clone(), short(&envelope.event_type)?, false),
        };
        let mut encoded =
            EncodedMessage { head: Mutex::new(Some(head)), exchange, routing_key, mandatory, slot, delay_queue: None };
        if let Some(delay) = message.delay.filter(|d| !d.is_zero()) {
            let queue = DelayQueue::choose(self.target.clone(), delay, &self.named)?;
            (encoded.exchange, encoded.routing_key) = queue.route(&encoded.routing_key)?;
            // A delay queue that is missing must be told, also on a topic: it is made again then.
            encoded.mandatory = true;
            encoded.delay_queue = Some(queue);
        }
        Ok(PreparedMessage::new(message, size).native(encoded))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut encoded = Vec::with_capacity(batch.len());
        for prepared in batch {
            match prepared.native.as_ref().map(|n| n.get::<EncodedMessage>()) {
                Some(Ok(found)) => encoded.push(found),
                _ => {
                    return error::new(ErrorKind::Unexpected, "publish", "a message of another sender")
                        .for_each_of(batch.len());
                }
            }
        }
        let delay_queues: Vec<Option<&DelayQueue>> = encoded.iter().map(|e| e.delay_queue.as_ref()).collect();
        let sent = self.publisher.publish(&delay_queues, |i| {
            let (message, encoded) = (&batch[i].message, encoded[i]);
            let head = encoded.head.lock().take();
            Ok(PublishRequest {
                exchange: encoded.exchange.clone(),
                routing_key: encoded.routing_key.clone(),
                mandatory: encoded.mandatory,
                head: head.map_or_else(|| self.head(message, encoded.slot), Ok)?,
                body: message.envelope.data.clone(),
            })
        });
        let sent = sent.await.into_iter().map(|r| r.map(|()| Receipt::default()));
        if !self.is_direct_reply {
            return sent.collect();
        }
        sent.map(|result| result.map_err(unreadable_reply_name)).collect()
    }

    fn held_back(&self) -> Option<Error> {
        self.publisher.held_back()
    }

    async fn close(&self) -> Result<()> {
        self.publisher.close().await;
        Ok(())
    }
}
