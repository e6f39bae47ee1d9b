//! Publishing to a queue or a topic.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result,
    driver::{Batching, PreparedMessage, Sender},
    message::cloudevents::CopyState,
    topology::Entity,
};
use time::OffsetDateTime;

use crate::{
    amqp::{
        connection::Wires,
        send_link::{Outlet, Parcel},
    },
    config, error,
    message::envelope::{self, Postage},
    topology::names,
};

/// As far as dates go that every part of the service understands.
pub(crate) const MAX_DELAY: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Most messages in one transfer: <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-quotas>
const ENTRIES: usize = 1_000;

pub(crate) struct ServicebusSender {
    outlet: Arc<Outlet>,
    limit: usize,
    ordered: bool,
    deduplicated: bool,
}

impl ServicebusSender {
    pub(crate) fn new(wires: Arc<Wires>, to: &Entity<Address>) -> Result<Self> {
        Ok(Self {
            limit: wires.config.max_message_size,
            outlet: Arc::new(Outlet::new(wires, names::address(to))),
            ordered: to.settings.ordered,
            deduplicated: config::options(to)?.duplicate_detection.is_some(),
        })
    }
}

#[async_trait]
impl Sender for ServicebusSender {
    fn batching(&self) -> Batching {
        Batching::new(ENTRIES, self.limit.min(envelope::LARGEST_BATCH), 4)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let envelope = &message.envelope;
        if self.ordered && envelope.key.is_none() {
            return Err(Error::invalid("an ordered address needs a key").with_context("id", &envelope.id));
        }
        let delay = message.delay.filter(|d| !d.is_zero());
        if delay.is_some_and(|d| d > MAX_DELAY) {
            return Err(error::new(
                ErrorKind::Unsupported,
                "publish",
                "Service Bus delays messages by ten years at most",
            ));
        }
        let postage = Postage {
            ordered: self.ordered,
            deduplicated: self.deduplicated,
            enqueue_at: delay.map(|d| OffsetDateTime::now_utc() + d),
            ..Postage::default()
        };
        let encoded = envelope::encode(envelope, &CopyState::default(), &postage)?;
        let size = envelope::check_size(&encoded, self.limit)?;
        let session = envelope.key.as_deref().filter(|_| self.ordered).map(|key| envelope::session(key).into());
        Ok(PreparedMessage::new(message, size).native(Parcel { bytes: encoded.into(), session }))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut encoded = Vec::with_capacity(batch.len());
        for prepared in batch {
            match prepared.native.as_ref().map(|n| n.get::<Parcel>()) {
                Some(Ok(parcel)) => encoded.push(parcel.clone()),
                _ => {
                    return error::new(ErrorKind::Unexpected, "publish", "a message of another sender")
                        .for_each_of(batch.len());
                }
            }
        }
        let sent = self.outlet.send(encoded).await;
        sent.into_iter().map(|r| r.map(|()| Receipt::default())).collect()
    }

    async fn close(&self) -> Result<()> {
        self.outlet.close().await;
        Ok(())
    }
}
