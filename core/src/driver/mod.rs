//! What an adapter author implements. The docs here are the contract; the conformance suite is its judge.
//!
//! Drivers do not batch, retry, validate or renew: core does, once, for all of them. A driver translates, reports every
//! item's own result, and keeps its promises when a future is dropped or a connection is lost.
//!
//! # What core does after an error
//!
//! Every call is one attempt. What follows is decided by the [`ErrorKind`] and by [`Error::retry`](crate::error::Error::retry):
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

mod batching;
mod capabilities;
pub(crate) mod catch_panic;
mod connect_url;
mod connector;
pub mod kit;
mod layer;
mod messages;
mod messaging_system;
pub(crate) mod pasted_urls;
mod redact;
mod settlement;

use std::{any::Any, sync::Arc, time::Duration};

pub use async_trait::async_trait;
use tokio::time::Instant;

pub use self::{
    batching::Batching,
    capabilities::{AttemptDurability, Capabilities, KeyHolder, KeyOrder},
    connect_url::ConnectUrl,
    connector::Connector,
    layer::DriverLayer,
    messages::{DriverToken, PreparedMessage, ReceivedMessage, lock_margin},
    messaging_system::MessagingSystem,
    settlement::{SettleRequest, Settlement},
};
pub use crate::message::DeadLetter;
use crate::{
    error::{Error, Result},
    message::{Outgoing, Receipt},
    runtime::clock::Clock,
    topology::{Address, DeclareMode, DeclarePlan, DeclareReport, Entity, Source, SourceStats},
};

/// A connection to a broker: opens senders and receivers, and looks after entities.
///
/// **Reconnecting.** A driver owns its connection and makes a new one when it is asked to do something and the old one
/// is gone: one attempt per call, shared by concurrent callers, limited in time. It answers `Unavailable` when that
/// fails; core waits with backoff and calls again.
///
/// **Cancellation.** Every future may be dropped at any await without leaking a connection, a permit or a consumer.
///
/// **Errors.** Map every error of the client crate to a [`ErrorKind`] in one file, `error.rs`; never let a secret in.
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
    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        let _ = plan;
        Vec::new()
    }

    /// Whether this entity's settings and options are ones the broker can keep; `Unsupported` or `ConfigInvalid` if not.
    /// Without I/O. Core calls it for every source and topic of a topology when the bus is made.
    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        let _ = plan;
        Ok(())
    }

    /// Creates what is missing (`Create`) or only looks (`Verify`). It adds whatever a topic, a queue or a subscription still needs: bindings, rules, a
    /// policy for its own topic. It never changes or deletes what is there. Many processes may declare the
    /// same plan at once; all succeed. Differences are reported, not errors.
    /// One attempt: core calls again while that is `Unavailable` or `Throttled` and [`RetrySafety::Safe`](crate::error::RetrySafety::Safe), so these say that the
    /// broker is not ready or pushes back, and nothing else.
    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport>;

    /// Opens a sender. A missing queue or topic is reported here or by each `send`, as the broker allows.
    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>>;

    /// Opens a consumer of at most `from.prefetch` unsettled deliveries, and what settles them. They are apart so that a
    /// long poll never blocks settling. A missing source is `NotFound`, here or from the first `receive`.
    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)>;

    /// How many messages a live source holds.
    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        Err(Error::unsupported("stats").with_context("source", &of.name))
    }

    /// Deletes the ready messages of a source (live or dead letters) and tells how many, as far as the broker does.
    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        Err(Error::unsupported("purge").with_context("source", &from.name))
    }

    /// Deletes everything that `declare` makes for this plan, dead letters and helpers included. Missing ones are fine.
    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
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
    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage>;

    /// Sends a batch, in order, and answers with one result per message, in order.
    ///
    /// Ok: the broker has taken durable responsibility. An error's [`RetrySafety`](crate::error::RetrySafety) says `Safe` only if the message
    /// was surely not stored, `MayDuplicate` if that is not known. One message's failure is never its neighbours': what
    /// else was affected is sent again here, or answered for itself as `Unavailable`. Core bounds the call in time and may
    /// drop the future; up to `Batching::in_flight` calls run at once.
    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>>;

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
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>>;

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
    /// original is settled. What a copy carries says [`CopyState::copied`](crate::message::cloudevents::CopyState::copied). Where the broker may
    /// deduplicate, its native id is [`copy_id`](crate::topology::names::copy_id), never one made of the message's own. One copy that is too large is
    /// `PayloadTooLarge` for itself alone. A settlement that a driver does not know is `Unsupported`: acting upon it would lose messages. A copy that was made while
    /// the settle then failed is withdrawn where possible, else the error has context `copy=kept`: core goes on with `Ack`. Batches hold either
    /// only `Ack`, `Release`, `GiveBack`, or only the copying kinds. A [`Settlement`] that the driver does not know is `Unsupported` and does
    /// nothing: an arm `_` that acknowledges deletes messages.
    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>>;

    /// Lengthens locks: each is then held for `by` from now, or for as long as the broker gives: the answer counts, and core renews at half of it.
    /// Answers each token's new local deadline, margin taken off. A call that is not answered within an eighth of the lock is dropped, and each
    /// of its tokens goes into a call of its own the next time. Core calls it for up
    /// to `Batching::entries` tokens, and up to `Batching::in_flight` times at once, beside settlements.
    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        let _ = by;
        Error::unsupported("extend: this broker's hold on a delivery cannot be renewed").for_each_of(tokens.len())
    }

    /// Whether this delivery is still held, as far as is known without I/O. Core discards buffered ones that are not.
    fn holds(&self, token: &DriverToken) -> bool {
        let _ = token;
        true
    }

    /// Core lets go of a delivery that was not settled, since its lock, or that of an earlier one of its key, has run out:
    /// what is kept for it can go. Without I/O.
    fn forget(&self, token: &DriverToken) {
        let _ = token;
    }

    /// Finishes what is under way and gives every unsettled delivery back to the broker without reordering a key. Later
    /// settlements are `LockLost`. Idempotent.
    async fn close(&self) -> Result<()>;
}
