//! Links, each on a session of its own.

use std::time::Duration;

use fe2o3_amqp::{
    Delivery, Receiver, Sender,
    link::{CreditMode, DetachError, RecvError},
    session::SessionHandle,
    types::{
        definitions::{Fields, ReceiverSettleMode, SenderSettleMode},
        messaging::{Body, FilterSet, Source},
        primitives::{Symbol, Value},
    },
};
use polybus_core::Result;
use tokio::time::timeout;

use crate::{config::CALL, connection::Wire, error};

const SESSION_FILTER: &str = "com.microsoft:session-filter";
/// How long a link may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// How long the broker may take to answer that nothing more comes.
const DRAIN: Duration = Duration::from_secs(2);
/// And how long nothing may come then.
const QUIET: Duration = Duration::from_millis(50);

/// A link and the session it lives on, which ends when this is dropped.
pub(crate) struct Attached<L> {
    pub(crate) link: L,
    pub(crate) session: SessionHandle<()>,
}

/// How messages are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// Under a lock, until settled.
    Peek,
    /// For good, as soon as they are sent.
    Delete,
}

/// Which session of an ordered source.
#[derive(Clone, Debug)]
pub(crate) struct NextSession {
    /// How long the broker waits for one.
    pub(crate) within: Duration,
}

fn name(path: &str) -> String {
    format!("{path}-{}", uuid::Uuid::new_v4().simple())
}

/// Attaches a sender to `path`. A missing entity is `NotFound`.
pub(crate) async fn sender(wire: &Wire, path: &str) -> Result<Attached<Sender>> {
    let mut session = wire.session().await?;
    let attaching = Sender::builder()
        .name(name(path))
        .target(path)
        .sender_settle_mode(SenderSettleMode::Unsettled)
        .verify_incoming_source(false)
        .verify_incoming_target(false)
        .attach(&mut session);
    match timeout(CALL, attaching).await {
        Ok(Ok(link)) => Ok(Attached { link, session }),
        Ok(Err(e)) => Err(error::of_sender_attach(&e)),
        Err(_) => Err(error::timeout("attach", CALL)),
    }
}

/// Attaches a receiver to `path`, without credit.
pub(crate) async fn receiver(
    wire: &Wire,
    path: &str,
    take: Take,
    session_of: Option<&NextSession>,
) -> Result<Attached<Receiver>> {
    let mut session = wire.session().await?;
    let mut source = Source::builder().address(path);
    let mut properties = Fields::default();
    let mut limit = CALL;
    if let Some(NextSession { within }) = session_of {
        let mut filter = FilterSet::default();
        filter.insert(Symbol::from(SESSION_FILTER), Value::Null);
        source = source.filter(filter);
        let millis = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        properties.insert(Symbol::from("com.microsoft:timeout"), Value::Uint(millis));
        limit += *within;
    }
    let attaching = Receiver::builder()
        .name(name(path))
        .source(source.build())
        .sender_settle_mode(if take == Take::Peek { SenderSettleMode::Unsettled } else { SenderSettleMode::Settled })
        // What is settled is confirmed on the management link; a disposition then only tells that this side forgets.
        .receiver_settle_mode(ReceiverSettleMode::First)
        .credit_mode(CreditMode::Manual)
        .properties(properties)
        .verify_incoming_source(false)
        .verify_incoming_target(false)
        .attach(&mut session);
    match timeout(limit, attaching).await {
        Ok(Ok(link)) => Ok(Attached { link, session }),
        Ok(Err(e)) => Err(error::of_receiver_attach(&e)),
        Err(_) => Err(error::timeout("attach", limit)),
    }
}

/// Takes the credit back: hands `take` what the broker sends before it knows, until `take` says stop.
///
/// fe2o3-amqp does not tell when the broker has answered. A round trip on the same connection that begins later ends later,
/// and then a moment without messages must do; what comes after all comes back when its lock ends.
pub(crate) async fn drain(wire: &Wire, link: &mut Receiver, mut take: impl FnMut(Delivered) -> bool) {
    if link.drain().await.is_err() {
        return;
    }
    let round_trip = async {
        if let Ok(mut session) = wire.session().await {
            let _ = session.end().await;
        }
    };
    let mut round_trip = std::pin::pin!(timeout(DRAIN, round_trip));
    loop {
        tokio::select! {
            delivery = link.recv() => if !take(delivery) { return },
            _ = &mut round_trip => break,
        }
    }
    while let Ok(delivery) = timeout(QUIET, link.recv()).await {
        if !take(delivery) {
            return;
        }
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
    let Attached { link, mut session } = attached;
    finish(link.close(), &mut session).await;
}

/// Ends a sender.
pub(crate) async fn close_sender(attached: Attached<Sender>) {
    let Attached { link, mut session } = attached;
    finish(link.close(), &mut session).await;
}

async fn finish(closing: impl Future<Output = Result<(), DetachError>>, session: &mut SessionHandle<()>) {
    let goodbye = async {
        if let Err(e) = closing.await {
            tracing::debug!(error = %e, "a link did not close politely");
        }
        let _ = session.end().await;
    };
    if timeout(GOODBYE, goodbye).await.is_err() {
        tracing::debug!("a link did not close in time");
    }
}
