//! What the suite runs against.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc, time::Duration};

use polybus_core::{
    Error, Registry, Result,
    driver::{ConnectUrl, Driver},
};
use url::Url;

use crate::{BoxFuture, Broker, RawEntities, RawInject, memory_raw::MemoryInject};

/// Makes one more connection to the target.
pub type Connect = Arc<dyn Fn(Overrides) -> BoxFuture<Result<Arc<dyn Driver>>> + Send + Sync>;

/// What a scenario wants to be different about one connection.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Overrides {
    /// Unique per run and scenario; connections with the same one must see the same entities.
    pub space: String,
    /// Extra URL parameters, for example `max_message_size` = `64KiB`.
    pub parameters: BTreeMap<String, String>,
    /// Connect to this address in place of the broker's own: a [`Proxy`](crate::Proxy) stands there.
    pub through: Option<SocketAddr>,
}

/// What is left after the broker was killed and started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restart {
    /// Entities and confirmed messages.
    Durable,
    /// Nothing.
    Volatile,
    /// It cannot be restarted, or not by the suite.
    #[default]
    None,
}

/// By which clock the target lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Clocks {
    /// The world's: scenarios wait for real, on a runtime with many threads.
    #[default]
    Real,
    /// Tokio's: scenarios run on one thread with the clock paused, so that waiting costs nothing.
    Movable,
}

/// What `stats` and `purge` tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Counts {
    /// Exact once the operation before it is done.
    #[default]
    Exact,
    /// Right after a while.
    Eventual,
}

/// A broker, or an adapter's configuration of one, and what the suite may do to it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Target {
    /// For example `rabbitmq-3.10-quorum`.
    pub name: String,
    /// The service as `POLYBUS_REQUIRE` names it, for example `rabbitmq`. Empty: always there.
    pub service: String,
    /// Makes a connection.
    pub connect: Connect,
    /// Why it cannot be reached at all, known beforehand.
    pub absent: Option<String>,
    /// `host:port` of the broker. Needed for a proxy; targets that share it never run a disturbing scenario at once.
    pub upstream: Option<String>,
    /// What survives a restart.
    pub restart: Restart,
    /// Kills, starts and blocks the broker.
    pub broker: Option<Arc<dyn Broker>>,
    /// Its clock.
    pub clock: Clocks,
    /// Its counts.
    pub counts: Counts,
    /// Puts messages there that polybus did not write.
    pub raw: Option<Arc<dyn RawInject>>,
    /// Makes entities there that polybus did not declare.
    pub entities: Option<Arc<dyn RawEntities>>,
    /// Whether another process that connects in the same way sees the same entities.
    pub processes: bool,
    /// Set for a broker that binds deliveries to a lock alone and to no connection: what a consumer holds survives a cut, and
    /// what a killed one held comes back when its lock ends. This is the lock where a scenario names none.
    pub lock_outlives: Option<Duration>,
    /// How late its own timers may be beyond what was asked for: an emulator may look at them once a second.
    pub coarse: Duration,
    /// How many times longer than usual a scenario may take: an emulator is slower than a broker.
    pub allowance: u32,
    /// How long absence is watched where no sentinel can prove it.
    pub quiet: Duration,
    /// How long is waited for what must come: minutes, so that no busy machine is taken for a broken promise.
    pub patience: Duration,
    /// Known deviations: scenario and where it is documented. They are expected to fail; an unexpected pass fails.
    pub deviations: BTreeMap<String, String>,
}

impl Target {
    /// A target reached by a closure. Everything else has defaults: change the public fields.
    pub fn new<F, Fut>(name: impl Into<String>, connect: F) -> Self
    where
        F: Fn(Overrides) -> Fut + Send + Sync + 'static,
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
            clock: Clocks::Real,
            counts: Counts::Exact,
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

    /// A target reached by URL. `memory://` without a name becomes one shared space per scenario.
    pub fn url(name: impl Into<String>, registry: Registry, url: &str) -> Self {
        let parsed = Url::parse(url);
        let upstream = parsed.as_ref().ok().and_then(|url| upstream(url, &registry));
        let url = url.to_owned();
        let mut target = Self::new(name, move |overrides| {
            let (registry, url) = (registry.clone(), with_overrides(&url, &overrides));
            // A busy broker may need a second attempt.
            async move { registry.connect_within(&url?, CONNECT).await }
        });
        target.processes = upstream.is_some();
        target.upstream = upstream;
        target
    }

    /// A target whose URL stands in an environment variable; absent if that is not set.
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
    pub fn memory(name: impl Into<String>, clock: Clocks) -> Self {
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

    /// Puts a driver around every connection.
    pub fn wrap(mut self, f: impl Fn(Arc<dyn Driver>) -> Arc<dyn Driver> + Send + Sync + 'static) -> Self {
        let (inner, f) = (self.connect.clone(), Arc::new(f));
        self.connect = Arc::new(move |overrides| {
            let (connected, f) = (inner(overrides), f.clone());
            Box::pin(async move { Ok(f(connected.await?)) })
        });
        self
    }

    /// Hands the suite the broker itself, and says what is left of its contents after a restart.
    pub fn restarts(mut self, broker: impl Broker + 'static, left: Restart) -> Self {
        self.broker = Some(Arc::new(broker));
        self.restart = left;
        self
    }

    /// Names a known deviation and where it is documented.
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

/// How long a connection is tried for.
const CONNECT: Duration = Duration::from_secs(30);

/// A service's own address, where the URL of the bus names it as a parameter.
fn endpoint(url: &Url) -> Option<Url> {
    let (_, endpoint) = url.query_pairs().find(|(name, _)| name == "endpoint")?;
    Url::parse(&endpoint).ok()
}

fn upstream(url: &Url, registry: &Registry) -> Option<String> {
    let at = endpoint(url);
    let url = at.as_ref().unwrap_or(url);
    let host = url.host_str().filter(|h| !h.is_empty() && url.scheme() != "memory")?;
    let port = url.port_or_known_default().or_else(|| registry.default_port(url.scheme()))?;
    Some(format!("{host}:{port}"))
}

/// The URL with the overrides worked in. Errors never show it.
fn with_overrides(url: &str, overrides: &Overrides) -> Result<String> {
    ConnectUrl::parse(url)?;
    let unfit = || Error::config("this bus URL takes no other host and port, so no proxy can stand before it");
    let mut url = Url::parse(url).map_err(|_| unfit())?;
    if url.scheme() == "memory" && url.host_str().unwrap_or("").is_empty() {
        let query = url.query().map(|q| format!("?{q}")).unwrap_or_default();
        url = Url::parse(&format!("memory://{}{query}", overrides.space)).map_err(|_| unfit())?;
    }
    let mut parameters = overrides.parameters.clone();
    if let Some(through) = overrides.through {
        let mut endpoint = endpoint(&url);
        let at = endpoint.as_mut().unwrap_or(&mut url);
        at.set_ip_host(through.ip()).map_err(|()| unfit())?;
        at.set_port(Some(through.port())).map_err(|()| unfit())?;
        if let Some(endpoint) = endpoint {
            parameters.insert("endpoint".into(), endpoint.into());
        }
    }
    if !parameters.is_empty() {
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(k, _)| !parameters.contains_key(&**k))
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        url.query_pairs_mut().clear().extend_pairs(kept).extend_pairs(&parameters);
    }
    Ok(url.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn overrides_change_host_port_parameters_and_space() {
        let mut o = Overrides { space: "x-1".into(), ..Overrides::default() };
        assert_eq!(with_overrides("memory://", &o).unwrap(), "memory://x-1");
        assert_eq!(with_overrides("memory://named", &o).unwrap(), "memory://named");
        o.parameters.insert("max_message_size".into(), "64KiB".into());
        o.through = Some(([127, 0, 0, 1], 9).into());
        let url = with_overrides("aws://?region=r-1&endpoint=http://host:4566", &o).unwrap();
        let endpoint = "endpoint=http%3A%2F%2F127.0.0.1%3A9%2F";
        assert_eq!(url, format!("aws://?region=r-1&{endpoint}&max_message_size=64KiB"));
        let url = with_overrides("amqp://u:p@host:5673/v?a=1&max_message_size=1KiB", &o).unwrap();
        assert_eq!(url, "amqp://u:p@127.0.0.1:9/v?a=1&max_message_size=64KiB");
    }

    struct Ported;

    #[polybus_core::driver::async_trait]
    impl polybus_core::driver::Connector for Ported {
        fn schemes(&self) -> &'static [&'static str] {
            &["ported"]
        }

        fn default_port(&self, _: &str) -> Option<u16> {
            Some(4222)
        }

        async fn connect(&self, _: &ConnectUrl) -> Result<Arc<dyn Driver>> {
            Err(Error::unsupported("only a name"))
        }
    }

    #[test]
    fn a_proxy_stands_before_the_connectors_default_port() {
        let registry = Registry::new().with(Ported);
        assert_eq!(Target::url("x", registry.clone(), "ported://h").upstream.as_deref(), Some("h:4222"));
        assert_eq!(Target::url("x", registry.clone(), "ported://h:5").upstream.as_deref(), Some("h:5"));
        assert_eq!(Target::url("x", registry, "memory://h").upstream, None);
    }

    #[test]
    fn an_unset_variable_is_an_absent_target() {
        let t = Target::env("x", "x", Registry::new(), "POLYBUS_SURELY_NOT_SET");
        assert_eq!(t.absent.as_deref(), Some("POLYBUS_SURELY_NOT_SET is not set"));
    }
}
