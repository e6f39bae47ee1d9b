//! What the suite runs against: a broker, how to reach it, and what the suite may do to it.
//!
//! A [`Target`] makes connections. Its hooks are optional: a [`BrokerControl`] kills and starts the broker, a
//! [`RawInject`] puts foreign messages there, a [`RawEntities`] makes foreign entities. A scenario that needs a hook
//! which the target does not have is listed as not supported, with the reason.

pub(crate) mod broker;
mod connection_url;
pub(crate) mod drift;
mod memory_raw;
pub(crate) mod probe;
pub(crate) mod raw;

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use polybus_core::{Registry, Result, driver::Driver};
use url::Url;

use self::{
    connection_url::{Upstream, upstream, with_overrides},
    memory_raw::MemoryInject,
};
use crate::{BoxFuture, BrokerControl, RawEntities, RawInject};

/// Makes one more connection to the target.
pub type ConnectFn = Arc<dyn Fn(ConnectOverrides) -> BoxFuture<Result<Arc<dyn Driver>>> + Send + Sync>;

/// How one connection differs from the target's usual ones.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConnectOverrides {
    /// Unique for each run of each scenario. Connections with the same space must see the same entities.
    pub space: String,
    /// Extra URL parameters, for example `max_message_size` = `64KiB`.
    pub parameters: BTreeMap<String, String>,
    /// Connect to this address in place of the broker's own: a [`Proxy`](crate::Proxy) listens there.
    pub through: Option<SocketAddr>,
}

/// What is left after the broker was killed and started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restart {
    /// Entities and confirmed messages are left.
    Durable,
    /// Nothing is left.
    Volatile,
    /// The suite does not restart the broker.
    #[default]
    None,
}

/// The clock by which a target runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClockKind {
    /// The world's clock: scenarios wait for real, on a runtime with many threads.
    #[default]
    Real,
    /// Tokio's paused clock: scenarios run on one thread, and waiting costs nothing. For drivers in this process alone.
    Paused,
}

/// How accurate the counts of `stats` and `purge` are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CountAccuracy {
    /// They are exact once the operation before them is done.
    #[default]
    Exact,
    /// They become right after a while.
    Eventual,
}

/// A broker, or an adapter's configuration of one, and what the suite may do to it.
///
/// ```
/// use polybus_conformance::{ClockKind, Target};
///
/// let mut target = Target::memory("memory", ClockKind::Paused);
/// target.quiet = std::time::Duration::from_secs(1);
/// let target = target.deviation("publish/single", "issue 7");
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Target {
    /// The name in reports and in the names of tests, for example `rabbitmq-3.10-quorum`.
    pub name: String,
    /// The service as `POLYBUS_REQUIRE` names it, for example `rabbitmq`. Empty: the target is always required.
    pub service: String,
    /// Makes a connection.
    pub connect: ConnectFn,
    /// Why the target is known beforehand to be absent. `None`: a connection attempt decides.
    pub absent: Option<String>,
    /// `host:port` of the broker. A proxy needs it, and targets that share it never run a disturbing scenario at once.
    pub upstream: Option<String>,
    /// Private, so that only [`Target::restarts`] sets it, together with `broker`. So no target has a broker without
    /// saying what a restart leaves.
    pub(crate) restart: Restart,
    pub(crate) broker: Option<Arc<dyn BrokerControl>>,
    /// The scheme of a URL that names a host without a port, where no port is known.
    pub(crate) port_unknown: Option<String>,
    /// The clock by which it runs.
    pub clock: ClockKind,
    /// How accurate its counts are.
    pub counts: CountAccuracy,
    /// Puts messages there that polybus did not write.
    pub raw: Option<Arc<dyn RawInject>>,
    /// Makes entities there that polybus did not declare.
    pub entities: Option<Arc<dyn RawEntities>>,
    /// Whether another process that connects in the same way sees the same entities.
    pub processes: bool,
    /// The length of its locks, for a broker whose deliveries belong to a lock and to no connection.
    ///
    /// On such a broker a delivery survives a lost connection, and the deliveries of a killed consumer come back when
    /// their locks end. This is the lock of entities for which a scenario names none. `None`: a lost connection gives
    /// its deliveries back.
    pub lock_outlives: Option<Duration>,
    /// How late the broker's own timers may be. An emulator, for example, may check its timers once a second.
    pub coarse: Duration,
    /// The factor by which a scenario may take longer than usual, for example on a slow emulator.
    pub allowance: u32,
    /// How long a scenario waits to see that nothing comes, where no sentinel message can prove it. Default: 500 ms.
    pub quiet: Duration,
    /// For how long the suite waits for what must come. Default: two minutes, so that a busy machine fails no scenario.
    pub patience: Duration,
    /// Known deviations: the scenario, and where it is documented. These scenarios are expected to fail, and one that
    /// passes counts as a failure.
    pub deviations: BTreeMap<String, String>,
}

impl Target {
    /// A target reached by a closure. Everything else has defaults: change the public fields.
    ///
    /// ```
    /// use polybus_conformance::Target;
    /// use polybus_core::Registry;
    ///
    /// let target = Target::new("memory", |overrides| async move {
    ///     Registry::new().connect(&format!("memory://{}", overrides.space)).await
    /// });
    /// ```
    pub fn new<F, Fut>(name: impl Into<String>, connect: F) -> Self
    where
        F: Fn(ConnectOverrides) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Arc<dyn Driver>>> + Send + 'static,
    {
        Self {
            name: name.into(),
            service: String::new(),
            connect: Arc::new(move |o| Box::pin(connect(o))),
            absent: None,
            upstream: None,
            restart: Restart::None,
            broker: None,
            port_unknown: None,
            clock: ClockKind::Real,
            counts: CountAccuracy::Exact,
            raw: None,
            entities: None,
            processes: false,
            lock_outlives: None,
            coarse: Duration::ZERO,
            allowance: 1,
            quiet: Duration::from_millis(500),
            patience: Duration::from_secs(120),
            deviations: BTreeMap::new(),
        }
    }

    /// A target reached by URL. `memory://` without a name becomes one shared space for each scenario.
    ///
    /// A URL without a port means the [`default_port`](polybus_core::driver::Connector::default_port) of its connector.
    /// Where that is unknown too, [`Target::warnings`] says so.
    pub fn url(name: impl Into<String>, registry: Registry, url: &str) -> Self {
        let upstream = Url::parse(url).map_or(Upstream::Nowhere, |url| upstream(&url, &registry));
        let url = url.to_owned();
        let mut target = Self::new(name, move |overrides| {
            let (registry, url) = (registry.clone(), with_overrides(&url, &overrides));
            // A busy broker may need a second attempt.
            async move { registry.connect_within(&url?, CONNECT_TIMEOUT).await }
        });
        match upstream {
            Upstream::Address(address) => (target.upstream, target.processes) = (Some(address), true),
            Upstream::PortUnknown(scheme) => target.port_unknown = Some(scheme),
            Upstream::Nowhere => {}
        }
        target
    }

    /// A target whose URL is the value of an environment variable. It is absent where the variable is not set.
    ///
    /// `service` is the name by which `POLYBUS_REQUIRE` makes it required.
    pub fn env(name: impl Into<String>, service: &str, registry: Registry, variable: &str) -> Self {
        let mut target = match std::env::var(variable) {
            Ok(url) if !url.is_empty() => Self::url(name, registry, &url),
            _ => {
                let mut target = Self::url(name, registry, "absent://");
                target.absent = Some(format!("{variable} is not set"));
                target
            }
        };
        target.service = service.into();
        target
    }

    /// The memory driver, each scenario in a space of its own.
    pub fn memory(name: impl Into<String>, clock: ClockKind) -> Self {
        let mut target = Self::url(name, Registry::new(), "memory://");
        target.clock = clock;
        target.raw = Some(Arc::new(MemoryInject));
        target
    }

    /// Adds a URL parameter to every connection.
    pub fn parameter(mut self, key: &str, value: &str) -> Self {
        let (inner, key, value) = (self.connect.clone(), key.to_owned(), value.to_owned());
        self.connect = Arc::new(move |mut overrides| {
            overrides.parameters.entry(key.clone()).or_insert_with(|| value.clone());
            inner(overrides)
        });
        self
    }

    /// Puts a driver around the driver of every connection.
    pub fn wrap(mut self, f: impl Fn(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + Sync + 'static) -> Self {
        let (inner, f) = (self.connect.clone(), Arc::new(f));
        self.connect = Arc::new(move |overrides| {
            let (connected, f) = (inner(overrides), f.clone());
            Box::pin(async move { Ok(f(connected.await?)) })
        });
        self
    }

    /// Lets the suite kill, start and block the broker, and says what is left of its contents after a restart.
    ///
    /// Pass [`Restart::None`] for a broker that can be blocked but not restarted.
    ///
    /// ```
    /// use polybus_conformance::{ClockKind, CommandBroker, Restart, Target};
    ///
    /// let broker = CommandBroker::new("docker kill mybroker", "docker start mybroker && ./wait-until-ready");
    /// let target = Target::memory("mybroker", ClockKind::Real).restarts(broker, Restart::Durable);
    /// assert_eq!(target.restart(), Restart::Durable);
    /// ```
    pub fn restarts(mut self, broker: impl BrokerControl + 'static, left: Restart) -> Self {
        self.broker = Some(Arc::new(broker));
        self.restart = left;
        self
    }

    /// What is left after a restart, as [`Target::restarts`] said.
    pub fn restart(&self) -> Restart {
        self.restart
    }

    /// The parts that stay untested because of how this target is configured, one sentence each.
    ///
    /// [`main_for`](crate::main_for) and [`cli`](fn@crate::cli) print each as a line that begins with `WARNING`.
    pub fn warnings(&self) -> Vec<String> {
        let scheme = self.port_unknown.as_ref().filter(|_| self.upstream.is_none());
        let warn = |scheme: &String| {
            format!(
                "{}: no port is known, so scenarios that need a proxy or another process are skipped: name the port in \
                 the URL, or define `Connector::default_port` for {scheme}://",
                self.name
            )
        };
        scheme.map(warn).into_iter().collect()
    }

    /// Names a scenario that is known to fail on this target, and where that is documented.
    pub fn deviation(mut self, scenario: &str, reference: &str) -> Self {
        self.deviations.insert(scenario.into(), reference.into());
        self
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("name", &self.name).field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

/// How long attempts to connect go on.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use polybus_core::{
        Error,
        driver::{ConnectUrl, Connector, async_trait},
    };

    use super::*;

    struct Ported;

    #[async_trait]
    impl Connector for Ported {
        fn schemes(&self) -> &'static [&'static str] {
            &["ported", "portless"]
        }

        fn default_port(&self, scheme: &str) -> Option<u16> {
            (scheme == "ported").then_some(4222)
        }

        async fn connect(&self, _: &ConnectUrl) -> Result<Arc<dyn Driver>> {
            Err(Error::unsupported("only a name"))
        }
    }

    #[test]
    fn a_proxy_stands_before_the_connectors_default_port() {
        let registry = Registry::new().with(Ported);
        for (url, upstream) in [("ported://h", Some("h:4222")), ("ported://h:5", Some("h:5")), ("memory://h", None)] {
            let target = Target::url("x", registry.clone(), url);
            assert_eq!((target.upstream.as_deref(), target.processes), (upstream, upstream.is_some()), "{url}");
            assert!(target.warnings().is_empty(), "{url}");
        }
    }

    #[test]
    fn an_unknown_port_is_a_warning_until_an_upstream_is_given() {
        let mut target = Target::url("x", Registry::new().with(Ported), "portless://h");
        assert_eq!((target.upstream.as_deref(), target.processes), (None, false));
        let warnings = target.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("portless://"), "{warnings:?}");
        target.upstream = Some("h:1".into());
        assert!(target.warnings().is_empty());
    }

    #[test]
    fn an_unset_variable_is_an_absent_target() {
        let t = Target::env("x", "x", Registry::new(), "POLYBUS_SURELY_NOT_SET");
        assert_eq!(t.absent.as_deref(), Some("POLYBUS_SURELY_NOT_SET is not set"));
        assert!(t.warnings().is_empty());
    }
}
