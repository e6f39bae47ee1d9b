//! The connections of one driver: publishing, consuming and managing apart, since a blocked one is not read.

use std::{
    collections::HashMap,
    future::Future,
    net::{Shutdown, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

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
    config::{CALL, Config},
    error,
    transport::{
        quiet_log,
        sanitizer::{
            large_headers::Large,
            stream::{self, Bare, Guarded},
        },
        tls::{self, Tls},
    },
};

/// The purpose of the connection on which it is asked what there is.
const MANAGE: &str = "manage";
/// How long a polite goodbye may take before the socket is dropped.
const GOODBYE: Duration = Duration::from_secs(2);

/// Bounds one of lapin's futures, since some hang when the connection goes away at the wrong moment.
pub(crate) async fn call<T>(operation: &'static str, future: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match timeout(CALL, future).await {
        Ok(result) => result.map_err(|e| error::of(&e, operation)),
        Err(_) => Err(error::timeout(operation, CALL)),
    }
}

/// One connection that stands, or stood.
pub(crate) struct Link {
    pub(crate) connection: Connection,
    socket: Socket,
    blocked: watch::Receiver<bool>,
    /// Headers that came in larger frames than lapin takes.
    pub(crate) large: Arc<Large>,
    /// Closed when the connection has ended.
    ended: watch::Receiver<()>,
}

impl Link {
    pub(crate) async fn open(config: &Config, tls: Option<&Tls>, purpose: &str) -> Result<Self> {
        let socket = Socket::default();
        let properties = ConnectionProperties::default()
            .with_connection_name(format!("{} {purpose}", config.connection_name).into());
        let sockets = Tokio::current();
        let (host, port, limit) = (config.host.clone(), config.port, config.connect_timeout);
        let (tls, shared, large) = (tls.cloned(), socket.clone(), Arc::<Large>::default());
        let (keeping, asks) = (large.clone(), purpose == MANAGE);
        let connecting = Connection::connector(
            uri(config),
            stream::runtime(),
            async move |_, _| {
                // This runs on lapin's own thread, which nothing else would ever stop.
                if asks {
                    quiet_log::this_thread();
                }
                let dial = async {
                    let found: Vec<_> = tokio::net::lookup_host((host.as_str(), port)).await?.collect();
                    let stream = Bare::connect(&sockets, found).await?;
                    if let Bare::Plain(plain) = &stream {
                        shared.set(plain.get_ref())?;
                    }
                    let stream = match &tls {
                        Some(tls) => tls.wrap(stream, &host).await?,
                        None => stream,
                    };
                    std::io::Result::Ok(AsyncTcpStream::Plain(Guarded::new(stream, keeping.clone())))
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
                socket.shut();
                let text = format!("cannot connect within {}", polybus_core::driver::kit::duration::format(limit));
                return Err(
                    error::new(ErrorKind::Unavailable, "connect", text).with_context("address", config.address())
                );
            }
        };
        let (told, blocked) = watch::channel(false);
        let (until_the_end, ended) = watch::channel(());
        let mut events = Box::pin(connection.events_listener());
        let (status, twin) = (connection.status().clone(), socket.clone());
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
            // lapin has let go of the socket; our handle must not keep it open, or the broker would keep the deliveries.
            twin.shut();
            drop(until_the_end);
        });
        Ok(Self { connection, socket, blocked, large, ended })
    }

    pub(crate) fn alive(&self) -> bool {
        self.connection.status().connected()
    }

    /// Like [`call`], and over when the connection is: what is asked just as it ends, lapin never answers.
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

    pub(crate) async fn confirming_channel(&self) -> Result<Channel> {
        let channel = self.channel().await?;
        self.call("open channel", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(channel)
    }

    /// Whether the broker takes no publishes now. Once the connection has ended, publishing finds out by itself.
    pub(crate) fn is_blocked(&self) -> bool {
        *self.blocked.borrow()
    }

    pub(crate) fn frame_max(&self) -> u32 {
        self.connection.configuration().frame_max()
    }

    /// Drops the socket without a goodbye, as a killed process would: the broker requeues in order.
    pub(crate) fn kill(&self) {
        self.socket.shut();
    }

    pub(crate) fn kill_if(&self, yes: bool) {
        if yes {
            self.kill();
        }
    }

    pub(crate) async fn close(&self) {
        if self.alive() && !matches!(timeout(GOODBYE, self.connection.close(200, "OK".into())).await, Ok(Ok(()))) {
            tracing::debug!("connection did not close politely");
        }
        self.kill();
    }
}

fn uri(config: &Config) -> AMQPUri {
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

/// A second handle on lapin's socket, to shut it from outside.
#[derive(Clone, Default)]
struct Socket(Arc<Mutex<Option<TcpStream>>>);

impl Socket {
    fn set(&self, stream: &tokio::net::TcpStream) -> std::io::Result<()> {
        #[cfg(unix)]
        let twin = TcpStream::from(std::os::fd::AsFd::as_fd(stream).try_clone_to_owned()?);
        #[cfg(windows)]
        let twin = TcpStream::from(std::os::windows::io::AsSocket::as_socket(stream).try_clone_to_owned()?);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(twin);
        Ok(())
    }

    fn shut(&self) {
        if let Some(socket) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // An error means that the peer was quicker.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Publish,
    Consume,
    /// Declares, checks, counts. Never publishes, so it is never blocked.
    Manage,
}

/// The connections of one driver, made when they are first needed and again when they are gone.
pub(crate) struct Links {
    pub(crate) config: Config,
    tls: Option<Tls>,
    slots: [SharedAttempt<Link>; 3],
    /// The publishing connection of late, to be asked while its slot is busy.
    publishing: Mutex<Weak<Link>>,
    closed: AtomicBool,
    /// A login succeeded before: a refusal is taken for a passing one, such as a password that is being changed.
    let_in: AtomicBool,
    frame_max: AtomicU32,
    /// How many consumers of this driver may hold deliveries of a queue, those that are being closed included.
    holding: Mutex<HashMap<String, usize>>,
}

impl Links {
    pub(crate) fn new(config: Config) -> Result<Self> {
        let tls = config.tls.then(|| tls::connector(&config)).transpose()?;
        Ok(Self {
            config,
            tls,
            slots: Default::default(),
            publishing: Mutex::default(),
            closed: AtomicBool::new(false),
            let_in: AtomicBool::new(false),
            frame_max: AtomicU32::new(131_072),
            holding: Mutex::default(),
        })
    }

    /// The connection for this role: the one that stands, or a new one. One attempt, which concurrent callers share.
    pub(crate) async fn get(&self, role: Role) -> Result<Arc<Link>> {
        let opened = self.own(match role {
            Role::Publish => "publish",
            Role::Consume => "consume",
            Role::Manage => MANAGE,
        });
        let link = self.slots[role as usize].get(Link::alive, opened).await?;
        if role == Role::Publish {
            *self.publishing.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&link);
        }
        Ok(link)
    }

    /// Whether the broker blocks the connection that publishes.
    pub(crate) fn is_publishing_blocked(&self) -> bool {
        let link = self.publishing.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        link.is_some_and(|link| link.alive() && link.is_blocked())
    }

    /// A connection of the caller's own.
    pub(crate) async fn own(&self, purpose: &str) -> Result<Arc<Link>> {
        self.ensure_open()?;
        let opened = Link::open(&self.config, self.tls.as_ref(), purpose).await;
        let link = Arc::new(opened.map_err(|e| self.refused(e))?);
        self.let_in.store(true, Ordering::Release);
        self.frame_max.store(link.frame_max(), Ordering::Relaxed);
        if let Err(e) = self.ensure_open() {
            link.close().await;
            return Err(e);
        }
        Ok(link)
    }

    /// What a failure to connect means to callers: who let us in before is waited for.
    fn refused(&self, e: Error) -> Error {
        if e.kind() != ErrorKind::Unauthenticated || !self.let_in.load(Ordering::Acquire) {
            return e;
        }
        let text = format!("{} that it took before; trying again", e.message());
        error::new(ErrorKind::Unavailable, "connect", text)
            .with_context("address", self.config.address())
            .with_source(e)
    }

    pub(crate) fn ensure_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(error::new(ErrorKind::Closed, "connect", "the driver was closed"));
        }
        Ok(())
    }

    fn holding(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.holding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin_holding(&self, queues: &[String]) {
        let mut holding = self.holding();
        queues.iter().for_each(|queue| *holding.entry(queue.clone()).or_default() += 1);
    }

    pub(crate) fn end_holding(&self, queues: &[String]) {
        let mut holding = self.holding();
        for queue in queues {
            if let Some(count) = holding.get_mut(queue) {
                *count -= 1;
                if *count == 0 {
                    holding.remove(queue);
                }
            }
        }
    }

    pub(crate) fn is_holding(&self, queue: &str) -> bool {
        self.holding().contains_key(queue)
    }

    /// The largest frame the broker takes, as it last said.
    pub(crate) fn frame_max(&self) -> usize {
        self.frame_max.load(Ordering::Relaxed) as usize
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    pub(crate) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        // Side by side, since a broker that does not answer costs each its whole time.
        let closing = self.slots.iter().map(|slot| async {
            if let Some(link) = slot.take().await {
                link.close().await;
            }
        });
        join_all(closing).await;
    }
}
