//! Ordered sources: one session per key, one message of it at a time, many sessions at once.
//!
//! This asks for sessions and hands over what they bring; what works on one is in `session_hand.rs`.

mod hand;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use fe2o3_amqp::{Receiver as AmqpReceiver, link::delivery::DeliveryInfo};
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
        connection::Wire,
        consumer::Feed,
        link::{self, Attached, Take},
        receive_task::Arrival,
    },
    config::Resolved,
    error,
};

/// How long the broker waits for a session that has messages before it says that there is none.
const WAIT: Duration = Duration::from_secs(60);
/// How many sessions are asked for at once.
const ASKING: usize = 4;

/// A session, as the settler sees it.
pub(crate) struct Session {
    id: String,
    /// The link that holds it.
    link: String,
    wire: Arc<Wire>,
    orders: mpsc::UnboundedSender<Order>,
    lease: Mutex<LockLease>,
    /// Whether its message was received: from then on core renews.
    pub(crate) received: AtomicBool,
}

pub(crate) enum Order {
    /// The message is settled; whether it was completed.
    Settled(DeliveryInfo, bool),
    /// The message is to come again, not before this much time.
    Hold(DeliveryInfo, Duration),
    /// Its lock has run out, for this side at the least.
    Lost(DeliveryInfo),
    /// Give up the session. An unsettled message is abandoned, so that its attempt counts.
    End { abandon: bool, done: oneshot::Sender<()> },
}

impl Session {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn link(&self) -> &str {
        &self.link
    }

    pub(crate) fn alive(&self) -> bool {
        !self.orders.is_closed() && self.wire.alive()
    }

    pub(crate) fn settled(&self, info: DeliveryInfo, completed: bool) {
        let _ = self.orders.send(Order::Settled(info, completed));
    }

    pub(crate) fn hold(&self, info: DeliveryInfo, delay: Duration) {
        let _ = self.orders.send(Order::Hold(info, delay));
    }

    pub(crate) fn lost(&self, info: DeliveryInfo) {
        let _ = self.orders.send(Order::Lost(info));
    }

    /// Its message was not received: the session ends, and the broker has it back in its place.
    fn give_back(&self) {
        let _ = self.orders.send(Order::End { abandon: false, done: oneshot::channel().0 });
    }

    pub(crate) async fn end(&self, abandon: bool) {
        let (done, ended) = oneshot::channel();
        if self.orders.send(Order::End { abandon, done }).is_ok() {
            let _ = ended.await;
        }
    }

    pub(crate) fn is_received(&self) -> bool {
        self.received.load(Ordering::Acquire)
    }

    pub(crate) fn lease(&self) -> MutexGuard<'_, LockLease> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its lock was renewed by a request that went out then.
    pub(crate) fn renewed(&self, from: Instant) {
        self.lease().renewed(from);
    }
}

pub(crate) enum Event {
    Arrival(Box<Arrival>, Arc<Session>),
    /// Asking for sessions failed; it goes on when messages are asked for again.
    Trouble(Error),
    End(Error),
}

/// What the tasks of one consumer share.
pub(crate) struct Floor {
    pub(crate) feed: Arc<Feed>,
    pub(crate) limit: usize,
    pub(crate) idle: Duration,
    pub(crate) open: AtomicUsize,
    /// A session has ended.
    pub(crate) freed: Notify,
    /// Messages are asked for again after trouble.
    again: Notify,
    pub(crate) closing: watch::Sender<bool>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

pub(crate) struct SessionReceiver {
    floor: Arc<Floor>,
    events: mpsc::UnboundedReceiver<Event>,
    troubled: bool,
    /// Why nothing more comes, to be told once what came before is taken.
    end: Option<Error>,
    closed: bool,
}

impl SessionReceiver {
    pub(crate) async fn open(feed: Arc<Feed>, options: Resolved) -> Result<Self> {
        // So that what is wrong with connection or credentials is told here.
        let wire = feed.wires.get().await?;
        wire.authorize(&feed.path).await.map_err(|e| e.with_context("source", &feed.source))?;
        let limit = options.max_sessions.unwrap_or(usize::MAX).min(feed.prefetch).max(1);
        // At most one per session.
        let (event, events) = mpsc::unbounded_channel();
        let floor = Arc::new(Floor {
            feed,
            limit,
            idle: options.session_idle,
            open: AtomicUsize::new(0),
            freed: Notify::new(),
            again: Notify::new(),
            closing: watch::Sender::new(false),
            events: event,
        });
        tokio::spawn(ask(floor.clone()));
        Ok(Self { floor, events, troubled: false, end: None, closed: false })
    }

    fn take(&self, arrival: Arrival, session: Arc<Session>) -> Option<ReceivedMessage> {
        let feed = &self.floor.feed;
        let from = session.lease().from();
        if feed.deadline(from) <= Instant::now() {
            session.give_back();
            return None;
        }
        session.received.store(true, Ordering::Release);
        let lock = arrival.lock.token;
        let received = feed.read(arrival, from, None, Some(session.clone()));
        if !session.alive() {
            feed.let_go([lock]);
            return None;
        }
        Some(received)
    }
}

impl Drop for SessionReceiver {
    fn drop(&mut self) {
        self.floor.closing.send_replace(true);
    }
}

#[async_trait]
impl Receiver for SessionReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        if self.closed {
            return Err(error::new(ErrorKind::Closed, "receive", "the receiver was closed"));
        }
        if std::mem::take(&mut self.troubled) {
            self.floor.again.notify_one();
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
                Some(Event::Arrival(arrival, session)) => messages.extend(self.take(*arrival, session)),
                Some(Event::Trouble(e)) => {
                    self.troubled = true;
                    self.end = Some(e.with_context("source", &self.floor.feed.source));
                }
                Some(Event::End(e)) => self.end = Some(e.with_context("source", &self.floor.feed.source)),
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
        self.floor.feed.closed.store(true, Ordering::Release);
        self.floor.closing.send_replace(true);
        // What nobody has received: its session ends, and the broker has it back in its place.
        let mut ends = JoinSet::new();
        while let Ok(event) = self.events.try_recv() {
            if let Event::Arrival(_, session) = event {
                ends.spawn(async move { session.end(false).await });
            }
        }
        while ends.join_next().await.is_some() {}
        Ok(())
    }
}

/// Asks for sessions while there is room for more.
async fn ask(floor: Arc<Floor>) {
    let mut closing = floor.closing.subscribe();
    let mut asking: JoinSet<Result<Accepted>> = JoinSet::new();
    let mut troubled = false;
    loop {
        if *closing.borrow() {
            break;
        }
        while !troubled && asking.len() < ASKING && floor.open.load(Ordering::Acquire) + asking.len() < floor.limit {
            asking.spawn(accept(floor.feed.clone(), floor.closing.subscribe()));
        }
        let answer = tokio::select! {
            _ = closing.changed() => break,
            () = floor.freed.notified() => continue,
            () = floor.again.notified() => {
                troubled = false;
                continue;
            }
            // In trouble as well: a session that is granted now is held from now on.
            Some(answer) = asking.join_next() => answer,
        };
        let error = match answer {
            Ok(Ok(accepted)) => {
                start(floor.clone(), accepted);
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
            let _ = floor.events.send(Event::End(error));
            break;
        }
        floor.feed.wires.note(&error);
        // Whatever it is: who asks for messages is told, and when they ask again so is the broker.
        if !std::mem::replace(&mut troubled, true) {
            let _ = floor.events.send(Event::Trouble(error));
        }
    }
    // What is granted now is given back.
    floor.closing.send_replace(true);
    while let Some(answer) = asking.join_next().await {
        if let Ok(Ok(accepted)) = answer {
            link::close_receiver(accepted.attached).await;
        }
    }
}

/// A session that this consumer holds.
struct Accepted {
    /// When the broker's word came.
    at: Instant,
    wire: Arc<Wire>,
    attached: Attached<AmqpReceiver>,
    id: String,
}

/// The next session that has messages.
async fn accept(feed: Arc<Feed>, closing: watch::Receiver<bool>) -> Result<Accepted> {
    feed.wires.ensure_calm("receive")?;
    let wire = feed.wires.get().await?;
    let accepting = || {
        let mut closing = closing.clone();
        let until = async move { closed(&mut closing).await };
        link::session_receiver(&wire, &feed.path, Take::Peek, WAIT, until)
    };
    let attached = wire.attach(&feed.path, accepting).await?;
    let at = Instant::now();
    match link::session_id(&attached.link) {
        Some(id) => Ok(Accepted { at, wire, attached, id }),
        None => {
            link::close_receiver(attached).await;
            Err(error::new(ErrorKind::Unexpected, "receive", "the broker gave a session without a name"))
        }
    }
}

pub(crate) async fn closed(closing: &mut watch::Receiver<bool>) {
    let _ = closing.wait_for(|closing| *closing).await;
}

fn start(floor: Arc<Floor>, accepted: Accepted) {
    let Accepted { at, wire, attached, id } = accepted;
    floor.open.fetch_add(1, Ordering::AcqRel);
    let (order, orders) = mpsc::unbounded_channel();
    let lease = Mutex::new(LockLease::new(floor.feed.lock(), at));
    let link = attached.link.name().to_owned();
    let session = Arc::new(Session { id, link, wire, orders: order, lease, received: AtomicBool::new(false) });
    hand::start(floor, session, attached, orders);
}
