//! Which URL scheme belongs to which adapter.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;
use url::Url;

use crate::{
    Driver, Error, Result,
    config::{document::distance, pasted_urls, redact},
    connection::patience,
    runtime::duration,
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
    /// URL `ConfigInvalid`; none of them shows the password. One attempt, limited in time: [`Registry::connect_within`] tries again. Parameters it does not know are `ConfigInvalid`.
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
            let hint = "percent-encode / ? # @ % and : in user and password";
            Error::config(format!("malformed bus URL: {why}; expected {form} ({hint})"))
        };
        if let Some(hint) = pasted_urls::hint(url) {
            return Err(wrong(hint));
        }
        let url = Url::parse(url).map_err(|e| wrong(&e.to_string()))?;
        match redact::is_split(&url) {
            Some(why) => Err(wrong(why)),
            None => Ok(Self(url)),
        }
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
        for (i, (key, value)) in self.0.query_pairs().enumerate() {
            if all.insert(key.to_string(), value.to_string()).is_some() {
                return Err(Error::config(format!("bus URL: parameter {} stands there for the second time", i + 1)));
            }
        }
        Ok(all)
    }

    /// The error for a parameter that the connector does not know: where it stands, what was perhaps meant, and what `known` has (names
    /// with commas between). Not its name: in `amqp://bob:?password@host` that is the password.
    pub fn unknown_parameter(&self, name: &str, known: &str) -> Error {
        let at = self.0.query_pairs().position(|(key, _)| key == name).map_or(0, |at| at + 1);
        let near = known.split(',').map(|known| (distance(&name.to_ascii_lowercase(), known.trim()), known.trim()));
        let near = near.min().filter(|(distance, _)| *distance <= 2);
        let meant = near.map(|(_, known)| format!(" (did you mean {known}?)")).unwrap_or_default();
        Error::config(format!(
            "bus URL: parameter {at} is unknown{meant}; known are {known}. If it is a part of a password: percent-encode / ? # @ % \
             and : there"
        ))
    }

    /// Whether it leads to a namespace of Azure Service Bus, where other brokers' adapters have nothing to say.
    pub fn is_azure_servicebus(&self) -> bool {
        pasted_urls::is_servicebus(self.host())
    }
}

/// Scheme, host and port; user, password, path and parameters are hidden.
impl std::fmt::Display for ConnectUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", redact::url(&self.0))
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
            patience::is_passing,
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
        if let Some(hint) = pasted_urls::scheme(&url.0).filter(|_| !self.off.contains_key(scheme)) {
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
        assert!(!shown.contains("s3cret") && shown.contains("amqps://***@host:1/***?***"), "{shown}");
        assert_eq!(url.parameters().unwrap()["ca"], "s3cret");
    }

    #[test]
    fn parameters_may_not_stand_twice() {
        let e = ConnectUrl::parse("amqp://h?a=s3cret&a=2").unwrap().parameters().unwrap_err();
        assert!(
            e.to_string().contains("parameter 2 stands there for the second time") && !e.to_string().contains("s3cret"),
            "{e}"
        );
    }

    #[test]
    fn unknown_parameters_are_told_without_their_names() {
        let url = ConnectUrl::parse("amqp://h?a=1&Heartbeats=s3cret&s3cret").unwrap();
        let text = url.unknown_parameter("Heartbeats", "queue_type, heartbeat").to_string();
        assert!(
            text.contains("parameter 2 is unknown (did you mean heartbeat?); known are queue_type, heartbeat"),
            "{text}"
        );
        let text = url.unknown_parameter("s3cret", "queue_type, heartbeat").to_string();
        assert!(text.contains("parameter 3 is unknown;") && !text.contains("s3cret"), "{text}");
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
