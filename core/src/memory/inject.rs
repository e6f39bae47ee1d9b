//! Messages from elsewhere, for tests: foreign ones, and ones that cannot be decoded.

use std::borrow::Cow;

use bytes::Bytes;
use uuid::Uuid;

use super::{MemoryDriver, fail, half::Wakers, message::Message};
use crate::{
    Address, Clock, Kind, Result,
    cloudevents::{Wire, decode},
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
}

impl MemoryDriver {
    /// Puts a message into a queue or topic as if another program had sent it, and decodes it as every adapter does: it may
    /// be foreign or malformed. The names of `to` are physical ones. `NotFound` if there is no such queue or topic.
    pub fn inject(&self, to: &Address, raw: Raw) -> Result<()> {
        self.connection.check_open()?;
        let (id, address) = (Uuid::now_v7().to_string(), to.to_string());
        let headers = raw.headers.iter().map(|(k, v)| (Cow::from(k), Cow::from(v))).collect();
        let decoded = decode(Wire {
            content_type: raw.content_type.as_deref(),
            headers,
            body: raw.body,
            id: Some(&id),
            time: Some(self.connection.clock.now()),
            address: &address,
        });
        let mut message = Message::new(decoded.envelope);
        message.attempts = decoded.carried.attempts;
        message.malformed = decoded.malformed;
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
            false => Err(fail(Kind::NotFound, "no such queue or topic: declare it first").with("address", to)),
        }
    }
}
