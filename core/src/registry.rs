//! The registry: the adapters that a program knows, by the scheme of the URL.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    Error, Result,
    connection::retry_until::{attempt_until, retry_until},
    driver::{ConnectUrl, Connector, Driver, pasted_urls},
    runtime::duration,
};

/// The connectors that a program knows, by URL scheme.
///
/// `polybus::registry()` has those of all enabled adapters. Add your own with [`with`](Self::with).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// use polybus_core::{Bus, BusOptions, Registry};
///
/// let driver = Registry::new().connect("memory://").await?;
/// let bus = Bus::new(driver, BusOptions::new())?;
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Registry {
    by_scheme: BTreeMap<&'static str, Arc<dyn Connector>>,
    /// The cargo features of schemes that are known and switched off, for the error message.
    feature_off: BTreeMap<&'static str, &'static str>,
}

impl Registry {
    /// A registry that knows `memory://` alone.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// let driver = polybus_core::Registry::new().connect("memory://").await?;
    /// assert_eq!(driver.backend(), "memory");
    /// # Ok(()) }
    /// ```
    pub fn new() -> Self {
        Self::default().with(crate::memory::MemoryConnector)
    }

    /// Adds a connector. It takes over its schemes from an earlier connector that has them.
    ///
    /// ```
    /// use polybus_core::{Registry, memory::MemoryConnector};
    ///
    /// let registry = Registry::new().with(MemoryConnector);
    /// # let _ = registry;
    /// ```
    pub fn with(mut self, connector: impl Connector) -> Self {
        let connector: Arc<dyn Connector> = Arc::new(connector);
        for scheme in connector.schemes() {
            self.by_scheme.insert(scheme, connector.clone());
            self.feature_off.remove(scheme);
        }
        self
    }

    /// Names the cargo feature that would bring the connector of this scheme. The error of [`connect`](Self::connect)
    /// names it then.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// let registry = polybus_core::Registry::new().with_feature_off("amqp", "rabbitmq");
    /// let e = registry.connect("amqp://localhost").await.map(|_| ()).unwrap_err();
    /// assert!(e.to_string().contains("needs the cargo feature \"rabbitmq\""));
    /// # }
    /// ```
    pub fn with_feature_off(mut self, scheme: &'static str, feature: &'static str) -> Self {
        self.feature_off.insert(scheme, feature);
        self
    }

    /// The port that a URL of this scheme means if it names none. `None` if the scheme has no port, or is unknown.
    ///
    /// ```
    /// assert_eq!(polybus_core::Registry::new().default_port("memory"), None);
    /// ```
    pub fn default_port(&self, scheme: &str) -> Option<u16> {
        self.by_scheme.get(scheme)?.default_port(scheme)
    }

    /// Connects by URL, and waits up to `limit` for a broker that is not there yet, so that a service may start before
    /// its broker.
    ///
    /// While connecting fails with `Unavailable`, `Timeout` or `Throttled`, it is tried again with a backoff of 50 ms
    /// to 2 s. The first failure is a warning in the log.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect): the last one after `limit`, and at once those that waiting cannot repair,
    /// such as a wrong password.
    ///
    /// # Cancel safety
    /// Dropping the future ends the attempt that is under way; nothing is left behind.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// use std::time::Duration;
    ///
    /// let driver = polybus_core::Registry::new().connect_within("memory://", Duration::from_secs(30)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect_within(&self, url: &str, limit: Duration) -> Result<Arc<dyn Driver>> {
        let deadline = duration::after(Instant::now(), limit);
        let call = || attempt_until(deadline, self.connect(url));
        retry_until(deadline, "connect", Error::is_transient, || Ok(()), call).await
    }

    /// Connects by URL, in one attempt.
    ///
    /// # Errors
    /// `ConfigInvalid` for a malformed URL, and for a scheme that is unknown or whose cargo feature is off; else the
    /// [`Connector`]'s error. None shows the password.
    ///
    /// # Cancel safety
    /// Dropping the future ends the attempt; nothing is left behind.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// // All connections of this process to `memory://shop` share one broker.
    /// let driver = polybus_core::Registry::new().connect("memory://shop").await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect(&self, url: &str) -> Result<Arc<dyn Driver>> {
        let url = ConnectUrl::parse(url)?;
        if let Some(connector) = self.by_scheme.get(url.scheme()) {
            return connector.connect(&url).await;
        }
        let scheme = url.scheme();
        if let Some(hint) = pasted_urls::scheme(url.parsed()).filter(|_| !self.feature_off.contains_key(scheme)) {
            return Err(Error::config(format!("bus URL: {hint}")));
        }
        Err(Error::config(match self.feature_off.get(scheme) {
            Some(feature) => {
                format!(
                    "{scheme}:// needs the cargo feature {feature:?}: polybus = {{ features = [{feature:?}] }}, or --features {feature}"
                )
            }
            None => {
                let known: Vec<String> = self.by_scheme.keys().map(|s| format!("{s}://")).collect();
                let off: Vec<String> = self
                    .feature_off
                    .iter()
                    .map(|(s, feature)| format!("; {s}:// with the cargo feature {feature:?}"))
                    .collect();
                let shown = pasted_urls::protocol(scheme).map(|scheme| format!(" {scheme}://")).unwrap_or_default();
                format!("unknown scheme{shown}: this program knows {}{}", known.join(", "), off.concat())
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unknown_schemes_and_features_that_are_off() {
        let registry = Registry::new().with_feature_off("amqp", "rabbitmq");
        let error = |url: &'static str| {
            let registry = registry.clone();
            async move { registry.connect(url).await.map(|_| ()).unwrap_err() }
        };
        let e = error("kafka://u:s3cret@h").await;
        assert_eq!(
            e.to_string(),
            "ConfigInvalid: unknown scheme kafka://: this program knows memory://; amqp:// with the cargo feature \"rabbitmq\""
        );
        let e = error("amqp://u:s3cret@h").await;
        assert_eq!(
            e.to_string(),
            "ConfigInvalid: amqp:// needs the cargo feature \"rabbitmq\": polybus = { features = [\"rabbitmq\"] }, or --features rabbitmq"
        );
    }
}
