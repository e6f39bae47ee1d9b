//! One running emulator: it binds the listeners, starts the servers around one broker, and stops them.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::auth::{AccessKey, JwtKey, KeySet};
use crate::broker::{Broker, NamespaceLimits};
use crate::clock::Clock;
use crate::cloud::CloudRules;
use crate::config::EmulatorConfig;
use crate::faults::Faults;
use crate::shared::SharedState;
use crate::transport::TlsIdentity;
use crate::{amqp, http};

/// The official emulator's key name and key.
const KEY_NAME: &str = "RootManageSharedAccessKey";
const KEY: &str = "SAS_KEY_VALUE";

/// How to start an emulator. Port 0 takes a free one, which is the default on loopback.
#[derive(Clone, Debug)]
pub struct EmulatorOptions {
    /// Where AMQP is served without TLS.
    pub amqp: SocketAddr,
    /// Where AMQP is served with TLS.
    pub amqps: Option<SocketAddr>,
    /// Where HTTP is served, and HTTPS as well where there is a certificate: the first byte tells them apart.
    pub http: SocketAddr,
    /// The certificate; with [`EmulatorOptions::amqps`] and without one, one is made.
    pub tls: Option<TlsIdentity>,
    /// The key clients must have; without this and [`EmulatorOptions::jwt`] everybody may do everything.
    pub key: Option<AccessKey>,
    /// Further keys, of the namespace or of one entity, with all rights or fewer.
    pub keys: Vec<AccessKey>,
    /// The key that JSON web tokens of clients must be signed with.
    pub jwt: Option<JwtKey>,
    /// The namespace's limits.
    pub limits: NamespaceLimits,
    /// The rules of the cloud that are switched on.
    pub cloud: CloudRules,
    /// The clock that locks, times to live and tokens go by.
    pub clock: Clock,
    /// Entities to start with.
    pub config: EmulatorConfig,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            amqp: free,
            amqps: None,
            http: free,
            tls: None,
            key: None,
            keys: Vec::new(),
            jwt: None,
            limits: NamespaceLimits::default(),
            cloud: CloudRules::default(),
            clock: Clock::system(),
            config: EmulatorConfig::default(),
        }
    }
}

/// A running emulator. [`Emulator::stop`] ends it, and so does dropping it, shortly after. Its connections and messages
/// end with it.
pub struct Emulator {
    shared: SharedState,
    amqp: SocketAddr,
    amqps: Option<SocketAddr>,
    http: SocketAddr,
    tls: Option<TlsIdentity>,
    key: Option<AccessKey>,
    /// The listeners' tasks and the timers. Each listener's task owns its connections, so ending these ends everything.
    tasks: JoinSet<()>,
}

impl Emulator {
    /// Starts an emulator on the current runtime; when this returns, it answers.
    pub async fn start(options: EmulatorOptions) -> io::Result<Self> {
        let tls = match options.tls {
            None if options.amqps.is_some() => Some(TlsIdentity::self_signed()?),
            given => given,
        };
        let broker = Broker::new(options.clock, options.limits);
        options.config.create(&broker).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let shared = SharedState { jwt: options.jwt.map(Into::into), cloud: options.cloud, ..SharedState::new(broker) };
        options.key.iter().chain(&options.keys).for_each(|key| shared.keys.put(key.clone()));

        let amqp = bind(options.amqp).await?;
        let amqps = match options.amqps {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let http = bind(options.http).await?;
        let addresses =
            (amqp.local_addr()?, amqps.as_ref().map(TcpListener::local_addr).transpose()?, http.local_addr()?);

        let mut tasks = JoinSet::new();
        let timers = shared.broker.clone();
        tasks.spawn(async move { timers.run_timers().await });
        tasks.spawn(amqp::serve(amqp, None, shared.clone()));
        let acceptor = tls.as_ref().map(TlsIdentity::acceptor);
        if let Some(amqps) = amqps {
            tasks.spawn(amqp::serve(amqps, acceptor.clone(), shared.clone()));
        }
        tasks.spawn(http::serve(http, acceptor, shared.clone()));
        let (amqp, amqps, http) = addresses;
        Ok(Self { shared, amqp, amqps, http, tls, key: options.key, tasks })
    }

    /// Where AMQP is served.
    pub fn amqp_addr(&self) -> SocketAddr {
        self.amqp
    }

    /// Where AMQP is served with TLS.
    pub fn amqps_addr(&self) -> Option<SocketAddr> {
        self.amqps
    }

    /// Where HTTP is served.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// `amqp://host:port`.
    pub fn amqp_url(&self) -> String {
        format!("amqp://{}", self.amqp)
    }

    /// `http://host:port`.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// A connection string for SDKs. It holds the key.
    pub fn connection_string(&self) -> String {
        let (name, key) = match &self.key {
            Some(key) => (key.name(), key.secret()),
            None => (KEY_NAME, KEY),
        };
        format!(
            "Endpoint=sb://{};SharedAccessKeyName={name};SharedAccessKey={key};UseDevelopmentEmulator=true;",
            self.amqp
        )
    }

    /// The certificate clients must trust, in PEM.
    pub fn certificate(&self) -> Option<&str> {
        self.tls.as_ref().map(TlsIdentity::certificate)
    }

    /// Entities and messages, without any protocol.
    pub fn broker(&self) -> &Broker {
        &self.shared.broker
    }

    /// The clock that locks, times to live and tokens go by. Tests can move it.
    pub fn clock(&self) -> &Clock {
        self.shared.clock()
    }

    /// The keys that clients may sign with. Keys can be added and removed while it runs.
    pub fn keys(&self) -> &KeySet {
        &self.shared.keys
    }

    /// The rules of the cloud that are switched on.
    pub fn cloud(&self) -> &CloudRules {
        &self.shared.cloud
    }

    /// The faults that a test can switch on.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Runs until a listener fails, which none does by itself.
    pub async fn run(&mut self) {
        self.tasks.join_next().await;
    }

    /// Closes the listeners and drops every connection; when this returns, the ports are free.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

impl fmt::Debug for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { amqp, amqps, http, .. } = self;
        f.debug_struct("Emulator").field("amqp", amqp).field("amqps", amqps).field("http", http).finish_non_exhaustive()
    }
}

async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("{address} cannot be listened on: {error}")))
}
