//! The twins: what a careful programmer writes on the SDK alone, batching by ten, and what a hasty one does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use polybus_aws::aws_sdk_sqs::{
    Client,
    types::{DeleteMessageBatchRequestEntry, SendMessageBatchRequestEntry},
};
use tokio::task::JoinSet;

use crate::{PAYLOAD, Setup, TASKS, rate};

#[derive(Clone)]
pub(crate) struct Native {
    pub(crate) client: Client,
    pub(crate) url: String,
    pub(crate) messages: usize,
    /// Messages a call: 10 or 1.
    pub(crate) by: usize,
}

impl Native {
    pub(crate) fn new(setup: &Setup, client: &Client, url: &str, by: usize) -> Self {
        Self { client: client.clone(), url: url.to_owned(), messages: setup.messages / if by == 1 { 4 } else { 1 }, by }
    }

    /// Runs `step` in as many tasks as polybus has calls under way, until all messages are through; messages a second.
    async fn run<F: Future<Output = usize> + Send + 'static>(&self, step: fn(Self) -> F) -> f64 {
        let left = Arc::new(AtomicUsize::new(self.messages));
        let started = Instant::now();
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            let (this, left) = (self.clone(), left.clone());
            tasks.spawn(async move {
                while left.load(Ordering::Relaxed) > 0 {
                    let n = step(this.clone()).await;
                    let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |l| Some(l.saturating_sub(n)));
                }
            });
        }
        tasks.join_all().await;
        rate(self.messages, started)
    }

    pub(crate) async fn publish(&self) -> f64 {
        self.run(Self::send).await
    }

    /// Fills the queue, then receives and deletes.
    pub(crate) async fn consume(&self) -> f64 {
        self.publish().await;
        self.run(Self::receive_and_delete).await
    }

    async fn send(self) -> usize {
        let body = "x".repeat(PAYLOAD);
        if self.by == 1 {
            self.client.send_message().queue_url(&self.url).message_body(body).send().await.unwrap();
            return 1;
        }
        let entry = |i: usize| SendMessageBatchRequestEntry::builder().id(i.to_string()).message_body(&body).build();
        let entries = (0..self.by).map(|i| entry(i).unwrap()).collect();
        let call = self.client.send_message_batch().queue_url(&self.url).set_entries(Some(entries));
        assert!(call.send().await.unwrap().failed().is_empty());
        self.by
    }

    async fn receive_and_delete(self) -> usize {
        let call = self.client.receive_message().queue_url(&self.url).max_number_of_messages(self.by as i32);
        let messages = call.wait_time_seconds(1).send().await.unwrap().messages.unwrap_or_default();
        let handles: Vec<&str> = messages.iter().map(|m| m.receipt_handle().unwrap()).collect();
        if let (1, Some(handle)) = (self.by, handles.first()) {
            self.client.delete_message().queue_url(&self.url).receipt_handle(*handle).send().await.unwrap();
        } else if !handles.is_empty() {
            let entry = |(i, handle): (usize, &&str)| {
                DeleteMessageBatchRequestEntry::builder().id(i.to_string()).receipt_handle(*handle).build().unwrap()
            };
            let entries = handles.iter().enumerate().map(entry).collect();
            let call = self.client.delete_message_batch().queue_url(&self.url).set_entries(Some(entries));
            assert!(call.send().await.unwrap().failed().is_empty());
        }
        handles.len()
    }
}
