//! The twins: what is written on the AWS SDK alone, with care and without.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use polybus_aws::{
    AwsConnector, Native as Sdk,
    aws_sdk_sqs::{
        self,
        types::{DeleteMessageBatchRequestEntry, Message, MessageAttributeValue, SendMessageBatchRequestEntry},
    },
};
use polybus_core::{Bus, BusOptions, Envelope, QueueSpec, Registry, Topology, message::cloudevents};
use tokio::task::JoinSet;

use crate::{BATCH, PAYLOAD, RECEIVES, SENDS, Setup};

/// polybus' own clients, so that both sides have the same region, credentials, connections and no retries.
pub(crate) struct Native {
    client: aws_sdk_sqs::Client,
    queue: Arc<str>,
}

impl Native {
    pub(crate) async fn open(setup: &Setup) -> Self {
        let driver = Registry::new().with(AwsConnector).connect(&setup.url).await.unwrap();
        let topology = Topology::new().queue("bench", QueueSpec::new().physical(&setup.queue));
        let bus = Bus::new(driver, BusOptions::topology(topology)).unwrap();
        bus.declare().await.unwrap();
        let sdk = bus.native::<Sdk>().unwrap();
        Self { client: sdk.sqs().clone(), queue: sdk.queue_url(&setup.queue).await.unwrap().into() }
    }

    /// Sends in batches of ten, several under way at once. `alike`: with the body and the attributes that polybus
    /// sends.
    pub(crate) async fn publish(&self, messages: usize, alike: bool) {
        let left = Arc::new(AtomicUsize::new(messages));
        let mut tasks = JoinSet::new();
        for _ in 0..SENDS {
            let (client, queue, left) = (self.client.clone(), self.queue.clone(), left.clone());
            tasks.spawn(async move {
                loop {
                    let n = take(&left, BATCH);
                    if n == 0 {
                        return;
                    }
                    let entries = (0..n).map(|i| entry(i, alike)).collect();
                    let call = client.send_message_batch().queue_url(&*queue).set_entries(Some(entries));
                    let output = Box::pin(call.send()).await.unwrap();
                    assert_eq!((output.successful().len(), output.failed().len()), (n, 0));
                }
            });
        }
        tasks.join_all().await;
    }

    /// Receives up to ten and deletes them in one call, several at once.
    pub(crate) async fn consume(&self, messages: usize) {
        let left = Arc::new(AtomicUsize::new(messages));
        let mut tasks = JoinSet::new();
        for _ in 0..RECEIVES {
            let (client, queue, left) = (self.client.clone(), self.queue.clone(), left.clone());
            tasks.spawn(async move {
                while left.load(Ordering::Relaxed) > 0 {
                    let call = client.receive_message().queue_url(&*queue).max_number_of_messages(10);
                    // No long poll: the end of the round is not to be waited for.
                    let output =
                        Box::pin(call.wait_time_seconds(0).message_attribute_names("All").send()).await.unwrap();
                    let received = output.messages.unwrap_or_default();
                    if received.is_empty() {
                        continue;
                    }
                    let entries = received.iter().enumerate().map(deletion).collect();
                    let call = client.delete_message_batch().queue_url(&*queue).set_entries(Some(entries));
                    let output = Box::pin(call.send()).await.unwrap();
                    assert!(output.failed().is_empty());
                    left.fetch_sub(received.len(), Ordering::Relaxed);
                }
            });
        }
        tasks.join_all().await;
    }

    /// Sends, receives and deletes one message, then the next.
    pub(crate) async fn one_at_a_time(&self, messages: usize) {
        let queue = &*self.queue;
        for _ in 0..messages {
            let call = self.client.send_message().queue_url(queue).message_body("x".repeat(PAYLOAD));
            Box::pin(call.send()).await.unwrap();
            let call = self.client.receive_message().queue_url(queue).wait_time_seconds(20);
            let output = Box::pin(call.send()).await.unwrap();
            let handle = output.messages()[0].receipt_handle().unwrap();
            Box::pin(self.client.delete_message().queue_url(queue).receipt_handle(handle).send()).await.unwrap();
        }
    }
}

fn take(left: &AtomicUsize, most: usize) -> usize {
    let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| Some(n.saturating_sub(most)));
    taken.unwrap().min(most)
}

fn entry(i: usize, alike: bool) -> SendMessageBatchRequestEntry {
    let entry = SendMessageBatchRequestEntry::builder().id(i.to_string());
    if !alike {
        return entry.message_body("x".repeat(PAYLOAD)).build().unwrap();
    }
    let envelope = Envelope::new("bench.message", vec![b'x'; PAYLOAD]).source("polybus");
    let text = |value: &str| MessageAttributeValue::builder().data_type("String").string_value(value).build().unwrap();
    entry
        .message_body(cloudevents::encode_structured(&envelope, &Default::default()))
        .message_attributes("content-type", text(cloudevents::STRUCTURED))
        .message_attributes("cloudEvents_type", text(&envelope.event_type))
        .message_attributes("cloudEvents_source", text(&envelope.source))
        .build()
        .unwrap()
}

fn deletion((i, message): (usize, &Message)) -> DeleteMessageBatchRequestEntry {
    let handle = message.receipt_handle().unwrap();
    DeleteMessageBatchRequestEntry::builder().id(i.to_string()).receipt_handle(handle).build().unwrap()
}
