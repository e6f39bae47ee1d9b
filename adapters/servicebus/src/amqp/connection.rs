//! One AMQP connection: opening it over TCP, TLS or WebSockets, sessions on it, tokens for it, and noticing its end.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use fe2o3_amqp::{
    Connection, Session,
    connection::{ConnectionHandle, OpenError},
    sasl_profile::SaslProfile,
    session::SessionHandle,
};
use polybus_core::{Error, ErrorKind, Result, driver::kit::duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{
    amqp::{sanitizer::stream::SanitizedStream, websocket},
    auth::cbs::ConnectionTokens,
    config::{CALL_TIMEOUT, Config, Transport},
    error,
    transport::tls::{self, TlsError},
};

/// How long closing waits for the broker's answer.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The broker is told to send something at least this often. A silence twice as long ends the connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// In bytes: what Service Bus takes.
/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-protocol-guide>
const MAX_FRAME_SIZE: u32 = 65_536;

/// A connection that was opened; it may have ended since.
pub(crate) struct AmqpConnection {
    handle: tokio::sync::Mutex<ConnectionHandle<()>>,
    tokens: ConnectionTokens,
    ended: watch::Sender<bool>,
}

impl AmqpConnection {
    /// Connects within the URL's `connect_timeout`.
    pub(crate) async fn open(
        config: &Config,
        tls: Option<&TlsConnector>,
        login_accepted: Arc<AtomicBool>,
    ) -> Result<Arc<Self>> {
        let address = config.address();
        let limit = config.connect_timeout;
        let deadline = Instant::now() + limit;
        let unavailable =
            |text: String| error::new(ErrorKind::Unavailable, "connect", text).with_context("address", &address);
        let too_late = || unavailable(format!("cannot connect within {}", duration::format(limit)));
        let dial = TcpStream::connect((config.host.as_str(), config.port));
        let stream = match timeout(limit, dial).await {
            Ok(stream) => stream.map_err(|e| unavailable(format!("cannot connect: {e}")).with_source(e))?,
            Err(_) => return Err(too_late()),
        };
        // Without this, small frames wait in the socket for larger ones.
        let _ = stream.set_nodelay(true);
        let opening = async {
            match tls {
                None => open_amqp(config, stream).await,
                Some(tls) => match tls::wrap(tls, &config.host, stream).await {
                    Ok(stream) => open_amqp(config, stream).await,
                    Err(TlsError::InvalidName(e)) => Err(e),
                    Err(TlsError::Handshake(e)) => Err(handshake_failed(e, &address)),
                },
            }
        };
        let handle = tokio::time::timeout_at(deadline, opening).await.unwrap_or_else(|_| Err(too_late()))?;
        let connection = Arc::new(Self {
            handle: tokio::sync::Mutex::new(handle),
            tokens: ConnectionTokens::new(config, login_accepted),
            ended: watch::Sender::new(false),
        });
        connection.clone().watch().await?;
        Ok(connection)
    }

    /// Makes the end of the connection known to [`ended`](Self::ended), by a session that nothing else uses: it ends
    /// with the connection. fe2o3-amqp tells links of the end only when they are used next, and never tells those that
    /// wait for an outcome.
    async fn watch(self: Arc<Self>) -> Result<()> {
        let mut sentinel = {
            let connection = self.clone();
            in_task(async move { connection.begin_session().await }).await?
        };
        let connection = Arc::downgrade(&self);
        tokio::spawn(async move {
            let _ = sentinel.on_end().await;
            if let Some(connection) = connection.upgrade() {
                connection.ended.send_replace(true);
            }
        });
        Ok(())
    }

    pub(crate) fn is_alive(&self) -> bool {
        !*self.ended.borrow()
    }

    /// Waits until the connection has ended.
    pub(crate) async fn ended(&self) {
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Begins a session for one link. No two links share one, so that an error which ends a session ends no other link.
    ///
    /// This must run to its end, so call it in [`in_task`]: fe2o3-amqp closes the connection when an answer comes that
    /// nobody waits for.
    pub(crate) async fn begin_session(&self) -> Result<SessionHandle<()>> {
        let beginning = async {
            let mut handle = self.handle.lock().await;
            Session::builder().begin(&mut handle).await.map_err(|e| error::of_begin(&e))
        };
        match timeout(CALL_TIMEOUT, beginning).await {
            Ok(begun) => begun,
            Err(_) => {
                self.ended.send_replace(true);
                Err(error::timeout("begin session", CALL_TIMEOUT))
            }
        }
    }

    /// Sends the broker a token for `path`, unless one is there that is still good.
    pub(crate) async fn authorize(self: &Arc<Self>, path: &str) -> Result<()> {
        self.tokens.ensure(self, path).await.map(|_| ())
    }

    /// Attaches links to `path` with a token for it. An earlier token may be refused now, since it has expired by the
    /// broker's clock or since rights were granted later: then a new one is sent, and `attach` is called once more.
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

    pub(crate) fn tokens(&self) -> &ConnectionTokens {
        &self.tokens
    }

    pub(crate) async fn close(&self) {
        self.ended.send_replace(true);
        let closing = async { self.handle.lock().await.close().await };
        if !matches!(timeout(CLOSE_TIMEOUT, closing).await, Ok(Ok(()))) {
            tracing::debug!("the connection did not close politely");
        }
    }
}

/// Opens AMQP on a stream that is connected.
async fn open_amqp<S>(config: &Config, stream: S) -> Result<ConnectionHandle<()>>
where
    S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
{
    let container = format!("{}-{}", config.connection_name, uuid::Uuid::new_v4().simple());
    let builder = Connection::builder()
        .container_id(container)
        .hostname(config.host.as_str())
        .scheme("amqp")
        .max_frame_size(MAX_FRAME_SIZE)
        .idle_time_out(u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX))
        .sasl_profile(SaslProfile::Anonymous);
    let opened = match config.transport {
        Transport::Websocket => {
            builder.open_with_stream(SanitizedStream::new(websocket::open(config, stream).await?)).await
        }
        _ => builder.open_with_stream(SanitizedStream::new(stream)).await,
    };
    opened.map_err(|e| error::of_open(&e, &config.address()))
}

/// Runs the work in a task of its own, so that it ends properly though the caller may stop waiting.
pub(crate) async fn in_task<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(e) => Err(error::new(ErrorKind::Unexpected, "attach", format!("a task failed: {e}"))),
    }
}

fn handshake_failed(e: std::io::Error, address: &str) -> Error {
    // rustls tells a bad certificate as invalid data. A peer that goes away during the handshake says nothing about it.
    let kind = match e.kind() {
        std::io::ErrorKind::InvalidData => ErrorKind::Unauthenticated,
        _ => return error::of_open(&OpenError::Io(e), address),
    };
    error::new(kind, "connect", format!("TLS handshake failed: {e}")).with_context("address", address).with_source(e)
}
