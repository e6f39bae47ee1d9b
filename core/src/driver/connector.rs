//! Makes drivers of URLs.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    Result,
    driver::{ConnectUrl, Driver},
};

/// Makes drivers of URLs. Each adapter exports one, and an application registers it with
/// [`Registry::with`](crate::Registry::with).
///
/// ```
/// use std::sync::Arc;
/// use polybus_core::{Registry, Result, driver::{ConnectUrl, Connector, Driver, async_trait}, memory::MemoryDriver};
///
/// /// Serves `demo://` with a broker of its own in this process.
/// struct DemoConnector;
///
/// #[async_trait]
/// impl Connector for DemoConnector {
///     fn schemes(&self) -> &'static [&'static str] {
///         &["demo"]
///     }
///
///     async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>> {
///         if let Some(name) = url.parameters()?.keys().next() {
///             return Err(url.unknown_parameter(name, ""));
///         }
///         Ok(Arc::new(MemoryDriver::new()))
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<()> {
/// let driver = Registry::new().with(DemoConnector).connect("demo://").await?;
/// # assert_eq!(driver.backend(), "memory");
/// # Ok(()) }
/// ```
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// The URL schemes that it serves, for example `amqp` and `amqps`.
    fn schemes(&self) -> &'static [&'static str];

    /// The port of a URL of this scheme that names none. The conformance suite needs it to put a proxy before the
    /// broker.
    fn default_port(&self, scheme: &str) -> Option<u16> {
        let _ = scheme;
        None
    }

    /// Connects, in one attempt that is limited in time. [`Registry::connect_within`](crate::Registry::connect_within)
    /// tries again.
    ///
    /// # Errors
    /// `Unauthenticated` for wrong credentials, `Unavailable` with the address for a host that cannot be reached,
    /// `ConfigInvalid` for a wrong URL and for parameters that the connector does not know. No error shows the
    /// password.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no connection behind.
    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>>;
}
