//! Which URL scheme belongs to which adapter.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    connection::patience,
    driver::{ConnectUrl, Connector, Driver, pasted_urls},
    error::{Error, Result},
    runtime::duration,
};

/// The connectors a program knows. Third parties add theirs.
#[derive(Clone, Default)]
pub struct Registry {
    by_scheme: BTreeMap<&'static str, Arc<dyn Connector>>,
    off: BTreeMap<&'static str, &'static str>,
}

impl Registry {
    /// A registry that knows `memory://` alone.
    pub fn new() -> Self {
        Self::default().with(crate::memory::MemoryConnector)
    }

    /// Adds a connector; it takes over the schemes that an earlier one had.
    pub fn with(mut self, connector: impl Connector) -> Self {
        let connector: Arc<dyn Connector> = Arc::new(connector);
        for scheme in connector.schemes() {
            self.by_scheme.insert(scheme, connector.clone());
            self.off.remove(scheme);
        }
        self
    }

    /// Names the cargo feature that would bring this scheme, for the error message.
    pub fn with_feature_off(mut self, scheme: &'static str, feature: &'static str) -> Self {
        self.off.insert(scheme, feature);
        self
    }

    /// The port that a URL of this scheme means where it names none, as far as its connector tells.
    pub fn default_port(&self, scheme: &str) -> Option<u16> {
        self.by_scheme.get(scheme)?.default_port(scheme)
    }

    /// Connects by URL, and waits for a broker that is not there yet: tries again with backoff while that fails with `Unavailable`,
    /// `Timeout` or `Throttled`, for up to `limit`. So a service may start before its broker. The first failure is a warning in the log.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect). What waiting does not mend, such as a wrong password, is answered at once.
    ///
    /// # Cancel safety
    /// Dropping the future ends the attempt that is under way; nothing is left behind.
    ///
    /// ```
    /// # async fn run() -> polybus_core::Result<()> {
    /// let driver = polybus_core::Registry::new().connect_within("memory://", std::time::Duration::from_secs(30)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn connect_within(&self, url: &str, limit: Duration) -> Result<Arc<dyn Driver>> {
        let deadline = duration::after(Instant::now(), limit);
        patience::again(
            deadline,
            "connect",
            Error::is_transient,
            || Ok(()),
            || patience::until(deadline, self.connect(url)),
        )
        .await
    }

    /// Connects by URL, in one attempt.
    ///
    /// # Errors
    /// `ConfigInvalid` for a malformed URL and for a scheme that is unknown or whose cargo feature is off, else as the
    /// [`Connector`] answers. None shows the password.
    pub async fn connect(&self, url: &str) -> Result<Arc<dyn Driver>> {
        let url = ConnectUrl::parse(url)?;
        if let Some(connector) = self.by_scheme.get(url.scheme()) {
            return connector.connect(&url).await;
        }
        let scheme = url.scheme();
        if let Some(hint) = pasted_urls::scheme(url.parsed()).filter(|_| !self.off.contains_key(scheme)) {
            return Err(Error::config(format!("bus URL: {hint}")));
        }
        Err(Error::config(match self.off.get(scheme) {
            Some(feature) => {
                format!(
                    "{scheme}:// needs the cargo feature {feature:?}: polybus = {{ features = [{feature:?}] }}, or --features {feature}"
                )
            }
            None => {
                let known: Vec<String> = self.by_scheme.keys().map(|s| format!("{s}://")).collect();
                let off: Vec<String> = self
                    .off
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
