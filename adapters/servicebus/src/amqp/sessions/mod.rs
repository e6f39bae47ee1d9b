//! Ordered sources: one message session for each key, one message of it at a time, many sessions at once.
//!
//! A task asks the broker for sessions that have messages, as long as the consumer has room for more. Each session that
//! it grants has a link and a task of its own ([`session_task`]), which sends its messages to the receiver as events.
//! The settler sends commands to that task through a [`MessageSession`].

mod session_task;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};

use async_trait::async_trait;
use fe2o3_amqp::link::delivery::DeliveryInfo;
use polybus_core::{
    Error, ErrorKind, Result,
    driver::{ReceivedMessage, Receiver, kit::lease::LockLease},
};
use tokio::{
    sync::{Notify, mpsc, oneshot, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    amqp::{
        connection::AmqpConnection,
        consumer::AmqpConsumer,
        link::{self, ReceiveMode, ReceiverLink},
        receive_task::IncomingMessage,
    },
    config::ResolvedOptions,
    error,
};

/// How long the broker looks for a session that has messages before it answers that there is none.
const SESSION_WAIT: Duration = Duration::from_secs(60);
/// The most requests for sessions at once.
const MAX_REQUESTS: usize = 4;

/// A session that the broker has granted, as the settler sees it.
pub(crate) struct MessageSession {
    id: String,
    /// The name of the link that holds it.
    link: String,
    connection: Arc<AmqpConnection>,
    commands: mpsc::UnboundedSender<SessionCommand>,
    lease: Mutex<LockLease>,
    /// Whether core has received its message. From then on core asks for renewals of the lock.
    pub(crate) received: AtomicBool,
}

pub(crate) enum SessionCommand {
    /// The broker has settled the message: completed it if true, else given it back.
    Settled(DeliveryInfo, bool),
    /// Hold the message in place for this time, then give it back.
    Hold(DeliveryInfo, Duration),
    /// The lock of the message has run out, at least by this side's clock.
    Lost(DeliveryInfo),
    /// Give the session back. With `abandon` an unsettled message is abandoned first, so that its attempt counts.
    End { abandon: bool, done: oneshot::Sender<()> },
}

impl MessageSession {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn link(&self) -> &str {
        &self.link
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.commands.is_closed() && self.connection.is_alive()
    }

    pub(crate) fn settled(&self, info: DeliveryInfo, completed: bool) {
        let _ = self.commands.send(SessionCommand::Settled(info, completed));
    }

    pub(crate) fn hold(&self, info: DeliveryInfo, delay: Duration) {
        let _ = self.commands.send(SessionCommand::Hold(info, delay));
    }

    pub(crate) fn lost(&self, info: DeliveryInfo) {
        let _ = self.commands.send(SessionCommand::Lost(info));
    }

    /// Gives back a session whose message core has not received: the message comes again, uncounted.
    fn give_back(&self) {
        let _ = self.commands.send(SessionCommand::End { abandon: false, done: oneshot::channel().0 });
    }

    pub(crate) async fn end(&self, abandon: bool) {
        let (done, ended) = oneshot::channel();
        if self.commands.send(SessionCommand::End { abandon, done }).is_ok() {
            let _ = ended.await;
        }
    }

    pub(crate) fn is_received(&self) -> bool {
        self.received.load(Ordering::Acquire)
    }

    pub(crate) fn lease(&self) -> MutexGuard<'_, LockLease> {
        self.lease.lock()
    }

    /// Notes that the lock was renewed, by a request that was sent at `from`.
    pub(crate) fn renewed(&self, from: Instant) {
        self.lease().renewed(from);
    }
}

pub(crate) enum SessionEvent {
    Arrival(Box<IncomingMessage>, Arc<MessageSession>),
    /// Asking for sessions has failed. It goes on with the next call of `receive`.
    RequestFailed(Error),
    Ended(Error),
}

/// What the tasks of one consumer's sessions share.
pub(crate) struct SessionPool {
    pub(crate) consumer: Arc<AmqpConsumer>,
    pub(crate) limit: usize,
    pub(crate) idle: Duration,
    pub(crate) open: AtomicUsize,
    /// A session has ended.
    pub(crate) freed: Notify,
    /// `receive` was called again after a failure.
    resume: Notify,
    pub(crate) closing: watch::Sender<bool>,
    pub(crate) events: mpsc::UnboundedSender<SessionEvent>,
}

pub(crate) struct SessionReceiver {
    pool: Arc<SessionPool>,
    events: mpsc::UnboundedReceiver<SessionEvent>,
    request_failed: bool,
    /// An error that `receive` returns once the messages before it are handed out.
    end: Option<Error>,
    closed: bool,
}

impl SessionReceiver {
    pub(crate) async fn open(consumer: Arc<AmqpConsumer>, options: ResolvedOptions) -> Result<Self> {
        // Connecting here makes an error of a wrong connection or credential visible at once.
        let connection = consumer.namespace.connection().await?;
        connection.authorize(&consumer.path).await.map_err(|e| e.with_context("source", &consumer.source))?;
        let limit = options.max_sessions.unwrap_or(usize::MAX).min(consumer.prefetch).max(1);
        // The channel needs no limit: a session has at most one event in it.
        let (event, events) = mpsc::unbounded_channel();
        let pool = Arc::new(SessionPool {
            consumer,
            limit,
            idle: options.session_idle,
            open: AtomicUsize::new(0),
            freed: Notify::new(),
            resume: Notify::new(),
            closing: watch::Sender::new(false),
            events: event,
        });
        tokio::spawn(request_sessions(pool.clone()));
        Ok(Self { pool, events, request_failed: false, end: None, closed: false })
    }

    fn receive_one(&self, message: IncomingMessage, session: Arc<MessageSession>) -> Option<ReceivedMessage> {
        let consumer = &self.pool.consumer;
        let from = session.lease().from();
        if consumer.deadline(from) <= Instant::now() {
            session.give_back();
            return None;
        }
        session.received.store(true, Ordering::Release);
        let lock = message.lock.token;
        let received = consumer.to_received(message, from, None, Some(session.clone()));
        if !session.is_alive() {
            consumer.remove_unsettled([lock]);
            return None;
        }
        Some(received)
    }
}

impl Drop for SessionReceiver {
    fn drop(&mut self) {
        self.pool.closing.send_replace(true);
    }
}

#[async_trait]
impl Receiver for SessionReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        if self.closed {
            return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed"));
        }
        if std::mem::take(&mut self.request_failed) {
            self.pool.resume.notify_one();
        }
        let mut messages = Vec::new();
        loop {
            if let Some(e) = self.end.take_if(|_| messages.is_empty()) {
                return Err(e);
            }
            let event = match messages.is_empty() {
                true => self.events.recv().await,
                false => self.events.try_recv().ok(),
            };
            match event {
                Some(SessionEvent::Arrival(message, session)) => messages.extend(self.receive_one(*message, session)),
                Some(SessionEvent::RequestFailed(e)) => {
                    self.request_failed = true;
                    self.end = Some(e.with_context("source", &self.pool.consumer.source));
                }
                Some(SessionEvent::Ended(e)) => self.end = Some(e.with_context("source", &self.pool.consumer.source)),
                None if !messages.is_empty() => return Ok(messages),
                None if self.end.is_none() => {
                    return Err(error::new(ErrorKind::Closed, "receive", "the source has ended"));
                }
                None => {}
            }
            if messages.len() >= max {
                return Ok(messages);
            }
        }
    }

    async fn close(&mut self) -> Result<()> {
        self.closed = true;
        self.pool.consumer.closed.store(true, Ordering::Release);
        self.pool.closing.send_replace(true);
        // Messages that core has not received go back with their sessions, uncounted.
        let mut ends = JoinSet::new();
        while let Ok(event) = self.events.try_recv() {
            if let SessionEvent::Arrival(_, session) = event {
                ends.spawn(async move { session.end(false).await });
            }
        }
        while ends.join_next().await.is_some() {}
        Ok(())
    }
}

/// Asks for sessions while there is room for more, until the consumer closes.
async fn request_sessions(pool: Arc<SessionPool>) {
    let mut closing = pool.closing.subscribe();
    let mut asked: JoinSet<Result<AcceptedSession>> = JoinSet::new();
    let mut failed = false;
    loop {
        if *closing.borrow() {
            break;
        }
        while !failed && asked.len() < MAX_REQUESTS && pool.open.load(Ordering::Acquire) + asked.len() < pool.limit {
            asked.spawn(accept_session(pool.consumer.clone(), pool.closing.subscribe()));
        }
        let answer = tokio::select! {
            _ = closing.changed() => break,
            () = pool.freed.notified() => continue,
            () = pool.resume.notified() => {
                failed = false;
                continue;
            }
            // Also after a failure: a session that is granted now is held from now on, and must be looked after.
            Some(answer) = asked.join_next() => answer,
        };
        let error = match answer {
            Ok(Ok(accepted)) => {
                start_session_task(pool.clone(), accepted);
                continue;
            }
            Ok(Err(e)) if e.kind() == ErrorKind::Timeout => continue,
            Ok(Err(e)) if e.kind() == ErrorKind::LockLost => {
                error::new(ErrorKind::Unavailable, "receive", "a session was lost as it was given").with_source(e)
            }
            Ok(Err(e)) if e.kind() == ErrorKind::InvalidArgument => {
                let text = "the source is ordered by the topology, which takes an entity with sessions: the broker says that it has none, or \
                            refuses to give one";
                error::new(ErrorKind::InvalidArgument, "receive", format!("{text}: {}", e.message())).with_source(e)
            }
            Ok(Err(e)) => e,
            Err(e) => error::new(ErrorKind::Unexpected, "receive", format!("asking for a session failed: {e}")),
        };
        if error.kind() == ErrorKind::Closed {
            let _ = pool.events.send(SessionEvent::Ended(error));
            break;
        }
        pool.consumer.namespace.note_busy(&error);
        // After any error the caller of `receive` is told once, and the broker is asked again when it calls again.
        if !std::mem::replace(&mut failed, true) {
            let _ = pool.events.send(SessionEvent::RequestFailed(error));
        }
    }
    // Sessions that are granted from now on are given back.
    pool.closing.send_replace(true);
    while let Some(answer) = asked.join_next().await {
        if let Ok(Ok(accepted)) = answer {
            link::close_receiver(accepted.attached).await;
        }
    }
}

/// A session that the broker has granted.
struct AcceptedSession {
    /// When the broker's answer came, which is when the lock began.
    at: Instant,
    connection: Arc<AmqpConnection>,
    attached: ReceiverLink,
    id: String,
}

/// Waits for the next session that has messages.
async fn accept_session(consumer: Arc<AmqpConsumer>, closing: watch::Receiver<bool>) -> Result<AcceptedSession> {
    consumer.namespace.ensure_not_busy("receive")?;
    let connection = consumer.namespace.connection().await?;
    let accepting = || {
        let mut closing = closing.clone();
        let until = async move { wait_for_close(&mut closing).await };
        link::attach_session_receiver(&connection, &consumer.path, ReceiveMode::PeekLock, SESSION_WAIT, until)
    };
    let attached = connection.attach(&consumer.path, accepting).await?;
    let at = Instant::now();
    match link::session_id(&attached.link) {
        Some(id) => Ok(AcceptedSession { at, connection, attached, id }),
        None => {
            link::close_receiver(attached).await;
            Err(error::new(ErrorKind::Unexpected, "receive", "the broker gave a session without a name"))
        }
    }
}

pub(crate) async fn wait_for_close(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

fn start_session_task(pool: Arc<SessionPool>, accepted: AcceptedSession) {
    let AcceptedSession { at, connection, attached, id } = accepted;
    pool.open.fetch_add(1, Ordering::AcqRel);
    let (commands, command_queue) = mpsc::unbounded_channel();
    let lease = Mutex::new(LockLease::new(pool.consumer.lock_duration(), at));
    let link = attached.link.name().to_owned();
    let session = Arc::new(MessageSession { id, link, connection, commands, lease, received: AtomicBool::new(false) });
    session_task::start(pool, session, attached, command_queue);
}
