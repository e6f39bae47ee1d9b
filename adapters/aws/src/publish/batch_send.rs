//! Sending to a queue, up to ten messages a call. Publishes and copies go this way.

use std::{collections::HashMap, time::Duration};

use aws_sdk_sqs::{
    error::BuildError,
    types::{
        MessageAttributeValue, MessageSystemAttributeNameForSends as SendName, MessageSystemAttributeValue,
        SendMessageBatchRequestEntry,
    },
};
use polybus_core::{ErrorKind, Receipt, Result};

use crate::{
    error,
    message::limits::{ENTRIES, seconds},
    transport::clients::AwsClients,
};

/// One message for a queue.
pub(crate) struct QueueMessage {
    pub(crate) body: String,
    pub(crate) attributes: HashMap<String, MessageAttributeValue>,
    /// In bytes of body and attributes.
    pub(crate) size: usize,
    pub(crate) delay: Option<Duration>,
    /// Always there on FIFO queues. On a standard queue it is the group alone, where the original had one.
    pub(crate) fifo: Option<FifoIds>,
    /// X-Ray's header of the original.
    pub(crate) trace: Option<String>,
}

/// Message group and deduplication id.
#[derive(Clone, Debug)]
pub(crate) struct FifoIds {
    pub(crate) group: String,
    pub(crate) dedup: Option<String>,
}

/// Sends messages that fit into one call. Returns one result per message, in order.
pub(crate) async fn send(
    clients: &AwsClients,
    queue: &str,
    messages: Vec<QueueMessage>,
    operation: &'static str,
) -> Vec<Result<Receipt>> {
    let count = messages.len();
    let url = match clients.url(queue, operation).await {
        Ok(url) => url,
        Err(e) => return e.for_each_of(count),
    };
    let entries = messages.into_iter().enumerate().map(|(i, message)| {
        let entry = SendMessageBatchRequestEntry::builder()
            .id(i.to_string())
            .message_body(message.body)
            .set_message_attributes(Some(message.attributes).filter(|a| !a.is_empty()))
            .set_delay_seconds(message.delay.map(seconds));
        let entry = match message.trace.map(trace) {
            Some(Ok(trace)) => entry.message_system_attributes(SendName::AwsTraceHeader, trace),
            Some(Err(e)) => return Err(e),
            None => entry,
        };
        match message.fifo {
            Some(fifo) => entry.message_group_id(fifo.group).set_message_deduplication_id(fifo.dedup),
            None => entry,
        }
        .build()
    });
    let entries: Vec<_> = match entries.collect::<Result<_, _>>() {
        Ok(entries) => entries,
        Err(e) => return error::not_built(e, operation).for_each_of(count),
    };
    let call = clients.sqs.send_message_batch().queue_url(&*url).set_entries(Some(entries));
    let output = match Box::pin(call.send()).await {
        Ok(output) => output,
        Err(e) => {
            let e = clients.missing(queue, clients.failed(e, operation).with_context("queue", queue));
            if e.kind() == ErrorKind::NotFound {
                clients.forget(queue);
            }
            return e.for_each_of(count);
        }
    };
    let mut results = BatchResults::new(count, operation);
    for done in output.successful() {
        results.set(done.id(), Ok(Receipt::with_broker_id(done.message_id())));
    }
    for failed in output.failed() {
        results.set(failed.id(), Err(clients.located(error::of_entry(failed, operation)).with_context("queue", queue)));
    }
    results.finish()
}

fn trace(header: String) -> std::result::Result<MessageSystemAttributeValue, BuildError> {
    MessageSystemAttributeValue::builder().data_type("String").string_value(header).build()
}

/// The results of a batch call whose entries have their indices as ids.
pub(crate) struct BatchResults<T> {
    results: Vec<Option<Result<T>>>,
    operation: &'static str,
}

impl<T> BatchResults<T> {
    pub(crate) fn new(count: usize, operation: &'static str) -> Self {
        Self { results: (0..count).map(|_| None).collect(), operation }
    }

    pub(crate) fn set(&mut self, id: &str, result: Result<T>) {
        if let Some(slot) = id.parse().ok().and_then(|i: usize| self.results.get_mut(i)) {
            *slot = Some(result);
        }
    }

    /// All results, in order. An entry that the answer left out is a `MayDuplicate` error: it may have been done.
    pub(crate) fn finish(self) -> Vec<Result<T>> {
        let missing = || {
            let text = "the answer says nothing about this entry of the batch";
            Err(error::new(ErrorKind::Unexpected, self.operation, text).may_duplicate())
        };
        self.results.into_iter().map(|result| result.unwrap_or_else(missing)).collect()
    }
}

/// Splits messages of these sizes into calls of at most [`ENTRIES`] entries and `max_bytes` bytes. A message that is
/// larger alone gets a call of its own.
pub(crate) fn split(sizes: &[usize], max_bytes: usize) -> Vec<std::ops::Range<usize>> {
    let mut calls = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, size) in sizes.iter().enumerate() {
        if i > start && (i - start == ENTRIES || bytes + size > max_bytes) {
            calls.push(start..i);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    if start < sizes.len() {
        calls.push(start..sizes.len());
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::limits::QUEUE_BYTES;

    fn split(sizes: &[usize]) -> Vec<std::ops::Range<usize>> {
        super::split(sizes, QUEUE_BYTES)
    }

    #[test]
    fn calls_hold_ten_entries_and_a_mebibyte() {
        assert!(split(&[]).is_empty());
        assert_eq!(split(&[1; 25]), [0..10, 10..20, 20..25]);
        let half = QUEUE_BYTES / 2;
        assert_eq!(split(&[half, half]), std::slice::from_ref(&(0..2)));
        assert_eq!(split(&[half, half + 1, half, half]), [0..1, 1..2, 2..4]);
        assert_eq!(split(&[2 * QUEUE_BYTES, 1]), [0..1, 1..2]);
    }

    #[test]
    fn an_entry_the_answer_leaves_out_is_no_success() {
        let mut results = BatchResults::new(3, "publish");
        results.set("2", Ok(()));
        results.set("7", Ok(()));
        let results = results.finish();
        assert!(results[2].is_ok() && results[0].is_err() && results[1].is_err());
    }
}
