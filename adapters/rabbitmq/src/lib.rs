//! RabbitMQ for polybus, built on [lapin]. It serves the URL schemes `amqp` and `amqps`, and needs no plugins.
//!
//! Queues are quorum queues by default. Every publish waits for the broker's confirm. Delays and dead letters are
//! queues that `declare` makes. [`RabbitmqConnector`] lists the parameters of the URL. The README describes the
//! entities that polybus makes at the broker, and what is guaranteed.
//!
//! ```no_run
//! use polybus_core::{Bus, BusOptions, QueueSpec, Registry, Topology};
//! use polybus_rabbitmq::RabbitmqConnector;
//!
//! # async fn example() -> polybus_core::Result<()> {
//! let registry = Registry::new().with(RabbitmqConnector);
//! let driver = registry.connect("amqp://guest:guest@localhost:5672/%2f?heartbeat=10s").await?;
//! let bus = Bus::new(driver, BusOptions::topology(Topology::new().queue("orders", QueueSpec::new())))?;
//! # Ok(())
//! # }
//! ```
//!
//! Inside the crate, `driver.rs` comes first: it opens senders and receivers. A published message goes through
//! `message/` (encoding) and `publish/` (confirms). A consumed message goes through `transport/sanitizer/` (bytes
//! that lapin cannot read), `message/` (decoding) and `consume/`. `topology/` declares and inspects entities, and
//! `transport/` holds the connections.

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

pub use consume::consumer_channel::NativeMessage;
pub use lapin;
pub use native::Native;

/// The name of this adapter in errors, metrics and option tables.
pub(crate) const BACKEND: &str = "rabbitmq";

/// Connects to RabbitMQ by URLs of the schemes `amqp` and `amqps`.
///
/// The URL is `amqp[s]://user:password@host:port/vhost?parameter=value`. User and password are `guest` by default,
/// the port is 5672, or 5671 with `amqps`. Without a path the virtual host is `/`; another one is written in
/// percent-encoding. The parameters are:
///
/// | parameter | value | default |
/// |---|---|---|
/// | `queue_type` | `quorum` or `classic`, for queues whose options name none | `quorum` |
/// | `max_message_size` | body, properties and headers together, up to `512MiB` | `16MiB` |
/// | `management` | `http[s]://[user:password@]host[:port][/path]` of the management API | none |
/// | `heartbeat` | whole seconds from `1s` to `1h`; a peer silent for twice as long is given up | `20s` |
/// | `connect_timeout` | for TCP, TLS and login together, above zero and up to `5m` | `10s` |
/// | `connection_name` | the connections' name in the broker's tools | `polybus` |
/// | `cloudevents` | prefix of written attributes: `amqp` is `cloudEvents:`, `ce` is `ce-` | `amqp` |
/// | `cacert` | PEM file; its authorities alone are trusted; `amqps` only | the machine's |
/// | `cert`, `key` | PEM files of a client certificate and its key; `amqps` only, both together | none |
///
/// A size is a number of bytes or has a unit (`64KiB`). A duration has a unit (`10s`); a plain number is seconds.
///
/// A queue, topic or subscription has a table `options.rabbitmq`, for example `[queues.orders.options.rabbitmq]`. The
/// table of a topic holds for its subscriptions:
///
/// | option | value | default |
/// |---|---|---|
/// | `queue_type` | `quorum` or `classic` | the URL's |
/// | `partitions` | how many queues share the keys of an ordered source, 1 to 64; fixed once created | 4 |
/// | `consumer_timeout` | a duration: the broker's own setting of that name | [`30m`] |
///
/// [`30m`]: https://www.rabbitmq.com/docs/consumers#acknowledgement-timeout
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
        Ok(Arc::new(driver::RabbitmqDriver::connect(config::RabbitmqConfig::parse(url)?).await?))
    }
}
