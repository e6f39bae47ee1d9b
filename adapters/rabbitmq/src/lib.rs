//! RabbitMQ for polybus, on [lapin]: quorum queues by default, publisher confirms, delays and dead letters without plugins.
//!
//! The README tells the URL's parameters, the topology it creates, and what is guaranteed.

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

pub use consume::consumer_channel::Message;
pub use lapin;
pub use native::Native;

/// The name in errors, metrics and option tables.
pub(crate) const BACKEND: &str = "rabbitmq";

/// Serves `amqp://` and `amqps://`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RabbitmqConnector;

#[async_trait]
impl Connector for RabbitmqConnector {
    fn schemes(&self) -> &'static [&'static str] {
        &["amqp", "amqps"]
    }

    fn default_port(&self, scheme: &str) -> Option<u16> {
        Some(if scheme == "amqps" { 5671 } else { 5672 })
    }

    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
        Ok(Arc::new(driver::RabbitmqDriver::connect(config::Config::parse(url)?).await?))
    }
}
