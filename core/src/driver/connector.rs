//! What makes drivers from URLs.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    driver::{ConnectUrl, Driver},
    error::Result,
};

/// Makes drivers from URLs. Each adapter exports one.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// The URL schemes it serves, for example `amqp` and `amqps`.
    fn schemes(&self) -> &'static [&'static str];

    /// The port that a URL of this scheme means where it names none. The conformance suite puts its proxy before it.
    fn default_port(&self, scheme: &str) -> Option<u16> {
        let _ = scheme;
        None
    }

    /// Connects. Wrong credentials are `Unauthenticated`, an unreachable host is `Unavailable` with the address, a wrong
    /// URL `ConfigInvalid`; none of them shows the password. One attempt, limited in time: [`Registry::connect_within`](crate::Registry::connect_within) tries again. Parameters it does not know are `ConfigInvalid`.
    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>>;
}
