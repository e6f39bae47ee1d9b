//! Links, each on a session of its own.

use std::{sync::Arc, time::Duration};

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
use polybus_core::{Kind, Result};
use tokio::time::timeout;

use crate::{
    config::CALL,
    connection::{Wire, uncut},
    error,
};

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
            Ok(Ok(link)) => Ok(Attached { link, session }),
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
            return Err(error::new(Kind::Closed, "attach", "the receiver was closed"));
        }
    };
    match attached {
        Ok(Ok(link)) => Ok(Attached { link, session }),
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

/// Takes the credit back: hands `take` what the broker sends before it knows, until `take` says stop.
///
/// fe2o3-amqp does not tell when the broker has answered. A round trip on the same connection that begins later ends later,
/// and then a moment without messages must do; what comes after all comes back when its lock ends.
pub(crate) async fn drain(wire: &Arc<Wire>, link: &mut Receiver, mut take: impl FnMut(Delivered) -> bool) {
    if link.drain().await.is_err() {
        return;
    }
    let wire = wire.clone();
    let round_trip = uncut(async move {
        end(wire.session().await?).await;
        Ok(())
    });
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
