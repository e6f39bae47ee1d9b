//! One running emulator: its listeners, its broker, its end.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::access::Keys;
use crate::broker::{Broker, Limits};
use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::config_json::Config;
use crate::faults::Faults;
use crate::jwt::JwtKey;
use crate::sas::AccessKey;
use crate::shared::Shared;
use crate::tls::Tls;
use crate::{amqp, http};

/// The official emulator's key name and key.
const KEY_NAME: &str = "RootManageSharedAccessKey";
const KEY: &str = "SAS_KEY_VALUE";

/// How to start an emulator. Port 0 takes a free one, which is the default on loopback.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where AMQP is served without TLS.
    pub amqp: SocketAddr,
    /// Where AMQP is served with TLS.
    pub amqps: Option<SocketAddr>,
    /// Where HTTP is served, and HTTPS as well where there is a certificate: the first byte tells them apart.
    pub http: SocketAddr,
    /// The certificate; with [`Options::amqps`] and without one, one is made.
    pub tls: Option<Tls>,
    /// The key clients must have; without this and [`Options::jwt`] everybody may do everything.
    pub key: Option<AccessKey>,
    /// Further keys, of the namespace or of one entity, with all rights or fewer.
    pub keys: Vec<AccessKey>,
    /// The key that JSON web tokens of clients must be signed with.
    pub jwt: Option<JwtKey>,
    /// The namespace's limits.
    pub limits: Limits,
    /// What it does as the service in the cloud does.
    pub cloud: Cloud,
    /// The time it goes by.
    pub clock: Clock,
    /// Entities to start with.
    pub config: Config,
}

impl Default for Options {
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
            limits: Limits::default(),
            cloud: Cloud::default(),
            clock: Clock::system(),
            config: Config::default(),
        }
    }
}

/// A running emulator. It ends with [`Emulator::stop`] or soon after it is dropped, and its connections and messages with it.
pub struct Emulator {
    shared: Shared,
    amqp: SocketAddr,
    amqps: Option<SocketAddr>,
    http: SocketAddr,
    tls: Option<Tls>,
    key: Option<AccessKey>,
    /// Connections live in the tasks that accept them, so this is all there is to end.
    tasks: JoinSet<()>,
}

impl Emulator {
    /// Starts an emulator on the current runtime; when this returns, it answers.
    pub async fn start(options: Options) -> io::Result<Self> {
        let tls = match options.tls {
            None if options.amqps.is_some() => Some(Tls::self_signed()?),
            given => given,
        };
        let broker = Broker::new(options.clock, options.limits);
        options.config.create(&broker).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let shared = Shared { jwt: options.jwt.map(Into::into), cloud: options.cloud, ..Shared::new(broker) };
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
        let acceptor = tls.as_ref().map(Tls::acceptor);
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
        self.tls.as_ref().map(Tls::certificate)
    }

    /// Entities and messages, without any protocol.
    pub fn broker(&self) -> &Broker {
        &self.shared.broker
    }

    /// The time it goes by, which can be moved.
    pub fn clock(&self) -> &Clock {
        self.shared.clock()
    }

    /// The keys that open it, to add or take away.
    pub fn keys(&self) -> &Keys {
        &self.shared.keys
    }

    /// What it does as the service in the cloud does.
    pub fn cloud(&self) -> &Cloud {
        &self.shared.cloud
    }

    /// Faults to ask for.
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
