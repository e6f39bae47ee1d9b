//! Publishing to a queue or a topic over AMQP.

use std::sync::Arc;

use async_trait::async_trait;
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result,
    driver::{Batching, PreparedMessage, Sender},
    message::cloudevents::CopyState,
    topology::Entity,
};

use crate::{
    amqp::send_link::{EncodedMessage, SendLink},
    capabilities, config, error,
    message::envelope::{self, SendOptions},
    topology::names,
    transport::namespace::Namespace,
};

/// Most messages in one transfer: <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
const MESSAGES_PER_TRANSFER: usize = 1_000;

pub(crate) struct ServicebusSender {
    send_link: Arc<SendLink>,
    limit: usize,
    ordered: bool,
    deduplicated: bool,
}

impl ServicebusSender {
    pub(crate) fn new(namespace: Arc<Namespace>, to: &Entity<Address>) -> Result<Self> {
        Ok(Self {
            limit: namespace.config.max_message_size,
            send_link: Arc::new(SendLink::new(namespace, names::address(to))),
            ordered: to.settings.ordered,
            deduplicated: config::options(to)?.duplicate_detection.is_some(),
        })
    }
}

#[async_trait]
impl Sender for ServicebusSender {
    fn batching(&self) -> Batching {
        Batching::new(MESSAGES_PER_TRANSFER, self.limit.min(envelope::MAX_BATCH_BYTES), 4)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let envelope = &message.envelope;
        if self.ordered && envelope.key.is_none() {
            return Err(Error::invalid("an ordered address needs a key").with_context("id", &envelope.id));
        }
        let options = SendOptions {
            ordered: self.ordered,
            deduplicated: self.deduplicated,
            enqueue_at: capabilities::enqueue_time(&message)?,
            ..SendOptions::default()
        };
        let encoded = envelope::encode(envelope, &CopyState::default(), &options)?;
        let size = envelope::check_size(&encoded, self.limit)?;
        let session = envelope.key.as_deref().filter(|_| self.ordered).map(|key| envelope::session(key).into());
        Ok(PreparedMessage::new(message, size).native(EncodedMessage { bytes: encoded.into(), session }))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut encoded = Vec::with_capacity(batch.len());
        for prepared in batch {
            match prepared.native.as_ref().map(|n| n.get::<EncodedMessage>()) {
                Some(Ok(message)) => encoded.push(message.clone()),
                _ => {
                    return error::new(ErrorKind::Unexpected, "publish", "a message of another sender")
                        .for_each_of(batch.len());
                }
            }
        }
        let sent = self.send_link.send(encoded).await;
        sent.into_iter().map(|r| r.map(|()| Receipt::default())).collect()
    }

    async fn close(&self) -> Result<()> {
        self.send_link.close().await;
        Ok(())
    }
}
