//! What an adapter author implements. The docs here are the contract; the conformance suite is its judge.
//!
//! Drivers do not batch, retry, validate or renew: core does, once, for all of them. A driver translates, reports every
//! item's own result, and keeps its promises when a future is dropped or a connection is lost.
//!
//! # What core does after an error
//!
//! Every call is one attempt. What follows is decided by the [`Kind`] and by [`Error::retry`](crate::Error::retry):
//!
//! | call | core calls again after | for how long | else |
//! |---|---|---|---|
//! | `open_sender`, `open_receiver` | `Unavailable`, `Timeout`, `Throttled` that are not `Never` | the publish timeout | the error, at once |
//! | `declare` | `Unavailable`, `Throttled` that are `Safe` | the publish timeout | the error, at once |
//! | `send` | `Unavailable`, `Timeout` that are `Safe` or `MayDuplicate`; `Throttled` that is `Safe` | the publish timeout, with the same id each time | the error. One `MayDuplicate` on the way makes the last error that, too |
//! | `settle` | `Unavailable`, `Timeout`, `Throttled` that are `Safe` and have no context `copy=kept`, as long as the delivery is held; never `GiveBack` | 30 s, or until the consumer closes | the error, with the delivery unless it is `LockLost`. A worker goes on trying after passing errors as long as the delivery is held. After `copy=kept` what is left is to `Ack` |
//! | `receive` | everything but `Closed` | for ever. `NotFound`, `PermissionDenied`, `Unauthenticated` that last for `give_up_after` (30 s by default) without a success in between end the subscription; so does `Closed`, at once | – |
//! | `extend` | everything but `LockLost`, which loses the lock | as long as the lock lasts. One call has an eighth of it | the lock runs out |
//! | `stats`, `purge`, `delete`, `version`, `close` | nothing | – | the error |
//!
//! Between calls core waits with a backoff from 50 ms to 2 s, with jitter. A panic in a driver is `Unexpected`, `MayDuplicate`.
//!
//! `Safe` means: it surely had no effect. For `send` what is not known is `MayDuplicate`, and is sent again, since the id tells a copy. For `settle`
//! what is not known is `MayDuplicate` as well, but core does not settle again: an ack that was carried out makes the next one `LockLost`, and a
//! copy would be there twice. Say `Safe` wherever the request did not go out.
//!
//! # The order of closing
//!
//! `Bus::close` stops every receiver ([`Receiver::close`]), gives back what was not handed out, waits for settlements that are under way, closes every
//! settler ([`Settler::close`]: what is still unsettled goes back), waits for publishes, closes every [`Sender`], and then the [`Driver`]. A
//! broker that does not answer is waited for about 5 s: the future of a close may be dropped like any other.

pub(crate) mod capabilities;
pub(crate) mod kit;
pub(crate) mod layer;

use std::{any::Any, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::{
    Address, Capabilities, Clock, DeclareMode, DeclareReport, Entity, Envelope, Error, Kind, Outgoing, Plan, Receipt,
    Result, Source, Stats, telemetry::MessagingSystem,
};

/// A connection to a broker: opens senders and receivers, and looks after entities.
///
/// **Reconnecting.** A driver owns its connection and makes a new one when it is asked to do something and the old one
/// is gone: one attempt per call, shared by concurrent callers, limited in time. It answers `Unavailable` when that
/// fails; core waits with backoff and calls again.
///
/// **Cancellation.** Every future may be dropped at any await without leaking a connection, a permit or a consumer.
///
/// **Errors.** Map every error of the client crate to a [`Kind`] in one file, `error.rs`; never let a secret in.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// The broker family, for example `rabbitmq`: shown in errors and metrics, and the name of the options table.
    fn backend(&self) -> &'static str;

    /// What this broker can do. Constant over the driver's life.
    fn capabilities(&self) -> &Capabilities;

    /// Product and version of the server, as far as it tells. For reports.
    async fn version(&self) -> Option<String> {
        None
    }

    /// The names this plan takes at the broker: namespace and name, and the entity that takes it. Core refuses a topology
    /// in which two entities take the same one.
    fn physical_names(&self, plan: &Plan) -> Vec<(String, String)> {
        let _ = plan;
        Vec::new()
    }

    /// Whether this entity's settings and options are ones the broker can keep; `Unsupported` or `ConfigInvalid` if not.
    /// Without I/O. Core calls it for every source and topic of a topology when the bus is made.
    fn check(&self, plan: &Plan) -> Result<()> {
        let _ = plan;
        Ok(())
    }

    /// Creates what is missing (`Create`) or only looks (`Verify`). It adds whatever a topic, a queue or a subscription still needs: bindings, rules, a
    /// policy for its own topic. It never changes or deletes what is there. Many processes may declare the
    /// same plan at once; all succeed. Differences are reported, not errors.
    /// One attempt: core calls again while that is `Unavailable` or `Throttled` and [`Retry::Safe`](crate::Retry::Safe), so these say that the
    /// broker is not ready or pushes back, and nothing else.
    async fn declare(&self, plan: &Plan, mode: DeclareMode) -> Result<DeclareReport>;

    /// Opens a sender. A missing queue or topic is reported here or by each `send`, as the broker allows.
    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>>;

    /// Opens a consumer of at most `from.prefetch` unsettled deliveries, and what settles them. They are apart so that a
    /// long poll never blocks settling. A missing source is `NotFound`, here or from the first `receive`.
    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)>;

    /// How many messages a live source holds.
    async fn stats(&self, of: &Entity<Source>) -> Result<Stats> {
        Err(Error::unsupported("stats").with("source", &of.name))
    }

    /// Deletes the ready messages of a source (live or dead letters) and tells how many, as far as the broker does.
    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        Err(Error::unsupported("purge").with("source", &from.name))
    }

    /// Deletes everything that `declare` makes for this plan, dead letters and helpers included. Missing ones are fine.
    async fn delete(&self, plan: &Plan) -> Result<()> {
        let _ = plan;
        Err(Error::unsupported("delete"))
    }

    /// Ends the connection. Core has closed receivers, settlers and senders before. Core waits about 5 s for it, then drops the future.
    /// Idempotent.
    async fn close(&self) -> Result<()>;

    /// What OpenTelemetry calls this broker's queues and subscriptions, and its topics, and where they are: for spans. By default the
    /// backend's name, without a server. Read once. No secret.
    fn messaging_systems(&self) -> (MessagingSystem, MessagingSystem) {
        let system = MessagingSystem::new(self.backend(), self.backend());
        (system.clone(), system)
    }

    /// The clock by which this driver's world runs, where it is not the machine's.
    fn clock(&self) -> Option<Arc<dyn Clock>> {
        None
    }

    /// What `Bus::native` hands out.
    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        None
    }
}

/// Publishes to one address. Shared by many tasks.
#[async_trait]
pub trait Sender: Send + Sync + 'static {
    /// How core should form batches. Read once.
    fn batching(&self) -> Batching;

    /// Encodes one message, on the publisher's task, without I/O. Sizes are checked here, on the encoded message:
    /// `PayloadTooLarge` names the size and the limit. The result may be sent more than once, with the same id each time.
    fn prepare(&self, message: Outgoing) -> Result<Prepared>;

    /// Sends a batch, in order, and answers with one result per message, in order.
    ///
    /// Ok: the broker has taken durable responsibility. An error's [`Retry`](crate::Retry) says `Safe` only if the message
    /// was surely not stored, `MayDuplicate` if that is not known. One message's failure is never its neighbours': what
    /// else was affected is sent again here, or answered for itself as `Unavailable`. Core bounds the call in time and may
    /// drop the future; up to `Batching::in_flight` calls run at once.
    async fn send(&self, batch: &[Prepared]) -> Vec<Result<Receipt>>;

    /// Why the broker takes nothing just now, such as a connection it has blocked; known without I/O. A publish whose time
    /// runs out while it is under way says this instead of `Timeout`.
    fn held_back(&self) -> Option<Error> {
        None
    }

    /// Ends the sender. No `send` is under way. Core waits about 5 s for it, then drops the future. Idempotent.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Takes messages from one source.
#[async_trait]
pub trait Receiver: Send + 'static {
    /// Waits for messages and returns 1 to `max` of them; none, if a poll ended empty. `max` is at least 1, and is the room there is: the
    /// prefetch less what is unsettled, or what a worker's handlers are free for where a hand-over counts as an attempt. It may be larger in
    /// the next call, which then drops this one.
    ///
    /// **Cancel safe:** what is in flight lives in `self`, never in the future; a dropped call loses nothing.
    /// **Errors:** core calls again after every error but `Closed`, after a backoff, and the receiver re-attaches by itself, also to a source
    /// that was deleted and made anew; unsettled deliveries of the lost attachment are `LockLost` from then on. `NotFound`,
    /// `PermissionDenied` and `Unauthenticated` end the subscription only once they have lasted for `give_up_after` without a success in between: a
    /// receive that returns Ok, or waits for 10 s. They are for what is surely gone or forbidden. What passes by itself is `Unavailable`,
    /// `Throttled` or `Timeout`: a node that is down, a queue that is switched off, a credential that can be renewed, a clock that is off, a login
    /// refused while reconnecting. Where a quota of the broker holds messages up, the error is `Throttled` and names it as context `quota`,
    /// for the metric. Entities are never re-created.
    async fn receive(&mut self, max: usize) -> Result<Vec<Received>>;

    /// Stops taking messages, and gives back those that `receive` has not returned, at once and in order. Those it has
    /// returned can still be settled. On an ordered source nothing unsettled is given back yet: `Settler::close` does that,
    /// in whatever way keeps each key's order. Idempotent.
    async fn close(&mut self) -> Result<()>;
}

/// Settles the deliveries of one receiver. Shared by many tasks.
#[async_trait]
pub trait Settler: Send + Sync + 'static {
    /// How core should form batches. Read once.
    fn batching(&self) -> Batching;

    /// Settles a batch and answers with one result per item, in order.
    ///
    /// A token whose lock, channel or connection is gone is `LockLost` and settles nothing, least of all another message.
    /// A failed copy (`RetryAfter`, `DeadLetter`, `Redrive`, `RedriveAs`, `SetAside`) leaves the message unacknowledged, so the copy is confirmed before the
    /// original is settled. What a copy carries says [`Carried::copied`](crate::message::cloudevents::Carried::copied). Where the broker may
    /// deduplicate, its native id is [`copy_id`](crate::topology::names::copy_id), never one made of the message's own. One copy that is too large is
    /// `PayloadTooLarge` for itself alone. A settlement that a driver does not know is `Unsupported`: acting upon it would lose messages. A copy that was made while
    /// the settle then failed is withdrawn where possible, else the error has context `copy=kept`: core goes on with `Ack`. Batches hold either
    /// only `Ack`, `Release`, `GiveBack`, or only the copying kinds. A [`Settlement`] that the driver does not know is `Unsupported` and does
    /// nothing: an arm `_` that acknowledges deletes messages.
    async fn settle(&self, batch: &[Settle]) -> Vec<Result<()>>;

    /// Lengthens locks: each is then held for `by` from now, or for as long as the broker gives: the answer counts, and core renews at half of it.
    /// Answers each token's new local deadline, margin taken off. A call that is not answered within an eighth of the lock is dropped, and each
    /// of its tokens goes into a call of its own the next time. Core calls it for up
    /// to `Batching::entries` tokens, and up to `Batching::in_flight` times at once, beside settlements.
    async fn extend(&self, tokens: &[Token], by: Duration) -> Vec<Result<Instant>> {
        let _ = by;
        Error::unsupported("extend: this broker's hold on a delivery cannot be renewed").for_each_of(tokens.len())
    }

    /// Whether this delivery is still held, as far as is known without I/O. Core discards buffered ones that are not.
    fn holds(&self, token: &Token) -> bool {
        let _ = token;
        true
    }

    /// Core lets go of a delivery that was not settled, since its lock, or that of an earlier one of its key, has run out:
    /// what is kept for it can go. Without I/O.
    fn forget(&self, token: &Token) {
        let _ = token;
    }

    /// Finishes what is under way and gives every unsettled delivery back to the broker without reordering a key. Later
    /// settlements are `LockLost`. Idempotent.
    async fn close(&self) -> Result<()>;
}

/// How core forms batches for a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batching {
    /// Most messages in a batch.
    pub entries: usize,
    /// Most bytes in a batch, by [`Prepared::size`].
    pub bytes: usize,
    /// Most batches under way at once.
    pub in_flight: usize,
    /// Of settlements: a batch that is not full starts only while fewer than this many are under way. `in_flight` unless
    /// [`fuller`](Self::fuller) says otherwise.
    pub partial: usize,
    /// Of settlements: how long a batch that is not full waits for those deliveries that are still being handled.
    pub linger: Duration,
}

impl Batching {
    /// Limits of at least 1 each.
    pub fn new(entries: usize, bytes: usize, in_flight: usize) -> Self {
        let in_flight = in_flight.max(1);
        Self { entries: entries.max(1), bytes: bytes.max(1), in_flight, partial: in_flight, linger: Duration::ZERO }
    }

    /// For brokers that charge by the call: settlements that do not fill a batch wait while one is under way, and for `linger`
    /// while their consumer has other deliveries in hand, which may soon be settled too. It costs them up to one round trip and
    /// `linger`; full batches go as ever, and where nobody joins, waiting becomes rare.
    pub fn fuller(mut self, linger: Duration) -> Self {
        (self.partial, self.linger) = (1, linger);
        self
    }
}

/// A message ready to be sent.
#[non_exhaustive]
pub struct Prepared {
    /// The message as it was given.
    pub message: Outgoing,
    /// Its size on the wire in bytes, as the broker counts it.
    pub size: usize,
    /// Whatever the driver wants to find again in `send`.
    pub native: Option<Token>,
}

impl Prepared {
    /// A message and its size on the wire.
    pub fn new(message: Outgoing, size: usize) -> Self {
        Self { message, size, native: None }
    }

    /// Adds the driver's own encoded form.
    pub fn native<T: Any + Send + Sync>(mut self, native: T) -> Self {
        self.native = Some(Token::new(native));
        self
    }
}

/// Something of the driver's that core carries without looking at it. Cheap to clone.
#[derive(Clone)]
pub struct Token(Arc<dyn Any + Send + Sync>);

impl Token {
    /// Wraps the driver's value.
    pub fn new<T: Any + Send + Sync>(value: T) -> Self {
        Self(Arc::new(value))
    }

    /// The driver's value; `Unexpected` if it is of another type.
    pub fn get<T: Any>(&self) -> Result<&T> {
        self.0.downcast_ref().ok_or_else(|| Error::new(Kind::Unexpected, "a token of another driver"))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// A message as a receiver returns it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Received {
    /// What the settler knows it by.
    pub token: Token,
    /// The message; for an undecodable one its foreign view.
    pub envelope: Envelope,
    /// 1-based: carried attempts plus the broker's count of hand-overs.
    pub attempt: u32,
    /// When the lock ends on the client's monotonic clock: arrival of the response + lock − margin, the margin being at
    /// least 1 s and at most a quarter of the lock. `None` where locks cannot be renewed.
    pub locked_until: Option<Instant>,
    /// Why the message could not be decoded. Core dead-letters it; on dead letters it is handed out raw.
    pub malformed: Option<Box<str>>,
    /// On dead letters: what is known of how it got there.
    pub dead_letter: Option<Box<DeadLetter>>,
    /// What the broker knows the message by, as long as it is in this source and however often it is handed out: a sequence number, the
    /// broker's own id of this copy. Never the producer's id, which may come twice. `None` where the broker has nothing of the kind.
    pub known_by: Option<Box<str>>,
    /// The mark it carries from a redrive that has seen it: [`Carried::mark`](crate::message::cloudevents::Carried::mark).
    pub mark: Option<Box<str>>,
    /// The native message, for [`Delivery::native`](crate::Delivery::native).
    pub native: Option<Token>,
    /// On ordered sources: what orders at the broker (message group, session), where that is not [`Envelope::key`] as it stands: a foreign
    /// message has no key, and a long key travels as its hash. Core orders and blocks by it; `None` means by the key, and messages that have
    /// neither share one lane.
    pub group: Option<Box<str>>,
}

impl Received {
    /// A decoded message.
    pub fn new(token: Token, envelope: Envelope, attempt: u32) -> Self {
        Self {
            token,
            envelope,
            attempt,
            locked_until: None,
            malformed: None,
            dead_letter: None,
            known_by: None,
            mark: None,
            native: None,
            group: None,
        }
    }
}

/// What a driver takes off a lock, since the client learns of it late: 1 s, at most a quarter of the lock.
pub fn lock_margin(lock: Duration) -> Duration {
    (lock / 4).min(Duration::from_secs(1))
}

/// How and when a message came to the dead letters. What the broker does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Why, in one word: `max-deliveries-exceeded`, `malformed`, `expired`, or the application's.
    pub reason: Option<Box<str>>,
    /// Details for a person.
    pub detail: Option<Box<str>>,
    /// The attempt at which it was given up.
    pub attempt: Option<u32>,
    /// The source it was given up by, as text.
    pub origin: Option<Box<str>>,
    /// When.
    pub time: Option<OffsetDateTime>,
    /// How often it had been redriven before it died this time.
    pub redriven: u32,
}

/// One settlement for a driver to carry out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settle {
    /// The delivery.
    pub token: Token,
    /// Its message: a retry or a dead letter is a copy on some brokers.
    pub envelope: Envelope,
    /// The attempt it was handed out as.
    pub attempt: u32,
    /// What to do.
    pub how: Settlement,
    /// Of a dead letter: when it was given up.
    pub time: OffsetDateTime,
    /// Of a redrive: the mark that the copy carries, so that this redrive knows it if it meets it again.
    pub mark: Option<Arc<str>>,
}

impl Settle {
    /// One settlement.
    pub fn new(token: Token, envelope: Envelope, attempt: u32, how: Settlement) -> Self {
        Self { token, envelope, attempt, how, time: OffsetDateTime::UNIX_EPOCH, mark: None }
    }

    /// The same settlement of another driver's token, for drivers that wrap one.
    pub fn with_token(&self, token: Token) -> Self {
        Self { token, ..self.clone() }
    }

    /// The driver's own values of a whole batch, in order; `Unexpected` if one is of another type.
    pub fn tokens<T: Any>(batch: &[Self]) -> Result<Vec<&T>> {
        batch.iter().map(|settle| settle.token.get()).collect()
    }

    /// What a dead letter's copy tells, given up by `from`; `None` for other settlements.
    pub fn dead_letter(&self, from: &Source) -> Option<Box<DeadLetter>> {
        let Settlement::DeadLetter { reason, detail } = &self.how else { return None };
        Some(Box::new(DeadLetter {
            reason: Some(reason.clone()),
            detail: Some(detail.clone()).filter(|d| !d.is_empty()),
            attempt: Some(self.attempt),
            origin: Some(from.to_string().into()),
            time: Some(self.time),
            redriven: 0,
        }))
    }
}

/// What can be done with a delivery.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Settlement {
    /// Done: the message is gone.
    Ack,
    /// Available again at once, with the attempt counted. It is ready then, for [`Stats`](crate::Stats), not in flight.
    Release,
    /// Was never handed out: available again at once, the attempt not counted where the broker can.
    GiveBack,
    /// Not before this much time, then with attempt + 1; late by at most 10 %; to this source alone.
    RetryAfter(Duration),
    /// Into the source's dead letters, envelope unchanged, with attempt, origin and time.
    DeadLetter {
        /// Why, in one word.
        reason: Box<str>,
        /// Details for a person.
        detail: Box<str>,
    },
    /// On dead letters only: back to the live source alone; same id and headers, counters and reasons stripped. The copy carries
    /// [`Settle::mark`] where one is set.
    Redrive,
    /// As [`Redrive`](Self::Redrive), but this message goes back in place of the original, encoded anew.
    RedriveAs(Box<Envelope>),
    /// On dead letters only: to the end of the dead letters, nothing changed but the mark it carries from then on. Core asks for it only
    /// where [`Capabilities::kept_letters_block`] says that a letter which is held hides those behind it.
    SetAside,
}

impl Settlement {
    /// Whether a copy may be made, so that it takes a round trip.
    pub fn copies(&self) -> bool {
        matches!(
            self,
            Self::RetryAfter(_) | Self::DeadLetter { .. } | Self::Redrive | Self::RedriveAs(_) | Self::SetAside
        )
    }
}
