//! Replies: how they are made, and what an error looks like on the wire.

use polybus_core::{
    Address, Bus, Envelope, Error, ErrorKind, Event, Outgoing, Result, Topology,
    message::{Receipt, ReplyTo},
    time::Duration as TimeSpan,
};
use serde_json::{Value, json};

use super::{Refusal, RequestError};

/// The event type of a reply that says why there is no answer: JSON with `kind` and `message`.
pub(super) const ERROR_TYPE: &str = "polybus.reply.error";

/// How long an answer outlives the call that it is for: one that comes too late is to be counted, and not to expire unseen.
const GRACE: TimeSpan = TimeSpan::minutes(1);

/// The answer to a request, for a handler that sends it in its own way: through an outbox, in the transaction of what it
/// did.
///
/// ```no_run
/// # use polybus_core::{Bus, Event, HandlerError, Source};
/// # use polybus_patterns::{Inbox, Outbox, requests::Reply, store::{InboxStore, OutboxStore}};
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Booked { seat: u32 }
/// # impl Event for Booked { const TYPE: &'static str = "seat.booked"; const VERSION: u32 = 1; }
/// # async fn example<S: InboxStore + OutboxStore>(bus: Bus, db: S, outbox: Outbox<S>) -> polybus_core::Result<()> {
/// let handler = Inbox::new(&db, "booking").handler((bus.clone(), outbox), async |(bus, outbox), mut tx, _cx, msg| {
///     // … the booking, on `tx` …
///     if let Some(reply) = Reply::to(&msg, &Booked { seat: 7 })? {
///         let address = reply.address_in(bus.topology())?;
///         outbox.enqueue(&mut tx, address, reply).await?;
///     }
///     Ok(tx)
/// });
/// bus.worker(Source::queue("bookings")).run(handler).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Reply {
    to: ReplyTo,
    envelope: Envelope,
}

impl Reply {
    /// The answer to `request`; `None` if nobody waits for one.
    ///
    /// # Errors
    /// `InvalidArgument` if the event cannot be written as JSON.
    ///
    /// ```
    /// # use polybus_core::{Envelope, Event};
    /// # use polybus_patterns::requests::Reply;
    /// # #[derive(serde::Serialize, serde::Deserialize)] struct Booked { seat: u32 }
    /// # impl Event for Booked { const TYPE: &'static str = "seat.booked"; const VERSION: u32 = 1; }
    /// let event = Envelope::new("order.placed", "{}");
    /// assert!(Reply::to(&event, &Booked { seat: 7 })?.is_none(), "an event is not answered");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn to(request: &Envelope, event: &impl Event) -> Result<Option<Self>> {
        Ok(Self::with(request, Envelope::event(event)?))
    }

    /// The answer to `request` with any message; `None` if nobody waits for one.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// # use polybus_patterns::requests::Reply;
    /// let request = Envelope::new("fibonacci", "30").reply_to("replies");
    /// assert!(Reply::with(&request, Envelope::new("number", "832040")).is_some());
    /// ```
    pub fn with(request: &Envelope, answer: Envelope) -> Option<Self> {
        let to = ReplyTo::of(request)?;
        // An answer that was made of its request asks for none itself: two of them would go round for ever.
        let mut envelope = match answer.native_reply().map(|(queue, _)| queue) == Some(to.queue()) {
            true => answer.without_reply_to(),
            false => answer,
        };
        envelope = envelope.caused_by(request);
        if let (None, Some(at)) = (envelope.expires_at, request.expires_at) {
            envelope = envelope.expires_at(at.saturating_add(GRACE));
        }
        Some(Self { to, envelope })
    }

    /// The error that the caller gets instead of an answer; `None` if nobody waits for one.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// # use polybus_patterns::requests::{Refusal, Reply};
    /// let request = Envelope::new("quote.wanted", "{}").reply_to("replies");
    /// assert!(Reply::refusal(&request, &Refusal::new("unknown-sku", "there is no B-3")).is_some());
    /// ```
    pub fn refusal(request: &Envelope, refusal: &Refusal) -> Option<Self> {
        let body = json!({ "kind": refusal.kind(), "message": refusal.message() });
        Self::with(request, Envelope::new(ERROR_TYPE, body.to_string()))
    }

    /// Where it goes.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// # use polybus_patterns::requests::Reply;
    /// let request = Envelope::new("fibonacci", "30").reply_to("replies");
    /// let reply = Reply::with(&request, Envelope::new("number", "832040"));
    /// assert!(reply.is_some_and(|reply| reply.reply_to().queue() == "replies"));
    /// ```
    pub fn reply_to(&self) -> &ReplyTo {
        &self.to
    }

    /// The message.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// # use polybus_patterns::requests::Reply;
    /// let request = Envelope::new("fibonacci", "30").id("7").reply_to("replies");
    /// let reply = Reply::with(&request, Envelope::new("number", "832040"));
    /// assert!(reply.is_some_and(|reply| reply.envelope().causation_id.as_deref() == Some("7")));
    /// ```
    pub fn envelope(&self) -> &Envelope {
        &self.envelope
    }

    /// The address of the queue that waits, for an outbox.
    ///
    /// # Errors
    /// `Unsupported`: it is another program's queue, which no address of this topology names. Answer it with
    /// [`publish`](Self::publish) after the commit.
    ///
    /// ```
    /// # use polybus_core::{Address, Envelope, Topology};
    /// # use polybus_patterns::requests::Reply;
    /// let request = Envelope::new("fibonacci", "30").reply_to("replies");
    /// if let Some(reply) = Reply::with(&request, Envelope::new("number", "832040")) {
    ///     assert_eq!(reply.address_in(&Topology::new())?, Address::queue("replies"));
    /// }
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn address_in(&self, topology: &Topology) -> Result<Address> {
        let found = self.to.address_in(topology).filter(|_| self.to.session().is_none());
        found.ok_or_else(|| {
            let text = "the reply queue is another program's, which no address of the topology names: answer it with \
                        Reply::publish after the commit";
            Error::unsupported(text).with_context("reply_to", self.to.queue())
        })
    }

    /// Publishes it.
    ///
    /// # Errors
    /// Those of [`Bus::publish_reply`]. `NotFound`: whoever asked has left, and the queue with it.
    ///
    /// # Cancel safety
    /// That of [`Bus::publish_reply`].
    ///
    /// ```no_run
    /// # use polybus_core::{Bus, Envelope};
    /// # use polybus_patterns::requests::Reply;
    /// # async fn example(bus: Bus, request: Envelope) -> polybus_core::Result<()> {
    /// if let Some(reply) = Reply::with(&request, Envelope::new("number", "832040")) {
    ///     reply.publish(&bus).await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn publish(self, bus: &Bus) -> Result<Receipt> {
        bus.publish_reply(&self.to, self.envelope).await
    }
}

impl From<Reply> for Outgoing {
    fn from(reply: Reply) -> Self {
        reply.envelope.into()
    }
}

/// The event of a message. That of a program which knows no CloudEvents is read as JSON, whatever its type.
pub(super) fn decode<R: Event>(message: Envelope) -> Result<R> {
    match &*message.event_type {
        Envelope::FOREIGN_TYPE => {
            let read = message.edit(|fields| (fields.event_type, fields.content_type) = (R::TYPE.into(), None));
            read.decode()
        }
        _ => message.decode(),
    }
}

/// The error that a reply tells; `None` for an answer.
pub(super) fn remote_error(reply: &Envelope) -> Option<RequestError> {
    if &*reply.event_type != ERROR_TYPE {
        return None;
    }
    let body: Value = match serde_json::from_slice(&reply.data) {
        Ok(body) => body,
        Err(_) => return Some(RequestError::Decode(Error::new(ErrorKind::Malformed, "the error is no JSON"))),
    };
    let text = |name: &str| body.get(name).and_then(Value::as_str).unwrap_or_default().into();
    Some(RequestError::Remote { kind: text("kind"), message: text("message") })
}
