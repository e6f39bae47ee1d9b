//! Azure Service Bus for polybus, on [fe2o3_amqp]: confirmed settlement, native dead letters, sessions for order.
//!
//! The README tells the URL's parameters, the topology it creates, and what is guaranteed.

use std::sync::Arc;

use polybus_core::{ConnectUrl, Connector, Driver, Result, async_trait};

mod annotations;
mod atom;
mod body;
mod broker_clock;
mod cbs;
mod config;
mod connection;
mod connection_string;
mod contract;
mod copies;
mod credential;
mod drift;
mod driver;
mod envelope;
mod error;
mod feed;
mod feeds;
mod filter;
mod guarded;
mod hold;
mod http;
#[cfg(feature = "identity")]
mod identity;
mod link;
mod lock_length;
mod locks;
mod management;
mod names;
mod native;
mod native_message;
mod native_view;
mod nesting;
mod original;
mod outlet;
mod performative;
mod pump;
mod purge;
mod receiver;
#[cfg(feature = "rest")]
mod rest_client;
#[cfg(feature = "rest")]
mod rest_driver;
#[cfg(feature = "rest")]
mod rest_feed;
#[cfg(feature = "rest")]
mod rest_hold;
#[cfg(feature = "rest")]
mod rest_letter;
#[cfg(feature = "rest")]
mod rest_native;
#[cfg(feature = "rest")]
mod rest_receiver;
#[cfg(feature = "rest")]
mod rest_sender;
#[cfg(feature = "rest")]
mod rest_settler;
mod rpc;
mod sas;
mod sender;
mod session_hand;
mod sessions;
mod settler;
mod targeting;
mod tls;
mod topology;
mod walk;
mod websocket;

#[cfg(feature = "identity")]
pub use azure_credentials as azure_core;
pub use fe2o3_amqp;
#[cfg(feature = "identity")]
pub use identity::IdentityConnector;
pub use native::Native;
pub use native_message::NativeMessage;

/// The name in errors, metrics and option tables.
pub(crate) const BACKEND: &str = "servicebus";
const SCHEMES: &[&str] = &["servicebus"];

/// Serves `servicebus://`.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServicebusConnector;

#[async_trait]
impl Connector for ServicebusConnector {
    fn schemes(&self) -> &'static [&'static str] {
        SCHEMES
    }

    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
        connect(config::Config::parse(url)?).await
    }
}

async fn connect(config: config::Config) -> Result<Arc<dyn Driver>> {
    match config.transport {
        config::Transport::Amqp | config::Transport::Websocket => {
            Ok(Arc::new(driver::ServicebusDriver::connect(config).await?))
        }
        #[cfg(feature = "rest")]
        config::Transport::Rest => Ok(Arc::new(rest_driver::RestDriver::connect(config).await?)),
        #[cfg(not(feature = "rest"))]
        config::Transport::Rest => Err(config::config_error(
            "transport=rest needs the cargo feature \"servicebus-rest\" of polybus (\"rest\" of polybus-servicebus)",
        )),
    }
}
