//! Access to the SDK's clients, for what polybus does not do.

use std::sync::Arc;

use polybus_core::Result;

use crate::transport::clients::AwsClients;

/// The SDK's clients: what `bus.native::<Native>()` gives.
///
/// They share region, credentials and connections with polybus, and retry nothing but a request that was signed by a
/// wrong clock.
///
/// ```no_run
/// # async fn run(bus: polybus_core::Bus) -> Result<(), Box<dyn std::error::Error>> {
/// let native = bus.native::<polybus_aws::Native>().ok_or("this bus is not on AWS")?;
/// let url = native.queue_url("shop_payments").await?;
/// native.sqs().purge_queue().queue_url(url).send().await?;
/// # Ok(()) }
/// ```
pub struct Native(Arc<AwsClients>);

impl Native {
    pub(crate) fn new(clients: Arc<AwsClients>) -> Self {
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

    /// The number of calls to SQS and SNS over this connection, which is what AWS bills. Calls that you make on these
    /// clients count too.
    pub fn calls(&self) -> u64 {
        self.0.calls.made()
    }

    /// The URL of a queue, by its name at SQS. It is asked once and remembered.
    ///
    /// # Errors
    /// `NotFound` if there is no such queue, and the other errors of `GetQueueUrl`.
    pub async fn queue_url(&self, queue: &str) -> Result<String> {
        Ok(self.0.url(queue, "find queue").await?.to_string())
    }

    /// The ARN of a topic, by its name at SNS. It is built from region and account; whether there is such a topic is
    /// not asked.
    ///
    /// # Errors
    /// Those of finding out the account, which may ask the credentials' provider and STS.
    pub async fn topic_arn(&self, topic: &str) -> Result<String> {
        self.0.topic_arn(topic).await
    }
}
