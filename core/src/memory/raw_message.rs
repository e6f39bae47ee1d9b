//! Messages that another program would have sent, for tests: foreign ones, and ones that cannot be decoded.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use uuid::Uuid;

use super::{MemoryDriver, fail, message_store::WakeList, stored_message::StoredMessage};
use crate::{
    Address, ErrorKind, Result,
    message::cloudevents::{WireMessage, decode},
    runtime::clock::Clock,
};

/// A message as another program would have sent it, for [`MemoryDriver::inject`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawMessage {
    /// The native content type.
    pub content_type: Option<String>,
    /// The native headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    /// The native message id. Without one the broker gives the message an id.
    pub id: Option<String>,
    /// The native correlation id.
    pub correlation_id: Option<String>,
    /// The native subject.
    pub subject: Option<String>,
    /// The other native properties, by the portable names of [`WireMessage::native`].
    pub native: Vec<(&'static str, String)>,
    /// The key of a message that names none itself.
    pub group: Option<String>,
    /// The type that a topic's filters look at, in place of the message's own.
    pub routing_key: Option<String>,
    /// How long it may be handed out, counted from when it is injected.
    pub ttl: Option<Duration>,
}

impl MemoryDriver {
    /// Puts a message into a queue or topic as if another program had sent it. It is decoded as every adapter decodes
    /// messages, so it may be foreign or malformed. The name in `to` is a physical one.
    ///
    /// # Errors
    /// `NotFound` if there is no such queue or topic, `Closed` after the driver was closed.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{*, memory::{MemoryDriver, RawMessage}};
    /// # let driver = std::sync::Arc::new(MemoryDriver::new());
    /// # let topology = Topology::new().queue("imports", QueueSpec::new().physical("imports"));
    /// # Bus::new(driver.clone(), BusOptions::topology(topology))?.declare().await?;
    /// let message = RawMessage { body: "one,two".into(), ..RawMessage::default() };
    /// driver.inject(&Address::queue("imports"), message)?;
    /// # Ok(()) }
    /// ```
    pub fn inject(&self, to: &Address, raw: RawMessage) -> Result<()> {
        self.connection.check_open()?;
        let now = self.connection.clock.now();
        let (id, address) = (raw.id.unwrap_or_else(|| Uuid::now_v7().to_string()), to.to_string());
        let headers = raw.headers.iter().map(|(k, v)| (Cow::from(k), Cow::from(v))).collect();
        let mut decoded = decode(WireMessage {
            content_type: raw.content_type.as_deref(),
            headers,
            body: raw.body,
            id: Some(&id),
            time: Some(now),
            address: &address,
            correlation_id: raw.correlation_id.as_deref(),
            subject: raw.subject.as_deref(),
            native: raw.native.iter().map(|(name, value)| (*name, Cow::from(value))).collect(),
            ..WireMessage::default()
        });
        decoded.envelope = decoded.envelope.edit(|parts| {
            parts.key = parts.key.take().or_else(|| raw.group.map(Into::into));
            let ends = raw.ttl.and_then(|ttl| now.checked_add(ttl.try_into().ok()?));
            parts.expires_at = parts.expires_at.into_iter().chain(ends).min();
        });
        let mut message = StoredMessage::new(decoded.envelope);
        message.attempts = decoded.carried.attempts;
        message.malformed = decoded.malformed;
        message.routing_key = raw.routing_key.map(Into::into);
        (message.mark, message.redriven) = (decoded.carried.mark, decoded.carried.redriven);
        let broker = &self.connection.broker;
        let mut wakers = WakeList::default();
        let stored = match to {
            Address::Queue(name) => {
                broker.queue(name).is_some_and(|q| q.publish([(message, None)].into_iter(), &mut wakers))
            }
            Address::Topic(name) => broker.topic(name).is_some_and(|t| t.publish(&[(message, None)], &mut wakers)),
        };
        wakers.wake();
        match stored {
            true => Ok(()),
            false => Err(fail(
                ErrorKind::NotFound,
                "the queue or topic does not exist: name it in the topology and call Bus::declare, or check its name",
            )
            .with_context("address", to)),
        }
    }
}
