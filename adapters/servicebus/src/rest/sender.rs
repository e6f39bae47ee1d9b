//! Publishing to a queue or a topic over HTTP: a single message as it is, several in a batch.

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

use crate::{
    capabilities, config, error,
    message::envelope::{self, SendOptions},
    rest::{
        client::RestClient,
        message_out::{self, BATCH_CONTENT_TYPE, PostedMessage},
    },
    topology::names,
};

/// The most messages in a batch, and the most requests at once where each message goes alone.
const MESSAGES_PER_BATCH: usize = 100;
const CONCURRENT_SINGLE_SENDS: usize = 16;

pub(crate) struct RestSender {
    client: RestClient,
    path: String,
    limit: usize,
    deduplicated: bool,
}

/// A message, and its entry in a batch if it can have one.
struct PreparedPost {
    message: PostedMessage,
    entry: Option<String>,
}

impl RestSender {
    pub(crate) fn new(client: RestClient, to: &Entity<Address>, limit: usize) -> Result<Self> {
        let deduplicated = config::options(to)?.duplicate_detection.is_some();
        Ok(Self { client, path: names::address(to), limit, deduplicated })
    }

    async fn send_one(&self, message: &PostedMessage) -> Result<()> {
        let (headers, body) = message.as_request()?;
        self.client.send(&self.path, headers, body).await
    }

    async fn send_each(&self, messages: &[&PreparedPost]) -> Vec<Result<()>> {
        let mut results = Vec::with_capacity(messages.len());
        for some in messages.chunks(CONCURRENT_SINGLE_SENDS) {
            results.extend(join_all(some.iter().map(|one| self.send_one(&one.message))).await);
        }
        results
    }

    async fn send_batch(&self, messages: &[&PreparedPost]) -> Vec<Result<()>> {
        let entries: Option<Vec<&str>> = messages.iter().map(|one| one.entry.as_deref()).collect();
        let Some(entries) = entries.filter(|entries| entries.len() > 1) else {
            return self.send_each(messages).await;
        };
        let body = Bytes::from(format!("[{}]", entries.join(",")));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(BATCH_CONTENT_TYPE));
        match self.client.send(&self.path, headers, body).await {
            Ok(()) => messages.iter().map(|_| Ok(())).collect(),
            // The broker stores all of a batch or nothing. One message may be the cause, so each is sent alone.
            Err(e) if matches!(e.kind(), ErrorKind::PayloadTooLarge | ErrorKind::InvalidArgument) => {
                self.send_each(messages).await
            }
            Err(e) => e.for_each_of(messages.len()),
        }
    }
}

#[async_trait]
impl Sender for RestSender {
    fn batching(&self) -> Batching {
        Batching::new(MESSAGES_PER_BATCH, self.limit.min(envelope::MAX_BATCH_BYTES), 4)
    }

    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
        let enqueue_at = capabilities::enqueue_time(&message)?;
        let options = SendOptions { deduplicated: self.deduplicated, enqueue_at, ..SendOptions::default() };
        let encoded = message_out::encode(&message.envelope, &CopyState::default(), &options)?;
        let size = encoded.check_size(self.limit)?;
        let entry = encoded.as_batch_entry();
        // An entry is longer than the message, since it holds JSON within JSON. Its size decides whether the message
        // fits into a batch.
        let size = entry.as_ref().map_or(size, |entry| entry.len() + 1).max(size);
        Ok(PreparedMessage::new(message, size).native(PreparedPost { message: encoded, entry }))
    }

    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
        let mut messages = Vec::with_capacity(batch.len());
        for prepared in batch {
            match prepared.native.as_ref().map(|n| n.get::<PreparedPost>()) {
                Some(Ok(one)) => messages.push(one),
                _ => {
                    let e: Error = error::new(ErrorKind::Unexpected, "publish", "a message of another sender");
                    return e.for_each_of(batch.len());
                }
            }
        }
        let sent = self.send_batch(&messages).await;
        sent.into_iter().map(|r| r.map(|()| Receipt::default())).collect()
    }
}
