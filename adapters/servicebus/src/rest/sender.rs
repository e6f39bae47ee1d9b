//! Publishing to a queue or a topic over HTTP: one message as it is, several in a batch.

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use hyper::{HeaderMap, header::CONTENT_TYPE, header::HeaderValue};
use polybus_core::{
    Address, Error, ErrorKind, Outgoing, Receipt, Result,
    driver::{Batching, PreparedMessage, Sender},
    message::cloudevents::CopyState,
    topology::Entity,
};
use time::OffsetDateTime;

use crate::{
    amqp::sender::MAX_DELAY,
    config, error,
    message::envelope::{self, Postage},
    rest::{
        client::Rest,
        message_out::{self, BATCH, RestDeadLetter},
    },
    topology::names,
};

/// Most messages in a batch, and most requests at once where each goes alone.
const ENTRIES: usize = 100;
const ALONE: usize = 16;

pub(crate) struct RestSender {
    rest: Rest,
    path: String,
    limit: usize,
    deduplicated: bool,
}

/// A letter, and how it stands in a batch if it can.
struct Packed {
    letter: RestDeadLetter,
    entry: Option<String>,
}

impl RestSender {
    pub(crate) fn new(rest: Rest, to: &Entity<Address>, limit: usize) -> Result<Self> {
        let deduplicated = config::options(to)?.duplicate_detection.is_some();
        Ok(Self { rest, path: names::address(to), limit, deduplicated })
    }

    async fn alone(&self, letter: &RestDeadLetter) -> Result<()> {
        let (headers, body) = letter.alone()?;
        self.rest.send(&self.path, headers, body).await
    }

    async fn each_alone(&self, packed: &[&Packed]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(packed.len());
        for some in packed.chunks(ALONE) {
            results.extend(join_all(some.iter().map(|one| self.alone(&one.letter))).await);
        }
        results
    }

    async fn together(&self, packed: &[&Packed]) -> Vec<Result<()>> {
        let entries: Option<Vec<&str>> = packed.iter().map(|one| one.entry.as_deref()).collect();
        let Some(entries) = entries.filter(|entries| entries.len() > 1) else {
            return self.each_alone(packed).await;
        };
        let body = Bytes::from(format!("[{}]", entries.join(",")));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(BATCH));
        match self.rest.send(&self.path, headers, body).await {
            Ok(()) => packed.iter().map(|_| Ok(())).collect(),
            // One of them may be the cause: a batch is stored as a whole or not at all.
            Err(e) if matches!(e.kind(), ErrorKind::PayloadTooLarge | ErrorKind::InvalidArgument) => {
                self.each_alone(packed).await
            }
            Err(e) => e.for_each_of(packed.len()),
        }
    }
}

#[async_trait]
impl Sender for RestSender {
    fn batching(&self) -> Batching {
        Batching::new(ENTRIES, self.limit.min(envelope::LARGEST_BATCH), 4)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let delay = message.delay.filter(|d| !d.is_zero());
        if delay.is_some_and(|d| d > MAX_DELAY) {
            return Err(error::new(
                ErrorKind::Unsupported,
                "publish",
                "Service Bus delays messages by ten years at most",
            ));
        }
        let postage = Postage {
            deduplicated: self.deduplicated,
            enqueue_at: delay.map(|d| OffsetDateTime::now_utc() + d),
            ..Postage::default()
        };
        let letter = message_out::encode(&message.envelope, &CopyState::default(), &postage)?;
        let size = letter.check_size(self.limit)?;
        let entry = letter.in_batch();
        // JSON in JSON is longer than either; what is then too long for a batch goes alone.
        let size = entry.as_ref().map_or(size, |entry| entry.len() + 1).max(size);
        Ok(PreparedMessage::new(message, size).native(Packed { letter, entry }))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut packed = Vec::with_capacity(batch.len());
        for prepared in batch {
            match prepared.native.as_ref().map(|n| n.get::<Packed>()) {
                Some(Ok(one)) => packed.push(one),
                _ => {
                    let e: Error = error::new(ErrorKind::Unexpected, "publish", "a message of another sender");
                    return e.for_each_of(batch.len());
                }
            }
        }
        let sent = self.together(&packed).await;
        sent.into_iter().map(|r| r.map(|()| Receipt::default())).collect()
    }
}
