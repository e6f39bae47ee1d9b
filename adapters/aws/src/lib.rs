//! Amazon SQS and SNS for polybus, on the AWS SDK: standard and FIFO queues, topics with raw delivery, dead letters.
//!
//! The README tells the URL's parameters, the topology it creates, what is guaranteed, and the rights it needs.

use std::sync::Arc;

use polybus_core::{
    Result,
    driver::{ConnectUrl, Connector, Driver, async_trait},
};

mod config;
mod consume;
mod driver;
mod error;
mod message;
mod native;
mod publish;
mod topology;
mod transport;

pub use aws_sdk_sns;
pub use aws_sdk_sqs;
pub use message::native_message::NativeMessage;
pub use native::Native;

/// The name in errors, metrics and option tables.
pub(crate) const BACKEND: &str = "aws";

/// Serves `aws://`.
#[derive(Clone, Copy, Debug, Default)]
pub struct AwsConnector;

#[async_trait]
impl Connector for AwsConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["aws"]
    }

    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(driver::AwsDriver::connect(config::Config::parse(url)?).await?))
    }
}
