//! Links, each on a session of its own.

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
    amqp::connection::{Wire, uncut},
    config::CALL,
    error,
};

const SESSION_FILTER: &str = "com.microsoft:session-filter";
/// How long a link may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);
/// How long nothing may come after the answer to a drain.
const QUIET: Duration = Duration::from_millis(50);

/// A link and the session it lives on, which ends when this is dropped.
pub(crate) struct Attached<L> {
    pub(crate) link: L,
    session: Arc<Mutex<SessionHandle<()>>>,
}

impl<L> Attached<L> {
    pub(crate) fn new(link: L, session: SessionHandle<()>) -> Self {
        Self { link, session: Arc::new(Mutex::new(session)) }
    }
}

/// How messages are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Under a lock, until settled.
    Peek,
    /// For good, as soon as they are sent.
    Delete,
}

fn name(path: &str) -> String {
    format!("{path}-{}", uuid::Uuid::new_v4().simple())
}

/// Attaches a sender to `path`. A missing entity is `NotFound`.
pub(crate) async fn sender(wire: &Arc<Wire>, path: &str) -> Result<Attached<Sender>> {
    let (wire, path) = (wire.clone(), path.to_owned());
    uncut(async move {
        let mut session = wire.session().await?;
        let attaching = Sender::builder()
            .name(name(&path))
            .target(path)
            .sender_settle_mode(SenderSettleMode::Unsettled)
            .verify_incoming_source(false)
            .verify_incoming_target(false)
            .attach(&mut session);
        match timeout(CALL, attaching).await {
            Ok(Ok(link)) => Ok(Attached::new(link, session)),
            Ok(Err(e)) => Err(error::of_sender_attach(&e)),
            Err(_) => Err(error::timeout("attach", CALL)),
        }
    })
    .await
}

/// Attaches a receiver to `path`, without credit.
pub(crate) async fn receiver(wire: &Arc<Wire>, path: &str, take: Take) -> Result<Attached<Receiver>> {
    let (wire, path) = (wire.clone(), path.to_owned());
    uncut(async move {
        let source = Source::builder().address(path.as_str()).build();
        attach_receiver(&wire, &path, source, Fields::default(), take, CALL, std::future::pending()).await
    })
    .await
}

/// Attaches a receiver to the next session of `path` that has messages, which the broker may look for during `within`. None
/// there is `Timeout`; given up when `until` is done.
pub(crate) async fn session_receiver(
    wire: &Arc<Wire>,
    path: &str,
    take: Take,
    within: Duration,
    until: impl Future<Output = ()> + Send + 'static,
) -> Result<Attached<Receiver>> {
    let (wire, path) = (wire.clone(), path.to_owned());
    uncut(async move {
        let mut filter = FilterSet::default();
        filter.insert(Symbol::from(SESSION_FILTER), Value::Null);
        let source = Source::builder().address(path.as_str()).filter(filter).build();
        let mut properties = Fields::default();
        let millis = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        properties.insert(Symbol::from("com.microsoft:timeout"), Value::Uint(millis));
        attach_receiver(&wire, &path, source, properties, take, within + CALL, until).await
    })
    .await
}

async fn attach_receiver(
    wire: &Wire,
    path: &str,
    source: Source,
    properties: Fields,
    take: Take,
    limit: Duration,
    until: impl Future<Output = ()>,
) -> Result<Attached<Receiver>> {
    let mut session = wire.session().await?;
    let attaching = Receiver::builder()
        .name(name(path))
        .source(source)
        .sender_settle_mode(if take == Take::Peek { SenderSettleMode::Unsettled } else { SenderSettleMode::Settled })
        // What is settled is confirmed on the management link; a disposition then only tells that this side forgets.
        .receiver_settle_mode(ReceiverSettleMode::First)
        .credit_mode(CreditMode::Manual)
        .properties(properties)
        .verify_incoming_source(false)
        .verify_incoming_target(false)
        .attach(&mut session);
    let attached = tokio::select! {
        attached = timeout(limit, attaching) => attached,
        () = until => {
            end(session).await;
            return Err(error::new(ErrorKind::Closed, "attach", "the receiver was closed"));
        }
    };
    match attached {
        Ok(Ok(link)) => Ok(Attached::new(link, session)),
        Ok(Err(e)) => Err(error::of_receiver_attach(&e)),
        Err(_) => {
            end(session).await;
            Err(error::timeout("attach", limit))
        }
    }
}

/// Ends a session on which nothing stands.
async fn end(mut session: SessionHandle<()>) {
    if timeout(GOODBYE, session.end()).await.is_err() {
        tracing::debug!("a session did not end in time");
    }
}

/// What is known after the credit was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// All that was on its way has come.
    Whole,
    /// `take` said stop, or the link is gone.
    Stopped,
    /// The broker did not answer in time. What it still sends is not seen: under a lock it comes back when that ends, else it is deleted.
    Late,
}

/// How long `drain` goes on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Patience {
    /// So long in all.
    InAll(Duration),
    /// Until nothing came, no message and no answer, for so long.
    Silence(Duration),
}

/// Takes the credit back: hands `take` what the broker sends before it knows, until `take` says stop or its time is over.
///
/// fe2o3-amqp does not tell when the broker has answered. A link that is attached on the same session after the request is answered
/// after it, and a session hands on what comes in its order: with that answer here, the messages before it are waiting in the link. This
/// is repeated until it brings none, and a moment is waited then, for a broker that works on both side by side.
pub(crate) async fn drain(
    attached: &mut Attached<Receiver>,
    patience: Patience,
    mut take: impl FnMut(Delivered) -> bool,
) -> Drained {
    // A failure means that the link is gone, which reading finds out.
    let _ = attached.link.drain().await;
    let (Patience::InAll(within) | Patience::Silence(within)) = patience;
    let mut over = pin!(sleep(within));
    let address = attached.link.source().as_ref().and_then(|source| source.address.clone()).unwrap_or_default();
    loop {
        let mut came = false;
        let mut answer = pin!(answered_on(attached.session.clone(), address.clone()));
        loop {
            tokio::select! {
                biased;
                delivery = attached.link.recv() => {
                    came = true;
                    if matches!(patience, Patience::Silence(_)) {
                        over.as_mut().reset(Instant::now() + within);
                    }
                    if !take(delivery) {
                        return Drained::Stopped;
                    }
                }
                () = &mut answer => break,
                () = &mut over => return Drained::Late,
            }
        }
        // Unconstrained: the runtime would make a task pause that has taken many, as if there were none left.
        while let Some(delivery) = unconstrained(attached.link.recv()).now_or_never() {
            came = true;
            if !take(delivery) {
                return Drained::Stopped;
            }
        }
        if came {
            continue;
        }
        let Ok(delivery) = timeout(QUIET, attached.link.recv()).await else { return Drained::Whole };
        if !take(delivery) {
            return Drained::Stopped;
        }
    }
}

/// Done once the broker has answered to a link on this session; never, if it does not. A refusal is an answer, too.
async fn answered_on(session: Arc<Mutex<SessionHandle<()>>>, address: String) {
    let asking = async move {
        let mut session = session.lock().await;
        let attaching = Receiver::builder()
            .name(name(&address))
            .source(Source::builder().address(address).build())
            .credit_mode(CreditMode::Manual)
            .verify_incoming_source(false)
            .verify_incoming_target(false)
            .attach(&mut session);
        match timeout(CALL, attaching).await {
            Ok(Ok(link)) => {
                let _ = timeout(GOODBYE, link.close()).await;
                Ok(true)
            }
            Ok(Err(e)) => Ok(!matches!(e, ReceiverAttachError::SessionStopped(_))),
            Err(_) => Ok(false),
        }
    };
    if !matches!(uncut(asking).await, Ok(true)) {
        std::future::pending::<()>().await;
    }
}

/// What a link brings.
pub(crate) type Delivered = std::result::Result<Delivery<Body<Value>>, RecvError>;

/// The session a link was given.
pub(crate) fn session_id(link: &Receiver) -> Option<String> {
    let filter = link.source().as_ref()?.filter.as_ref()?;
    text(filter.get(&Symbol::from(SESSION_FILTER))?)
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(id) => Some(id.clone()),
        Value::Described(described) => text(&described.value),
        _ => None,
    }
}

/// Ends a receiver. It must not be dropped: with transfers on their way that would be an error of the session.
pub(crate) async fn close_receiver(attached: Attached<Receiver>) {
    let Attached { link, session } = attached;
    finish(link.close(), &session).await;
}

/// Ends a sender.
pub(crate) async fn close_sender(attached: Attached<Sender>) {
    let Attached { link, session } = attached;
    finish(link.close(), &session).await;
}

async fn finish(closing: impl Future<Output = Result<(), DetachError>>, session: &Mutex<SessionHandle<()>>) {
    let goodbye = async {
        if let Err(e) = closing.await {
            tracing::debug!(error = %e, "a link did not close politely");
        }
        let _ = session.lock().await.end().await;
    };
    if timeout(GOODBYE, goodbye).await.is_err() {
        tracing::debug!("a link did not close in time");
    }
}
