//! The connections of one driver, made when they are first needed and again when they are gone.
//!
//! Publishing, consuming and managing have a connection each, since the broker does not read from a connection that it
//! blocks. So acknowledgements and checks go on while publishing is blocked. Direct replies have one of their own.

use std::{
    collections::HashMap,
    future::Future,
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;

use async_rs::Tokio;
use futures_util::{StreamExt, future::join_all};
use lapin::{
    AsyncTcpStream, Channel, Connection, ConnectionProperties, Event,
    options::ConfirmSelectOptions,
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use polybus_core::{Error, ErrorKind, Result, driver::kit::reconnect::SharedAttempt};
use tokio::{sync::watch, time::timeout};

use crate::{
    config::{CALL, RabbitmqConfig},
    error,
    transport::{
        quiet_log,
        sanitizer::{
            large_headers::LargeHeaders,
            stream::{self, BrokerStream, SanitizedStream},
        },
        tls::{self, TlsConnector},
    },
};

/// The purpose of the connection that manages.
const MANAGE: &str = "manage";
/// How long an orderly close may take before the socket is dropped.
const GOODBYE: Duration = Duration::from_secs(2);

/// Awaits one of lapin's futures, for [`CALL`] at most: some never complete if the connection ends at the wrong moment.
pub(crate) async fn call<T>(operation: &'static str, future: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match timeout(CALL, future).await {
        Ok(result) => result.map_err(|e| error::of(&e, operation)),
        Err(_) => Err(error::timeout(operation, CALL)),
    }
}

/// One connection, which may have ended.
pub(crate) struct BrokerConnection {
    pub(crate) connection: Connection,
    socket: SocketHandle,
    blocked: watch::Receiver<bool>,
    /// The content headers of unread messages that came in larger frames than lapin takes.
    pub(crate) large: Arc<LargeHeaders>,
    /// Its sender is dropped when the connection has ended.
    ended: watch::Receiver<()>,
}

impl BrokerConnection {
    /// Connects and logs in, within the connect timeout. The broker shows `purpose` in the connection's name.
    pub(crate) async fn open(config: &RabbitmqConfig, tls: Option<&TlsConnector>, purpose: &str) -> Result<Self> {
        let socket = SocketHandle::default();
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{} {purpose}", config.connection_name).into());
        let sockets = Tokio::current();
        let (host, port, limit) = (config.host.clone(), config.port, config.connect_timeout);
        let (tls, shared, large) = (tls.cloned(), socket.clone(), Arc::<LargeHeaders>::default());
        let (stored, manages) = (large.clone(), purpose == MANAGE);
        let connecting = Connection::connector(
            uri(config),
            stream::runtime(),
            async move |_, _| {
                // This runs on lapin's own thread, where nothing outside can end it. So the dialing below has a limit
                // of its own, beside the limit of the whole attempt.
                if manages {
                    quiet_log::mute_lapin_errors();
                }
                let dial = async {
                    let found: Vec<_> = tokio::net::lookup_host((host.as_str(), port)).await?.collect();
                    let stream = BrokerStream::connect(&sockets, found).await?;
                    if let BrokerStream::Plain(plain) = &stream {
                        shared.set(plain.get_ref())?;
                    }
                    let stream = match &tls {
                        Some(tls) => tls.wrap(stream, &host).await?,
                        None => stream,
                    };
                    std::io::Result::Ok(AsyncTcpStream::Plain(SanitizedStream::new(stream, stored.clone())))
                };
                timeout(limit, dial)
                    .await
                    .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
                    .map_err(Into::into)
            },
            properties,
        );
        let connection = match timeout(limit, connecting).await {
            Ok(done) => done.map_err(|e| error::of_connect(&e, &config.address()))?,
            Err(_) => {
                socket.shut_down();
                let text = format!("cannot connect within {}", polybus_core::driver::kit::duration::format(limit));
                return Err(
                    error::new(ErrorKind::Unavailable, "connect", text).with_context("address", config.address())
                );
            }
        };
        let (told, blocked) = watch::channel(false);
        let (until_the_end, ended) = watch::channel(());
        let mut events = Box::pin(connection.events_listener());
        let (status, handle) = (connection.status().clone(), socket.clone());
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    Event::ConnectionBlocked(reason) => {
                        tracing::warn!(%reason, "the broker blocks publishing");
                        told.send_replace(true);
                    }
                    Event::ConnectionUnblocked => {
                        told.send_replace(false);
                    }
                    _ if status.errored() || status.closed() => break,
                    _ => {}
                }
            }
            // lapin has let go of the socket. The second handle must not keep it open: the broker would keep the
            // deliveries of a connection that nobody reads.
            handle.shut_down();
            drop(until_the_end);
        });
        Ok(Self { connection, socket, blocked, large, ended })
    }

    pub(crate) fn alive(&self) -> bool {
        self.connection.status().connected()
    }

    /// Like [`call`], but ends with `Unavailable` when the connection does: lapin never answers what is asked in the
    /// moment in which a connection ends.
    pub(crate) async fn call<T>(
        &self,
        operation: &'static str,
        future: impl Future<Output = lapin::Result<T>>,
    ) -> Result<T> {
        let mut ended = self.ended.clone();
        tokio::select! {
            biased;
            answer = call(operation, future) => answer,
            _ = ended.changed() => Err(error::new(ErrorKind::Unavailable, operation, "connection lost")),
        }
    }

    pub(crate) async fn channel(&self) -> Result<Channel> {
        self.call("open channel", self.connection.create_channel()).await
    }

    /// A channel in confirm mode.
    pub(crate) async fn confirming_channel(&self) -> Result<Channel> {
        let channel = self.channel().await?;
        self.call("open channel", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// Whether the broker blocks this connection now. After the connection has ended the answer means nothing.
    pub(crate) fn is_blocked(&self) -> bool {
        *self.blocked.borrow()
    }

    pub(crate) fn frame_max(&self) -> u32 {
        self.connection.configuration().frame_max()
    }

    /// Drops the socket without closing the connection, as a killed process would. The broker requeues the deliveries
    /// in order.
    pub(crate) fn drop_socket(&self) {
        self.socket.shut_down();
    }

    pub(crate) fn drop_socket_if(&self, yes: bool) {
        if yes {
            self.drop_socket();
        }
    }

    /// Closes the connection in order, and drops the socket if that takes too long.
    pub(crate) async fn close(&self) {
        if self.alive() && !matches!(timeout(GOODBYE, self.connection.close(200, "OK".into())).await, Ok(Ok(()))) {
            tracing::debug!("connection did not close politely");
        }
        self.drop_socket();
    }
}

fn uri(config: &RabbitmqConfig) -> AMQPUri {
    AMQPUri {
        scheme: if config.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: config.user.clone(), password: config.password.clone() },
            host: config.host.clone(),
            port: config.port,
        },
        vhost: config.vhost.clone(),
        query: AMQPQueryString { heartbeat: Some(config.heartbeat), ..AMQPQueryString::default() },
    }
}

/// A second handle on lapin's socket, by which it is shut down from outside.
#[derive(Clone, Default)]
struct SocketHandle(Arc<Mutex<Option<TcpStream>>>);

impl SocketHandle {
    fn set(&self, stream: &tokio::net::TcpStream) -> std::io::Result<()> {
        #[cfg(unix)]
        let handle = TcpStream::from(std::os::fd::AsFd::as_fd(stream).try_clone_to_owned()?);
        #[cfg(windows)]
        let handle = TcpStream::from(std::os::windows::io::AsSocket::as_socket(stream).try_clone_to_owned()?);
        *self.0.lock() = Some(handle);
        Ok(())
    }

    fn shut_down(&self) {
        if let Some(socket) = self.0.lock().take() {
            // An error means that the peer has closed it before.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// What one of the shared connections is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionRole {
    Publish,
    Consume,
    /// Declares, checks and counts. It never publishes, so the broker never blocks it.
    Manage,
    /// Publishes by direct reply-to, to names that other programs give. The broker ends a connection that publishes to
    /// a name of which it can make nothing (541), such as that of a node which has left the cluster.
    DirectReply,
}

/// The connections of one driver, and what they share.
pub(crate) struct DriverConnections {
    pub(crate) config: RabbitmqConfig,
    pub(crate) tls: Option<TlsConnector>,
    /// One place for each [`ConnectionRole`].
    slots: [SharedAttempt<BrokerConnection>; 4],
    /// The last publishing connection, to be asked while its place in `slots` is locked.
    publishing: Mutex<Weak<BrokerConnection>>,
    closed: AtomicBool,
    /// A login has succeeded. A later refusal is taken for a passing one, such as a password that is being changed.
    logged_in_before: AtomicBool,
    /// The largest frame in bytes, as the last connection agreed.
    frame_max: AtomicU32,
    /// How many consumers of this driver may hold deliveries of each queue, those that are being closed included.
    consumers: Mutex<HashMap<String, usize>>,
}

impl DriverConnections {
    pub(crate) fn new(config: RabbitmqConfig) -> Result<Self> {
        let tls = config.tls.then(|| tls::connector(&config)).transpose()?;
        Ok(Self {
            config,
            tls,
            slots: Default::default(),
            publishing: Mutex::default(),
            closed: AtomicBool::new(false),
            logged_in_before: AtomicBool::new(false),
            frame_max: AtomicU32::new(131_072),
            consumers: Mutex::default(),
        })
    }

    /// The connection of this role: the one that stands, or a new one. A call is one attempt, and concurrent callers
    /// share it.
    pub(crate) async fn get(&self, role: ConnectionRole) -> Result<Arc<BrokerConnection>> {
        let opened = self.open_own(match role {
            ConnectionRole::Publish => "publish",
            ConnectionRole::Consume => "consume",
            ConnectionRole::Manage => MANAGE,
            ConnectionRole::DirectReply => "reply",
        });
        let connection = self.slots[role as usize].get(BrokerConnection::alive, opened).await?;
        if role == ConnectionRole::Publish {
            *self.publishing.lock() = Arc::downgrade(&connection);
        }
        Ok(connection)
    }

    /// Whether the broker blocks the connection that publishes.
    pub(crate) fn is_publishing_blocked(&self) -> bool {
        let connection = self.publishing.lock().upgrade();
        connection.is_some_and(|connection| connection.alive() && connection.is_blocked())
    }

    /// A new connection, which the caller does not share.
    pub(crate) async fn open_own(&self, purpose: &str) -> Result<Arc<BrokerConnection>> {
        self.ensure_open()?;
        let opened = BrokerConnection::open(&self.config, self.tls.as_ref(), purpose).await;
        let connection = Arc::new(opened.map_err(|e| self.login_refused(e))?);
        self.logged_in_before.store(true, Ordering::Release);
        self.frame_max.store(connection.frame_max(), Ordering::Relaxed);
        // Looked at again, since the driver may have been closed while this connected.
        if let Err(e) = self.ensure_open() {
            connection.close().await;
            return Err(e);
        }
        Ok(connection)
    }

    /// Makes a refused login `Unavailable` if an earlier login succeeded, so that core waits and tries again.
    fn login_refused(&self, e: Error) -> Error {
        if e.kind() != ErrorKind::Unauthenticated || !self.logged_in_before.load(Ordering::Acquire) {
            return e;
        }
        let text = format!("{} that it took before; trying again", e.message());
        error::new(ErrorKind::Unavailable, "connect", text)
            .with_context("address", self.config.address())
            .with_source(e)
    }

    /// `Closed` after the driver was closed.
    pub(crate) fn ensure_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(error::new(ErrorKind::Closed, "connect", "the driver was closed"));
        }
        Ok(())
    }

    /// Notes a consumer of these queues. [`remove_consumer`](Self::remove_consumer) takes the same queues once it has
    /// ended.
    pub(crate) fn add_consumer(&self, queues: &[String]) {
        let mut consumers = self.consumers.lock();
        queues.iter().for_each(|queue| *consumers.entry(queue.clone()).or_default() += 1);
    }

    pub(crate) fn remove_consumer(&self, queues: &[String]) {
        let mut consumers = self.consumers.lock();
        for queue in queues {
            if let Some(count) = consumers.get_mut(queue) {
                *count -= 1;
                if *count == 0 {
                    consumers.remove(queue);
                }
            }
        }
    }

    /// Whether a consumer of this driver may hold deliveries of the queue.
    pub(crate) fn has_consumer(&self, queue: &str) -> bool {
        self.consumers.lock().contains_key(queue)
    }

    /// The largest frame in bytes that the broker takes, as the last connection agreed. 131,072 before the first one.
    pub(crate) fn frame_max(&self) -> usize {
        self.frame_max.load(Ordering::Relaxed) as usize
    }

    /// Closes the shared connections. None is made after that.
    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // They are closed side by side, since each takes its whole time where the broker does not answer.
        let closing = self.slots.iter().map(|slot| async {
            if let Some(connection) = slot.take().await {
                connection.close().await;
            }
        });
        join_all(closing).await;
    }
}
