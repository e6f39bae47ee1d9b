//! The escape hatch to the SDK.

use std::sync::Arc;

use polybus_core::Result;

use crate::transport::clients::Clients;

/// What `bus.native::<Native>()` gives: the SDK's clients, for what polybus does not do.
///
/// They retry nothing, and share region, credentials and connections with polybus.
pub struct Native(Arc<Clients>);

impl Native {
    pub(crate) fn new(clients: Arc<Clients>) -> Self {
        Self(clients)
    }

    /// The client for SQS.
    pub fn sqs(&self) -> &aws_sdk_sqs::Client {
        &self.0.sqs
    }

    /// The client for SNS.
    pub fn sns(&self) -> &aws_sdk_sns::Client {
        &self.0.sns
    }

    /// How many calls to SQS and SNS this connection has made, yours on these clients included: what AWS bills.
    pub fn calls(&self) -> u64 {
        self.0.calls.made()
    }

    /// The URL of a queue, by its name at SQS. Errors are those of `GetQueueUrl`.
    pub async fn queue_url(&self, queue: &str) -> Result<String> {
        Ok(self.0.url(queue, "find queue").await?.to_string())
    }

    /// The ARN of a topic, by its name at SNS. Whether there is one is not asked.
    pub async fn topic_arn(&self, topic: &str) -> Result<String> {
        self.0.topic_arn(topic).await
    }
}
