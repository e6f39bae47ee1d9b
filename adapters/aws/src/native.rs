//! The escape hatch to the SDK.

use std::sync::Arc;

use polybus_core::Result;

use crate::clients::Clients;

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

    /// The URL of a queue, by its name at SQS. Errors are those of `GetQueueUrl`.
    pub async fn queue_url(&self, queue: &str) -> Result<String> {
        Ok(self.0.url(queue, "find queue").await?.to_string())
    }

    /// The ARN of a topic, by its name at SNS. Whether there is one is not asked.
    pub async fn topic_arn(&self, topic: &str) -> Result<String> {
        self.0.topic_arn(topic).await
    }
}
