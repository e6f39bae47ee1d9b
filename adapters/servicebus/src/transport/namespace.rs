//! What a driver keeps of its namespace: the configuration, TLS, the current AMQP connection, and whether the broker is
//! busy.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use polybus_core::{Error, ErrorKind, Result, driver::kit::reconnect::SharedAttempt};
use tokio::{sync::watch, time::Instant};
use tokio_rustls::TlsConnector;

use crate::{amqp::connection::AmqpConnection, config::Config, error, transport::tls};

/// How long the driver sends nothing that can wait, after the broker has said that it is busy.
const BUSY_PAUSE: Duration = Duration::from_secs(10);

/// The namespace of one driver, shared by all its senders and receivers.
///
/// The AMQP connection is made when it is needed first, and again after it was lost. The driver over HTTP uses
/// everything else of this, and never makes one.
pub(crate) struct Namespace {
    pub(crate) config: Config,
    tls: Option<TlsConnector>,
    connection: SharedAttempt<AmqpConnection>,
    closed: watch::Sender<bool>,
    /// Whether the broker has accepted the credential at least once: see [`classify_refusal`].
    login_accepted: Arc<AtomicBool>,
    busy_until: Mutex<Option<Instant>>,
}

impl Namespace {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let secure = config.tls || config.management.tls;
        let tls = secure.then(|| tls::connector(config.cacert.as_deref())).transpose()?;
        Ok(Self {
            config,
            tls,
            connection: SharedAttempt::default(),
            closed: watch::Sender::new(false),
            login_accepted: Arc::default(),
            busy_until: Mutex::default(),
        })
    }

    /// Whether there is a connection that is not known to have ended.
    pub(crate) fn is_connected(&self) -> bool {
        self.connection.standing(AmqpConnection::is_alive)
    }

    /// The current connection, or a new one. Concurrent callers share one attempt to connect.
    pub(crate) async fn connection(&self) -> Result<Arc<AmqpConnection>> {
        self.ensure_open()?;
        tokio::select! {
            connection = self.connection.get(AmqpConnection::is_alive, self.connect()) => connection,
            // Closing must not wait for a host that does not answer.
            () = self.closing() => Err(error::new(ErrorKind::Closed, "connect", "the driver was closed")),
        }
    }

    async fn closing(&self) {
        let mut closed = self.closed.subscribe();
        let _ = closed.wait_for(|closed| *closed).await;
    }

    async fn connect(&self) -> Result<Arc<AmqpConnection>> {
        let tls = self.tls.as_ref().filter(|_| self.config.tls);
        let connection = AmqpConnection::open(&self.config, tls, self.login_accepted.clone()).await?;
        // After connecting: `close` may have run meanwhile, and would not know of this connection.
        if let Err(e) = self.ensure_open() {
            connection.close().await;
            return Err(e);
        }
        Ok(connection)
    }

    /// [`classify_refusal`] with this namespace's credential.
    #[cfg(feature = "rest")]
    pub(crate) fn classify_refusal(&self, e: Error) -> Error {
        classify_refusal(e, &self.login_accepted, self.config.credential.is_renewable())
    }

    /// Notes that the broker has accepted the credential.
    pub(crate) fn note_login(&self) {
        self.login_accepted.store(true, Ordering::Release);
    }

    /// Starts the pause if the error says that the broker is busy.
    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-throttling>
    pub(crate) fn note_busy(&self, e: &Error) {
        if error::is_busy(e) {
            *self.busy_until.lock() = Some(Instant::now() + BUSY_PAUSE);
        }
    }

    /// `Throttled` during the pause. Settlements and renewals do not ask: their locks run out meanwhile.
    pub(crate) fn ensure_not_busy(&self, operation: &'static str) -> Result<()> {
        let busy = *self.busy_until.lock();
        if busy.is_none_or(|until| Instant::now() >= until) {
            return Ok(());
        }
        Err(error::new(ErrorKind::Throttled, operation, "the broker is busy, and asked for 10 s without requests"))
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

    /// Closes the connection. A second call does nothing.
    pub(crate) async fn close(&self) {
        self.closed.send_replace(true);
        if let Some(connection) = self.connection.take().await {
            connection.close().await;
        }
    }
}

/// `Unauthenticated` becomes `Unavailable` where the credential was good before and can be renewed: the broker refuses
/// such a login for a while only, or the key was changed elsewhere. Consumers wait for either to end. Other errors
/// pass.
pub(crate) fn classify_refusal(e: Error, login_accepted: &AtomicBool, renewable: bool) -> Error {
    if e.kind() != ErrorKind::Unauthenticated || !renewable || !login_accepted.load(Ordering::Acquire) {
        return e;
    }
    let text = format!("the broker let this client in before and refuses it now: {}", e.message());
    error::new(ErrorKind::Unavailable, "authorize", text).with_source(e)
}
