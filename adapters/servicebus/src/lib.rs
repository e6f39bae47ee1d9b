//! Azure Service Bus for polybus: confirmed settlement, native dead letters, sessions for order.
//!
//! The README lists the parameters of the URL, the entities that are made, and what is guaranteed.
//!
//! A message comes and goes by one of two drivers: `amqp`, over [fe2o3_amqp], or `rest`, over HTTPS alone. Both share
//! the chapters `auth` (credentials), `topology` (entities), `message` (encoding), `consume` (held deliveries) and
//! `transport` (connections), and keep the same promises.
//!
//! ```
//! use polybus_core::Registry;
//! use polybus_servicebus::ServicebusConnector;
//!
//! let registry = Registry::new().with(ServicebusConnector);
//! # let _ = registry;
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

use std::sync::Arc;

use polybus_core::{
    Result,
    driver::{ConnectUrl, Connector, Driver, async_trait},
};

mod amqp;
mod auth;
mod capabilities;
mod config;
mod consume;
mod error;
mod message;
mod native;
#[cfg(feature = "rest")]
mod rest;
mod topology;
mod transport;

#[cfg(feature = "identity")]
#[cfg_attr(docsrs, doc(cfg(feature = "identity")))]
pub use auth::identity::IdentityConnector;
#[cfg(feature = "identity")]
#[cfg_attr(docsrs, doc(cfg(feature = "identity")))]
pub use azure_credentials as azure_core;
pub use fe2o3_amqp;
pub use message::native_message::NativeMessage;
pub use native::Native;

/// The name of this backend in errors, metrics and option tables.
pub(crate) const BACKEND: &str = "servicebus";
const SCHEMES: &[&str] = &["servicebus"];

/// Serves `servicebus://`. A URL names the namespace and a key, such as
/// `servicebus://KEY-NAME:KEY@shop.servicebus.windows.net`, or holds a connection string.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServicebusConnector;

#[async_trait]
impl Connector for ServicebusConnector {
    fn schemes(&self) -> &'static [&'static str] {
        SCHEMES
    }

    /// That of AMQP over TLS. The emulators' is 5672, and goes into the URL.
    fn default_port(&self, _: &str) -> Option<u16> {
        Some(5671)
    }

    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
        connect(config::Config::parse(url)?).await
    }
}

async fn connect(config: config::Config) -> Result<Arc<dyn Driver>> {
    match config.transport {
        config::Transport::Amqp | config::Transport::Websocket => {
            Ok(Arc::new(amqp::driver::ServicebusDriver::connect(config).await?))
        }
        #[cfg(feature = "rest")]
        config::Transport::Rest => Ok(Arc::new(rest::driver::RestDriver::connect(config).await?)),
        #[cfg(not(feature = "rest"))]
        config::Transport::Rest => Err(config::config_error(
            "transport=rest needs the cargo feature \"servicebus-rest\" of polybus (\"rest\" of polybus-servicebus)",
        )),
    }
}
