//! Amazon SQS and SNS for polybus, on the AWS SDK: standard and FIFO queues, topics with raw delivery, dead letters.
//!
//! The README lists the URL's parameters, the topology that `declare` creates, the guarantees, and the rights needed.
//!
//! A publish goes through `publish` to SQS or SNS. A message comes through a long poll of `consume`, which also settles
//! it. Both encode and decode by `message`. `topology` declares and verifies queues, topics and subscriptions. All of
//! them call AWS by the clients of `transport`.

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

/// The adapter's name in errors, metrics and option tables.
pub(crate) const BACKEND: &str = "aws";

/// Serves `aws://`: add it to a registry, and bus URLs may name SQS and SNS.
///
/// ```no_run
/// # async fn run() -> polybus_core::Result<()> {
/// let registry = polybus_core::Registry::new().with(polybus_aws::AwsConnector);
/// let driver = registry.connect("aws://?region=eu-west-1").await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct AwsConnector;

#[async_trait]
impl Connector for AwsConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["aws"]
    }

    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(driver::AwsDriver::connect(config::AwsConfig::parse(url)?).await?))
    }
}
