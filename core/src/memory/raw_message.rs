//! Messages from elsewhere, for tests: foreign ones, and ones that cannot be decoded.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use uuid::Uuid;

use super::{MemoryDriver, fail, message::Message, message_store::Wakers};
use crate::{
    error::{ErrorKind, Result},
    message::cloudevents::{WireMessage, decode},
    runtime::clock::Clock,
    topology::Address,
};

/// A message as another program would have sent it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raw {
    /// The native content type.
    pub content_type: Option<String>,
    /// The native headers.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Bytes,
    /// The native message id; the broker gives one if there is none.
    pub id: Option<String>,
    /// The native correlation id.
    pub correlation_id: Option<String>,
    /// The native subject.
    pub subject: Option<String>,
    /// The other native properties, by the portable names of [`WireMessage::native`].
    pub native: Vec<(&'static str, String)>,
    /// What orders it: the key of a message that names none itself.
    pub group: Option<String>,
    /// A topic gives it to the subscriptions that want this type, whatever its own.
    pub routing_key: Option<String>,
    /// It is never handed out after this time.
    pub ttl: Option<Duration>,
}

impl MemoryDriver {
    /// Puts a message into a queue or topic as if another program had sent it, and decodes it as every adapter does: it may
    /// be foreign or malformed. The names of `to` are physical ones. `NotFound` if there is no such queue or topic.
    pub fn inject(&self, to: &Address, raw: Raw) -> Result<()> {
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
        });
        decoded.envelope = decoded.envelope.edit(|parts| {
            parts.key = parts.key.take().or_else(|| raw.group.map(Into::into));
            let ends = raw.ttl.and_then(|ttl| now.checked_add(ttl.try_into().ok()?));
            parts.expires_at = parts.expires_at.into_iter().chain(ends).min();
        });
        let mut message = Message::new(decoded.envelope);
        message.attempts = decoded.carried.attempts;
        message.malformed = decoded.malformed;
        message.routing_key = raw.routing_key.map(Into::into);
        (message.mark, message.redriven) = (decoded.carried.mark, decoded.carried.redriven);
        let broker = &self.connection.broker;
        let mut wakers = Wakers::default();
        let stored = match to {
            Address::Queue(name) => {
                broker.queue(name).is_some_and(|q| q.publish([(message, None)].into_iter(), &mut wakers))
            }
            Address::Topic(name) => broker.topic(name).is_some_and(|t| t.publish(&[(message, None)], &mut wakers)),
        };
        wakers.wake();
        match stored {
            true => Ok(()),
            false => {
                Err(fail(ErrorKind::NotFound, "no such queue or topic: declare it first").with_context("address", to))
            }
        }
    }
}
