//! The one connection of a driver: made when it is needed, and again when it is gone.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fe2o3_amqp::{
    Connection, Session,
    connection::{ConnectionHandle, OpenError},
    sasl_profile::SaslProfile,
    session::SessionHandle,
};
use polybus_core::{Error, ErrorKind, Result, driver::kit::reconnect::SharedAttempt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{
    amqp::{sanitizer::stream::Guarded, websocket},
    auth::cbs::Tokens,
    config::{CALL, Config, Transport},
    error,
    transport::tls::{self, Handshake},
};

/// How long a polite goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);
/// The broker is told to send something this often; twice as long a silence ends the connection.
const IDLE: Duration = Duration::from_secs(60);
/// How long the broker wants to be left alone when it says that it is busy.
const BUSY: Duration = Duration::from_secs(10);
/// What Service Bus takes: <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide>
const FRAME: u32 = 65_536;

/// A connection that stands, or stood.
pub(crate) struct Wire {
    connection: tokio::sync::Mutex<ConnectionHandle<()>>,
    tokens: Tokens,
    ended: watch::Sender<bool>,
}

impl Wire {
    async fn open(config: &Config, tls: Option<&TlsConnector>, let_in: Arc<AtomicBool>) -> Result<Arc<Self>> {
        let address = config.address();
        let limit = config.connect_timeout;
        let deadline = Instant::now() + limit;
        let unavailable =
            |text: String| error::new(ErrorKind::Unavailable, "connect", text).with_context("address", &address);
        let too_late =
            || unavailable(format!("cannot connect within {}", polybus_core::driver::kit::duration::format(limit)));
        let dial = TcpStream::connect((config.host.as_str(), config.port));
        let stream = match timeout(limit, dial).await {
            Ok(stream) => stream.map_err(|e| unavailable(format!("cannot connect: {e}")).with_source(e))?,
            Err(_) => return Err(too_late()),
        };
        // Small frames wait for nothing.
        let _ = stream.set_nodelay(true);
        let opening = async {
            match tls {
                None => begin(config, stream).await,
                Some(tls) => match tls::wrap(tls, &config.host, stream).await {
                    Ok(stream) => begin(config, stream).await,
                    Err(Handshake::Name(e)) => Err(e),
                    Err(Handshake::Failed(e)) => Err(handshake(e, &address)),
                },
            }
        };
        let connection = tokio::time::timeout_at(deadline, opening).await.unwrap_or_else(|_| Err(too_late()))?;
        let wire = Arc::new(Self {
            connection: tokio::sync::Mutex::new(connection),
            tokens: Tokens::new(config, let_in),
            ended: watch::Sender::new(false),
        });
        wire.clone().watch().await?;
        Ok(wire)
    }

    /// fe2o3-amqp tells links and senders of a lost connection when they next ask, and those that wait for an outcome never: a
    /// session on which nothing happens ends with the connection.
    async fn watch(self: Arc<Self>) -> Result<()> {
        let mut sentinel = {
            let wire = self.clone();
            uncut(async move { wire.session().await }).await?
        };
        let wire = Arc::downgrade(&self);
        tokio::spawn(async move {
            let _ = sentinel.on_end().await;
            if let Some(wire) = wire.upgrade() {
                wire.ended.send_replace(true);
            }
        });
        Ok(())
    }

    pub(crate) fn alive(&self) -> bool {
        !*self.ended.borrow()
    }

    /// Done once the connection has ended.
    pub(crate) async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// A session for one link: what ends one must never end another.
    ///
    /// Not to be cut short: fe2o3-amqp closes the connection over an answer that nobody waits for. Call it in [`uncut`].
    pub(crate) async fn session(&self) -> Result<SessionHandle<()>> {
        let beginning = async {
            let mut connection = self.connection.lock().await;
            Session::builder().begin(&mut connection).await.map_err(|e| error::of_begin(&e))
        };
        match timeout(CALL, beginning).await {
            Ok(begun) => begun,
            Err(_) => {
                self.ended.send_replace(true);
                Err(error::timeout("begin session", CALL))
            }
        }
    }

    /// Proves to the broker that this connection may use `path`, once until the proof is about to run out.
    pub(crate) async fn authorize(self: &Arc<Self>, path: &str) -> Result<()> {
        self.tokens.ensure(self, path).await.map(|_| ())
    }

    /// Attaches links to `path` with a token for it. Where one that was put before is no longer good enough, by the broker's clock
    /// or because rights were granted since, a new one is put and `attach` called once more.
    pub(crate) async fn attach<T, F>(self: &Arc<Self>, path: &str, attach: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let fresh = self.tokens.ensure(self, path).await?;
        match attach().await {
            Err(e) if !fresh && error::is_unauthorized(&e) && self.tokens.renewable() => {
                self.tokens.replace(self, path).await?;
                attach().await
            }
            done => done,
        }
    }

    pub(crate) fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub(crate) async fn close(&self) {
        self.ended.send_replace(true);
        let closing = async { self.connection.lock().await.close().await };
        if !matches!(timeout(GOODBYE, closing).await, Ok(Ok(()))) {
            tracing::debug!("the connection did not close politely");
        }
    }
}

/// A login that was good before is refused for a while, or was renewed elsewhere: both are waited out.
pub(crate) fn judged(e: Error, let_in: &AtomicBool, renews: bool) -> Error {
    if e.kind() != ErrorKind::Unauthenticated || !renews || !let_in.load(Ordering::Acquire) {
        return e;
    }
    let text = format!("the broker let this client in before and refuses it now: {}", e.message());
    error::new(ErrorKind::Unavailable, "authorize", text).with_source(e)
}

/// AMQP's own beginning, on what carries it.
async fn begin<S>(config: &Config, stream: S) -> Result<ConnectionHandle<()>>
where
    S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
{
    let container = format!("{}-{}", config.connection_name, uuid::Uuid::new_v4().simple());
    let builder = Connection::builder()
        .container_id(container)
        .hostname(config.host.as_str())
        .scheme("amqp")
        .max_frame_size(FRAME)
        .idle_time_out(u32::try_from(IDLE.as_millis()).unwrap_or(u32::MAX))
        .sasl_profile(SaslProfile::Anonymous);
    let opened = match config.transport {
        Transport::Websocket => builder.open_with_stream(Guarded::new(websocket::open(config, stream).await?)).await,
        _ => builder.open_with_stream(Guarded::new(stream)).await,
    };
    opened.map_err(|e| error::of_open(&e, &config.address()))
}

/// Runs to its end, whether or not the caller still waits.
pub(crate) async fn uncut<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(e) => Err(error::new(ErrorKind::Unexpected, "attach", format!("a task failed: {e}"))),
    }
}

fn handshake(e: std::io::Error, address: &str) -> Error {
    // A peer that goes away says nothing about the certificate.
    let kind = match e.kind() {
        std::io::ErrorKind::InvalidData => ErrorKind::Unauthenticated,
        _ => return error::of_open(&OpenError::Io(e), address),
    };
    error::new(kind, "connect", format!("TLS handshake failed: {e}")).with_context("address", address).with_source(e)
}

/// The driver's connection.
pub(crate) struct Wires {
    pub(crate) config: Config,
    tls: Option<TlsConnector>,
    wire: SharedAttempt<Wire>,
    closed: watch::Sender<bool>,
    /// The broker has taken the credential once.
    let_in: Arc<AtomicBool>,
    /// Until then the broker wants to be left alone.
    busy: Mutex<Option<Instant>>,
}

impl Wires {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let secure = config.tls || config.management.tls;
        let tls = secure.then(|| tls::connector(config.cacert.as_deref())).transpose()?;
        Ok(Self {
            config,
            tls,
            wire: SharedAttempt::default(),
            closed: watch::Sender::new(false),
            let_in: Arc::default(),
            busy: Mutex::default(),
        })
    }

    /// Whether there is a connection, as far as is known.
    pub(crate) fn stands(&self) -> bool {
        self.wire.standing(Wire::alive)
    }

    /// The connection that stands, or a new one. One attempt, which concurrent callers share.
    pub(crate) async fn get(&self) -> Result<Arc<Wire>> {
        self.ensure_open()?;
        tokio::select! {
            wire = self.wire.get(Wire::alive, self.connect()) => wire,
            // Closing must not wait for a host that does not answer.
            () = self.closing() => Err(error::new(ErrorKind::Closed, "connect", "the driver was closed")),
        }
    }

    async fn closing(&self) {
        let mut closed = self.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await;
    }

    async fn connect(&self) -> Result<Arc<Wire>> {
        let wire = Wire::open(&self.config, self.tls.as_ref().filter(|_| self.config.tls), self.let_in.clone()).await?;
        if let Err(e) = self.ensure_open() {
            wire.close().await;
            return Err(e);
        }
        Ok(wire)
    }

    /// What the broker says of the credential, judged by whether it was good before.
    pub(crate) fn judged(&self, e: Error) -> Error {
        judged(e, &self.let_in, self.config.credential.renews())
    }

    pub(crate) fn let_in(&self) {
        self.let_in.store(true, Ordering::Release);
    }

    /// Notes that the broker wants to be left alone, if that is what it says.
    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-throttling>
    pub(crate) fn note(&self, e: &Error) {
        if error::is_busy(e) {
            *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + BUSY);
        }
    }

    /// An error while the broker wants to be left alone. Settlements and renewals go on, since their locks do.
    pub(crate) fn ensure_calm(&self, operation: &'static str) -> Result<()> {
        let busy = *self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        match busy.filter(|until| Instant::now() < *until) {
            Some(_) => Err(error::new(
                ErrorKind::Throttled,
                operation,
                "the broker is busy, and asked for 10 s without requests",
            )),
            None => Ok(()),
        }
    }

    pub(crate) fn tls(&self) -> Option<&TlsConnector> {
        self.tls.as_ref()
    }

    pub(crate) fn ensure_open(&self) -> Result<()> {
        if *self.closed.borrow() {
            return Err(error::new(ErrorKind::Closed, "connect", "the driver was closed"));
        }
        Ok(())
    }

    /// Idempotent.
    pub(crate) async fn close(&self) {
        self.closed.send_replace(true);
        if let Some(wire) = self.wire.take().await {
            wire.close().await;
        }
    }
}
