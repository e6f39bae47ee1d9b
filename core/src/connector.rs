//! Which URL scheme belongs to which adapter.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use url::Url;

use crate::{Driver, Error, Result};

/// Makes drivers from URLs. Each adapter exports one.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// The URL schemes it serves, for example `amqp` and `amqps`.
    fn schemes(&self) -> &'static [&'static str];

    /// Connects. Wrong credentials are `Unauthenticated`, an unreachable host is `Unavailable` with the address, a wrong
    /// URL `ConfigInvalid`; none of them shows the password. Parameters it does not know are `ConfigInvalid`.
    async fn connect(&self, url: &ConnectUrl) -> Result<Arc<dyn Driver>>;
}

/// A parsed URL whose password never shows.
#[derive(Clone)]
pub struct ConnectUrl(Url);

impl ConnectUrl {
    /// Parses a URL. The error names what is wrong, never the text, which may hold a password.
    pub fn parse(url: &str) -> Result<Self> {
        let wrong = |why: &str| {
            let form = "scheme://[user:password@]host[:port][/path][?parameter=value]";
            let hint = "percent-encode / ? # @ and : in user and password";
            Error::config(format!("malformed bus URL: {why}; expected {form} ({hint})"))
        };
        let url = Url::parse(url).map_err(|e| wrong(&e.to_string()))?;
        if url.cannot_be_a_base() {
            return Err(wrong("// is missing after the scheme"));
        }
        Ok(Self(url))
    }

    /// The scheme.
    pub fn scheme(&self) -> &str {
        self.0.scheme()
    }

    /// The whole URL, password included: for the client crate alone.
    pub fn secret(&self) -> &str {
        self.0.as_str()
    }

    /// Host, empty if there is none.
    pub fn host(&self) -> &str {
        self.0.host_str().unwrap_or("")
    }

    /// Port, where the URL names one.
    pub fn port(&self) -> Option<u16> {
        self.0.port()
    }

    /// Percent-encoded path as it stands, the leading slash included.
    pub fn path(&self) -> &str {
        self.0.path()
    }

    /// Percent-encoded user name, empty if there is none.
    pub fn username(&self) -> &str {
        self.0.username()
    }

    /// Percent-encoded password.
    pub fn password(&self) -> Option<&str> {
        self.0.password()
    }

    /// The parameters, decoded. A parameter that stands twice is `ConfigInvalid`.
    pub fn parameters(&self) -> Result<BTreeMap<String, String>> {
        let mut all = BTreeMap::new();
        for (key, value) in self.0.query_pairs() {
            if all.insert(key.to_string(), value.to_string()).is_some() {
                return Err(Error::config(format!("bus URL: parameter {key:?} stands twice")));
            }
        }
        Ok(all)
    }
}

/// The URL with its password and every parameter's value hidden.
impl std::fmt::Display for ConnectUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", crate::redact::url(&self.0))
    }
}

impl std::fmt::Debug for ConnectUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

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

    /// Connects by URL.
    pub async fn connect(&self, url: &str) -> Result<Arc<dyn Driver>> {
        let url = ConnectUrl::parse(url)?;
        if let Some(connector) = self.by_scheme.get(url.scheme()) {
            return connector.connect(&url).await;
        }
        let scheme = url.scheme();
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
                format!("unknown scheme {scheme}://: this program knows {}{}", known.join(", "), off.concat())
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;

    #[test]
    fn malformed_urls_are_refused_without_showing_them() {
        for url in
            ["", "s3cret", "s3cret@host", "amqp:u:s3cret@host", "amqp://u:s3cret@host:99999", "amqp://u:s3/cret@h"]
        {
            let e = ConnectUrl::parse(url).unwrap_err();
            let shown = format!("{e} {e:?}");
            assert!(e.kind() == Kind::ConfigInvalid && shown.contains("expected scheme://"), "{shown}");
            assert!(!shown.contains("s3"), "{shown}");
        }
    }

    #[test]
    fn debug_and_display_hide_the_password() {
        let url = ConnectUrl::parse("amqps://u:s3cret@host:1/v?ca=s3cret").unwrap();
        let shown = format!("{url} {url:?}");
        assert!(!shown.contains("s3cret") && shown.contains("u:***@host:1/v?ca=***"), "{shown}");
        assert_eq!(url.parameters().unwrap()["ca"], "s3cret");
    }

    #[test]
    fn parameters_may_not_stand_twice() {
        let e = ConnectUrl::parse("amqp://h?a=s3cret&a=2").unwrap().parameters().unwrap_err();
        assert!(e.to_string().contains("\"a\" stands twice") && !e.to_string().contains("s3cret"), "{e}");
    }

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
