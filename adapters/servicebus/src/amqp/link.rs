//! Links: attaching each on an AMQP session of its own, draining credit, and closing.

use std::{pin::pin, sync::Arc, time::Duration};

use fe2o3_amqp::{
    Delivery, Receiver, Sender,
    link::{CreditMode, DetachError, ReceiverAttachError, RecvError},
    session::SessionHandle,
    types::{
        definitions::{Fields, ReceiverSettleMode, SenderSettleMode},
        messaging::{Body, FilterSet, Source},
        primitives::{Symbol, Value},
    },
};
use futures_util::FutureExt;
use polybus_core::{ErrorKind, Result};
use tokio::{
    sync::Mutex,
    task::unconstrained,
    time::{Instant, sleep, timeout},
};

use crate::{
    amqp::connection::{AmqpConnection, in_task},
    config::CALL_TIMEOUT,
    error,
};

const SESSION_FILTER: &str = "com.microsoft:session-filter";
/// How long closing a link waits for the broker.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a link is watched after a drain has brought nothing more.
const QUIET_PERIOD: Duration = Duration::from_millis(50);

/// A link and its AMQP session, which ends when this is dropped.
pub(crate) struct AttachedLink<L> {
    pub(crate) link: L,
    session: Arc<Mutex<SessionHandle<()>>>,
}

impl<L> AttachedLink<L> {
    pub(crate) fn new(link: L, session: SessionHandle<()>) -> Self {
        Self { link, session: Arc::new(Mutex::new(session)) }
    }
}

/// A link that receives.
pub(crate) type ReceiverLink = AttachedLink<Receiver>;

/// How the broker hands out messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiveMode {
    /// Under a lock, until they are settled.
    PeekLock,
    /// Deleted as soon as they are sent.
    ReceiveAndDelete,
}

fn link_name(path: &str) -> String {
    format!("{path}-{}", uuid::Uuid::new_v4().simple())
}

/// Attaches a sender to `path`. A missing entity is `NotFound`.
pub(crate) async fn attach_sender(connection: &Arc<AmqpConnection>, path: &str) -> Result<AttachedLink<Sender>> {
    let (connection, path) = (connection.clone(), path.to_owned());
    in_task(async move {
        let mut session = connection.begin_session().await?;
        let attaching = Sender::builder()
            .name(link_name(&path))
            .target(path)
            .sender_settle_mode(SenderSettleMode::Unsettled)
            .verify_incoming_source(false)
            .verify_incoming_target(false)
            .attach(&mut session);
        match timeout(CALL_TIMEOUT, attaching).await {
            Ok(Ok(link)) => Ok(AttachedLink::new(link, session)),
            Ok(Err(e)) => Err(error::of_sender_attach(&e)),
            Err(_) => Err(error::timeout("attach", CALL_TIMEOUT)),
        }
    })
    .await
}

/// Attaches a receiver to `path`. No message comes before it is given credit.
pub(crate) async fn attach_receiver(
    connection: &Arc<AmqpConnection>,
    path: &str,
    mode: ReceiveMode,
) -> Result<ReceiverLink> {
    let (connection, path) = (connection.clone(), path.to_owned());
    in_task(async move {
        let source = Source::builder().address(path.as_str()).build();
        attach(&connection, &path, source, Fields::default(), mode, CALL_TIMEOUT, std::future::pending()).await
    })
    .await
}

/// Attaches a receiver to the next session of `path` that has messages. The broker looks for one during `within`; if
/// there is none, the error is `Timeout`. Gives up with `Closed` when `until` resolves.
pub(crate) async fn attach_session_receiver(
    connection: &Arc<AmqpConnection>,
    path: &str,
    mode: ReceiveMode,
    within: Duration,
    until: impl Future<Output = ()> + Send + 'static,
) -> Result<ReceiverLink> {
    let (connection, path) = (connection.clone(), path.to_owned());
    in_task(async move {
        let mut filter = FilterSet::default();
        filter.insert(Symbol::from(SESSION_FILTER), Value::Null);
        let source = Source::builder().address(path.as_str()).filter(filter).build();
        let mut properties = Fields::default();
        let millis = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        properties.insert(Symbol::from("com.microsoft:timeout"), Value::Uint(millis));
        attach(&connection, &path, source, properties, mode, within + CALL_TIMEOUT, until).await
    })
    .await
}

async fn attach(
    connection: &AmqpConnection,
    path: &str,
    source: Source,
    properties: Fields,
    mode: ReceiveMode,
    limit: Duration,
    until: impl Future<Output = ()>,
) -> Result<ReceiverLink> {
    let mut session = connection.begin_session().await?;
    let unsettled = mode == ReceiveMode::PeekLock;
    let attaching = Receiver::builder()
        .name(link_name(path))
        .source(source)
        .sender_settle_mode(if unsettled { SenderSettleMode::Unsettled } else { SenderSettleMode::Settled })
        // Settlements are confirmed by the management node. A disposition on the link only tells the broker that this
        // side forgets the delivery.
        .receiver_settle_mode(ReceiverSettleMode::First)
        .credit_mode(CreditMode::Manual)
        .properties(properties)
        .verify_incoming_source(false)
        .verify_incoming_target(false)
        .attach(&mut session);
    let attached = tokio::select! {
        attached = timeout(limit, attaching) => attached,
        () = until => {
            end_session(session).await;
            return Err(error::new(ErrorKind::Closed, "attach", "the receiver was closed"));
        }
    };
    match attached {
        Ok(Ok(link)) => Ok(AttachedLink::new(link, session)),
        Ok(Err(e)) => Err(error::of_receiver_attach(&e)),
        Err(_) => {
            end_session(session).await;
            Err(error::timeout("attach", limit))
        }
    }
}

/// Ends an AMQP session whose link was not attached.
async fn end_session(mut session: SessionHandle<()>) {
    if timeout(CLOSE_TIMEOUT, session.end()).await.is_err() {
        tracing::debug!("a session did not end in time");
    }
}

/// How a drain has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrainOutcome {
    /// Every message that was on its way has come.
    Complete,
    /// `handle` has returned false.
    Stopped,
    /// The broker did not answer in time. Messages that it still sends are not seen: those under a lock come back when
    /// the lock ends, others are deleted.
    TimedOut,
}

/// How long `drain` waits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DrainLimit {
    /// For this time in all.
    Total(Duration),
    /// Until neither a message nor an answer has come for this time.
    Silence(Duration),
}

/// Withdraws the credit, and hands `handle` the messages that the broker sends before it knows. Ends when all have
/// come, when `handle` returns false, or at the limit.
///
/// fe2o3-amqp does not tell when the broker has answered the drain. So a second link is attached on the same AMQP
/// session. The broker answers that request after the drain, and a session delivers in order: once the second answer is
/// here, all messages before it are waiting in the link. This is repeated until an answer brings no message. Then the
/// link is watched for a moment more, since a broker may work on both requests side by side.
pub(crate) async fn drain(
    attached: &mut ReceiverLink,
    limit: DrainLimit,
    mut handle: impl FnMut(DeliveryResult) -> bool,
) -> DrainOutcome {
    // A failure means that the link is gone, which the next `recv` reports.
    let _ = attached.link.drain().await;
    let (DrainLimit::Total(within) | DrainLimit::Silence(within)) = limit;
    let mut over = pin!(sleep(within));
    let address = attached.link.source().as_ref().and_then(|source| source.address.clone()).unwrap_or_default();
    loop {
        let mut received = false;
        let mut answer = pin!(answered_on_session(attached.session.clone(), address.clone()));
        loop {
            tokio::select! {
                biased;
                delivery = attached.link.recv() => {
                    received = true;
                    if matches!(limit, DrainLimit::Silence(_)) {
                        over.as_mut().reset(Instant::now() + within);
                    }
                    if !handle(delivery) {
                        return DrainOutcome::Stopped;
                    }
                }
                () = &mut answer => break,
                () = &mut over => return DrainOutcome::TimedOut,
            }
        }
        // Without `unconstrained` the runtime makes a task pause that has received many messages, and `recv` looks
        // empty though messages are waiting.
        while let Some(delivery) = unconstrained(attached.link.recv()).now_or_never() {
            received = true;
            if !handle(delivery) {
                return DrainOutcome::Stopped;
            }
        }
        if received {
            continue;
        }
        let Ok(delivery) = timeout(QUIET_PERIOD, attached.link.recv()).await else { return DrainOutcome::Complete };
        if !handle(delivery) {
            return DrainOutcome::Stopped;
        }
    }
}

/// Resolves once the broker has answered to a new link on this session, by attaching or refusing it. Never resolves if
/// the broker does not answer.
async fn answered_on_session(session: Arc<Mutex<SessionHandle<()>>>, address: String) {
    let asking = async move {
        let mut session = session.lock().await;
        let attaching = Receiver::builder()
            .name(link_name(&address))
            .source(Source::builder().address(address).build())
            .credit_mode(CreditMode::Manual)
            .verify_incoming_source(false)
            .verify_incoming_target(false)
            .attach(&mut session);
        match timeout(CALL_TIMEOUT, attaching).await {
            Ok(Ok(link)) => {
                let _ = timeout(CLOSE_TIMEOUT, link.close()).await;
                Ok(true)
            }
            Ok(Err(e)) => Ok(!matches!(e, ReceiverAttachError::SessionStopped(_))),
            Err(_) => Ok(false),
        }
    };
    if !matches!(in_task(asking).await, Ok(true)) {
        std::future::pending::<()>().await;
    }
}

/// What receiving on a link gives.
pub(crate) type DeliveryResult = std::result::Result<Delivery<Body<Value>>, RecvError>;

/// The id of the message session that the broker has given this link.
pub(crate) fn session_id(link: &Receiver) -> Option<String> {
    let filter = link.source().as_ref()?.filter.as_ref()?;
    session_name(filter.get(&Symbol::from(SESSION_FILTER))?)
}

fn session_name(value: &Value) -> Option<String> {
    match value {
        Value::String(id) => Some(id.clone()),
        Value::Described(described) => session_name(&described.value),
        _ => None,
    }
}

/// Closes a receiver and its session. Dropping it instead would be an error of the session while transfers are on their
/// way.
pub(crate) async fn close_receiver(attached: ReceiverLink) {
    let AttachedLink { link, session } = attached;
    close_link(link.close(), &session).await;
}

/// Closes a sender and its session.
pub(crate) async fn close_sender(attached: AttachedLink<Sender>) {
    let AttachedLink { link, session } = attached;
    close_link(link.close(), &session).await;
}

async fn close_link(closing: impl Future<Output = Result<(), DetachError>>, session: &Mutex<SessionHandle<()>>) {
    let goodbye = async {
        if let Err(e) = closing.await {
            tracing::debug!(error = %e, "a link did not close politely");
        }
        let _ = session.lock().await.end().await;
    };
    if timeout(CLOSE_TIMEOUT, goodbye).await.is_err() {
        tracing::debug!("a link did not close in time");
    }
}
