//! The configuration file.
//!
//! `document` parses the TOML text and knows the position of each key, `env_vars` fills in variables, [`Config`] is
//! what comes out, and `origin` keeps file and lines for errors that are found later. `monitor` is the table of that
//! name.

pub(crate) mod document;
pub(crate) mod env_vars;
mod monitor;
pub(crate) mod origin;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::Path, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

pub use self::monitor::{MonitorConfig, MonitorRuleConfig, MonitorRuleKind, NumberOrDuration, WebhookConfig};
use crate::{
    BusOptions, Error, QueueSpec, Result, TopicSpec, Topology,
    config::{document::TomlDocument, origin::ConfigOrigin},
    driver::ConnectUrl,
    runtime::duration,
    topology::DeclareMode,
};

/// Which broker, the queues and topics on it, and what is watched: what an operator writes in a TOML file.
///
/// ```
/// let config: polybus_core::Config = r#"
///     [bus]
///     url = "memory://"
///     prefix = "shop-dev"
///
///     [queues.payments]
///     max_deliveries = 5
///
///     [topics.order-events.subscriptions.billing]
///     types = ["order.*"]
///     retry = ["1s", "5s"]
/// "#
/// .parse()?;
/// assert_eq!(config.bus.prefix.as_deref(), Some("shop-dev"));
/// # Ok::<(), polybus_core::Error>(())
/// ```
///
/// # Variables
/// Inside strings, `${VAR}` stands for an environment variable that must be set, `${VAR:-default}` for one with a
/// default for when it is unset or empty, and `$${` for `${` itself. `POLYBUS_URL`, where set, replaces `bus.url`.
/// The environment has no other influence. Only the functions of this type read it: serde alone takes and gives
/// strings as they are.
///
/// # Errors
/// A mistake in a file is `ConfigInvalid` and names file, line and key.
///
/// # Secrets
/// `Debug` hides passwords and the adapters' options. Serializing does not, since what it writes is meant to be read
/// back.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[cfg_attr(
    feature = "schema",
    schemars(title = "polybus configuration", description = "Which broker, and the queues and topics on it.")
)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Config {
    /// The table `[bus]`: the broker, and settings for everything on it.
    pub bus: BusConfig,
    /// Queues by logical name: 1 to 63 of a-z, 0-9 and '-'.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub queues: BTreeMap<String, QueueSpec>,
    /// Topics by logical name: 1 to 63 of a-z, 0-9 and '-'.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub topics: BTreeMap<String, TopicSpec>,
    /// The table `[monitor]`: what is watched, and who is told. `Monitor::from_config` of the patterns reads it; without
    /// a monitor it has no effect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<MonitorConfig>,
    #[serde(skip)]
    origin: ConfigOrigin,
}

/// The table `[bus]`: the broker, and settings for everything on it.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct BusConfig {
    /// The broker: `memory://`, `amqp://user:password@host/vhost`, … `POLYBUS_URL` replaces it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Prepended to all physical names, with `_` between. It keeps environments on one broker apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// Whether declaring creates what is missing, only compares, or does nothing. Default `create`.
    pub declare: DeclareMode,
    /// The CloudEvents `source` of messages that name none: the producing service. Default `polybus`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_source: Option<String>,
    /// How long a publish may take, retries and waits included, such as `30s`. Default 30 s.
    #[serde(with = "duration::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub publish_timeout: Option<Duration>,
    /// How long the broker may refuse a consumer, because its source is gone or forbidden, before the consumer ends: a
    /// duration such as `30s`, or `never`. Default 30 s.
    #[serde(with = "duration::or_never", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(with = "Option<String>"))]
    pub give_up_after: Option<Duration>,
    /// How many bytes of encoded messages may wait to be sent, all publishers together. Default 64 MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_pending_bytes: Option<usize>,
}

impl Config {
    /// Reads a file, with the process's environment.
    ///
    /// # Errors
    /// `ConfigInvalid` if the file cannot be read, or has a mistake.
    ///
    /// ```no_run
    /// # fn run() -> polybus_core::Result<()> {
    /// let config = polybus_core::Config::from_path("polybus.toml")?;
    /// # Ok(()) }
    /// ```
    pub fn from_path(path: impl AsRef<Path>) -> Result<Self> {
        Self::from_path_with(path, process_env)
    }

    /// Reads a file, and takes variables from `env` instead of the process's environment. `env` gets a name and
    /// returns the value, or `None` where it is unset.
    ///
    /// # Errors
    /// As [`from_path`](Self::from_path).
    ///
    /// ```no_run
    /// # fn run() -> polybus_core::Result<()> {
    /// let env = |name: &str| (name == "REGION").then(|| "eu".to_owned());
    /// let config = polybus_core::Config::from_path_with("polybus.toml", env)?;
    /// # Ok(()) }
    /// ```
    pub fn from_path_with(path: impl AsRef<Path>, env: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let file = path.as_ref().display().to_string();
        let text = std::fs::read_to_string(&path)
            .map_err(|e| Error::config(format!("cannot read the configuration file {file}: {e}")))?;
        Self::from_text_with(&file, &text, env)
    }

    /// Reads TOML text, and takes variables from `env`. `file` is the name that errors show.
    ///
    /// # Errors
    /// `ConfigInvalid` for a mistake in the text, with file, line and key.
    ///
    /// ```
    /// # use polybus_core::Config;
    /// let error = Config::from_text_with("shop.toml", "[bus]\nurll = \"memory://\"", |_| None).unwrap_err();
    /// assert!(error.to_string().contains("shop.toml:2: unknown key \"urll\" in [bus]: did you mean url?"));
    /// ```
    pub fn from_text_with(file: &str, text: &str, env: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let replaced = env("POLYBUS_URL").filter(|url| !url.is_empty());
        let mut doc = TomlDocument::parse(file, text)?;
        doc.interpolate(&env, if replaced.is_some() { &["bus.url"] } else { &[] })?;
        let mut config: Self = doc.read()?;
        if let Some(url) = replaced {
            ConnectUrl::parse(&url).map_err(|e| Error::config(format!("POLYBUS_URL: {}", e.message())))?;
            config.bus.url = Some(url);
        }
        config.origin = doc.origin();
        config.check()?;
        Ok(config)
    }

    /// Checks everything that can be checked without a broker: the form of the URL, names, settings, and names that
    /// collide. The functions that read text have done so already; it is for a configuration that was changed since.
    ///
    /// # Errors
    /// `ConfigInvalid`, which names the key.
    ///
    /// ```
    /// let mut config = polybus_core::Config::default();
    /// assert!(config.check().is_ok());
    /// config.bus.event_source = Some(String::new());
    /// assert!(config.check().is_err());
    /// ```
    pub fn check(&self) -> Result<()> {
        self.check_all().map_err(|e| self.locate(e))
    }

    fn check_all(&self) -> Result<()> {
        let wrong = |key: &'static str, message: &str| Err(Error::config(message).with_context("key", key));
        if let Some(url) = &self.bus.url {
            ConnectUrl::parse(url).map_err(|e| e.with_context("key", "bus.url"))?;
        }
        if self.bus.event_source.as_deref() == Some("") {
            return wrong(
                "bus.event_source",
                "event_source must not be empty: name the service, such as \"/shop/checkout\"",
            );
        }
        if self.bus.publish_timeout == Some(Duration::ZERO) {
            return wrong("bus.publish_timeout", "publish_timeout must be longer than nothing, such as \"30s\"");
        }
        if self.bus.max_pending_bytes == Some(0) {
            return wrong("bus.max_pending_bytes", "max_pending_bytes must be at least 1, such as 67108864");
        }
        self.topology().check()?;
        self.monitor.as_ref().map_or(Ok(()), MonitorConfig::check)
    }

    /// Adds file and line to an error about something that this configuration names, if it was read from text. It is
    /// for mistakes that only the adapter or the broker can find.
    ///
    /// ```
    /// # use polybus_core::{Config, Error};
    /// let config = Config::from_text_with("shop.toml", "[queues.payments]", |_| None)?;
    /// let error = config.locate(Error::unsupported("no such type").with_context("source", "queue:payments"));
    /// assert_eq!(error.message(), "shop.toml:1: no such type");
    /// # Ok::<(), Error>(())
    /// ```
    pub fn locate(&self, error: Error) -> Error {
        self.origin.locate(error)
    }

    /// The queues and topics, with the prefix.
    ///
    /// ```
    /// let config: polybus_core::Config = "[queues.payments]".parse()?;
    /// assert!(config.topology().queues.contains_key("payments"));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn topology(&self) -> Topology {
        let mut topology = Topology::new();
        topology.prefix.clone_from(&self.bus.prefix);
        topology.queues.clone_from(&self.queues);
        topology.topics.clone_from(&self.topics);
        topology
    }

    /// The options of a bus with this configuration, its topology included.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> polybus_core::Result<()> {
    /// # use polybus_core::{Bus, Config, Registry};
    /// let config = Config::from_text_with("shop.toml", "[bus]\nurl = \"memory://\"\n[queues.payments]", |_| None)?;
    /// let bus = Bus::new(Registry::new().connect(config.url()?).await?, config.options())?;
    /// # Ok(()) }
    /// ```
    pub fn options(&self) -> BusOptions {
        let mut options = BusOptions::topology(self.topology());
        options.declare = self.bus.declare;
        if let Some(source) = &self.bus.event_source {
            options.event_source.clone_from(source);
        }
        if let Some(timeout) = self.bus.publish_timeout {
            options.publish_timeout = timeout;
        }
        if let Some(limit) = self.bus.give_up_after {
            options.give_up_after = limit;
        }
        if let Some(bytes) = self.bus.max_pending_bytes {
            options.max_pending_bytes = bytes;
        }
        options
    }

    /// The broker's URL, with its password.
    ///
    /// # Errors
    /// `ConfigInvalid` if neither the file nor `POLYBUS_URL` names one.
    ///
    /// ```
    /// let config = polybus_core::Config::from_text_with("shop.toml", "[bus]\nurl = \"memory://\"", |_| None)?;
    /// assert_eq!(config.url()?, "memory://");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn url(&self) -> Result<&str> {
        self.bus.url.as_deref().ok_or_else(|| {
            let text = "no broker is configured: set url in [bus], such as \"memory://\", or the variable POLYBUS_URL";
            self.locate(Error::config(text).with_context("key", "bus.url"))
        })
    }

    /// The JSON Schema of the file, for editors.
    ///
    /// ```
    /// assert_eq!(polybus_core::Config::json_schema()["title"], "polybus configuration");
    /// ```
    #[cfg(feature = "schema")]
    #[cfg_attr(docsrs, doc(cfg(feature = "schema")))]
    pub fn json_schema() -> serde_json::Value {
        schemars::schema_for!(Self).to_value()
    }
}

/// Reads TOML text with the process's environment.
impl FromStr for Config {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::from_text_with("configuration", text, process_env)
    }
}

fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bus, queues, topics, monitor, .. } = self;
        f.debug_struct("Config")
            .field("bus", bus)
            .field("queues", queues)
            .field("topics", topics)
            .field("monitor", monitor)
            .finish()
    }
}

impl fmt::Debug for BusConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.as_deref().map(|url| match ConnectUrl::parse(url) {
            Ok(url) => url.to_string(),
            Err(_) => "***".to_owned(),
        });
        f.debug_struct("BusConfig")
            .field("url", &url)
            .field("prefix", &self.prefix)
            .field("declare", &self.declare)
            .field("event_source", &self.event_source)
            .field("publish_timeout", &self.publish_timeout)
            .field("give_up_after", &self.give_up_after)
            .field("max_pending_bytes", &self.max_pending_bytes)
            .finish()
    }
}
