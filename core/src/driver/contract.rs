//! The four traits that a driver implements, method by method.

use std::{any::Any, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Batching, Capabilities, DriverToken, MessagingSystem, PreparedMessage, ReceivedMessage, SettleRequest};
use crate::{
    Address, Error, Outgoing, Receipt, Result, Source,
    runtime::clock::Clock,
    topology::{DeclareMode, DeclarePlan, DeclareReport, Entity, SourceStats},
};

/// A connection to a broker. It opens senders and receivers, and looks after entities.
///
/// The [module](super) has a whole driver as an example.
///
/// **Reconnecting.** A driver owns its connection. It makes a new one when it is asked to do something and the old one
/// is gone, in one attempt per call, which concurrent callers share and which is limited in time
/// ([`SharedAttempt`](super::kit::reconnect::SharedAttempt)). If that fails it answers `Unavailable`; core waits and
/// calls again.
///
/// **Errors.** Every error of the client crate is mapped to an [`ErrorKind`](crate::error::ErrorKind) in one file,
/// `error.rs`. No error holds a secret.
///
/// # Cancel safety
/// Every future may be dropped at any await, without leaking a connection, a permit or a consumer.
#[async_trait]
pub trait Driver: Send + Sync + 'static {
    /// The broker family, for example `rabbitmq`. It is shown in errors and metrics, and names the table of options.
    fn backend(&self) -> &'static str;

    /// What this broker can do. It does not change while the driver lives. What is missing there core refuses with
    /// `Unsupported`, without calling the driver.
    fn capabilities(&self) -> &Capabilities;

    /// Product and version of the server, for reports. `None` if it does not tell.
    async fn version(&self) -> Option<String> {
        None
    }

    /// The names that this plan takes at the broker: kind and name in one text, and the entity that takes it.
    ///
    /// Core refuses a topology in which two entities take the same name. Without I/O.
    fn physical_names(&self, plan: &DeclarePlan) -> Vec<(String, String)> {
        let _ = plan;
        Vec::new()
    }

    /// Checks that the broker can keep the settings and options of these entities.
    ///
    /// Core calls it for every source and topic of a topology when the bus is made. Without I/O.
    ///
    /// # Errors
    /// `Unsupported` for a setting that the broker cannot keep, `ConfigInvalid` for wrong options.
    fn check(&self, plan: &DeclarePlan) -> Result<()> {
        let _ = plan;
        Ok(())
    }

    /// Creates what is missing (`Create`), or only looks (`Verify`).
    ///
    /// It adds whatever a topic, a queue or a subscription still needs: bindings, rules, a policy for its own topic. It
    /// never changes or deletes what is there. Differences are reported, and are no errors. Many processes may declare
    /// the same plan at once, and all succeed.
    ///
    /// # Errors
    /// Core calls again while it is `Unavailable` or `Throttled` and
    /// [`RetrySafety::Safe`](crate::error::RetrySafety::Safe). So these must mean that the broker is not ready or
    /// pushes back, and nothing else.
    async fn declare(&self, plan: &DeclarePlan, mode: DeclareMode) -> Result<DeclareReport>;

    /// Opens a sender.
    ///
    /// # Errors
    /// A missing queue or topic is `NotFound`, here or from each `send`, as the broker allows.
    async fn open_sender(&self, to: &Entity<Address>) -> Result<Arc<dyn Sender>>;

    /// Opens a consumer of at most `from.prefetch` unsettled deliveries, and what settles them. The two are apart so
    /// that a long poll never blocks settling.
    ///
    /// # Errors
    /// A missing source is `NotFound`, here or from the first `receive`.
    async fn open_receiver(&self, from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)>;

    /// Counts the messages of a live source and its dead letters. Called if [`Capabilities::stats`] is set.
    async fn stats(&self, of: &Entity<Source>) -> Result<SourceStats> {
        Err(Error::unsupported("stats").with_context("source", &of.name))
    }

    /// Deletes the ready messages of a source, which may be dead letters, and answers how many, as far as the broker
    /// tells. Called if [`Capabilities::purge`] is set.
    async fn purge(&self, from: &Entity<Source>) -> Result<u64> {
        Err(Error::unsupported("purge").with_context("source", &from.name))
    }

    /// Deletes everything that `declare` makes for this plan, dead letters and what helps them included. What is
    /// missing is no error. Called if [`Capabilities::declare`] is set.
    async fn delete(&self, plan: &DeclarePlan) -> Result<()> {
        let _ = plan;
        Err(Error::unsupported("delete"))
    }

    /// Ends the connection. Core has closed all receivers, settlers and senders before.
    ///
    /// Core waits about 5 s for it and then drops the future. A second call does nothing.
    async fn close(&self) -> Result<()>;

    /// What OpenTelemetry calls this broker's queues and subscriptions, and what it calls its topics, and where they
    /// are. For spans; read once. By default the backend's name, without a server. No secret may be in it.
    fn messaging_systems(&self) -> (MessagingSystem, MessagingSystem) {
        let system = MessagingSystem::new(self.backend(), self.backend());
        (system.clone(), system)
    }

    /// The wall clock that expiry and dead-letter times are measured by, where it is not the machine's.
    fn clock(&self) -> Option<Arc<dyn Clock>> {
        None
    }

    /// The adapter's own type that `Bus::native` hands out.
    fn native(&self) -> Option<&(dyn Any + Send + Sync)> {
        None
    }
}

/// Publishes to one address. Many tasks share it.
///
/// The [module](super) has a whole driver as an example.
#[async_trait]
pub trait Sender: Send + Sync + 'static {
    /// How core forms batches for this sender. Read once.
    fn batching(&self) -> Batching;

    /// Encodes one message, on the publisher's task, without I/O. The result may be sent more than once, with the same
    /// id each time.
    ///
    /// # Errors
    /// `PayloadTooLarge` names the size and the limit. Sizes are checked here, on the encoded message.
    fn prepare(&self, message: Outgoing) -> Result<PreparedMessage>;

    /// Sends a batch in order, and answers with one result for each message, in order.
    ///
    /// Ok means that the broker has taken durable responsibility for the message. Core bounds the call in time and may
    /// drop the future. Up to [`Batching::in_flight`] calls run at once.
    ///
    /// # Errors
    /// `Safe` means that the message was surely not stored, `MayDuplicate` that this is not known. The failure of one
    /// message is never its neighbours': a message that was affected by another's failure is sent again here, or
    /// answered for itself as `Unavailable`.
    async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>>;

    /// Why the broker takes nothing now, as far as that is known without I/O: it has blocked the connection, for
    /// example.
    ///
    /// A publish that is under way when its time runs out answers this error instead of `Timeout`.
    fn held_back(&self) -> Option<Error> {
        None
    }

    /// Ends the sender. No `send` is under way. Core waits about 5 s for it and then drops the future. A second call
    /// does nothing.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Takes messages from one source.
///
/// The [module](super) has a whole driver as an example.
#[async_trait]
pub trait Receiver: Send + 'static {
    /// Waits for messages and returns 1 to `max` of them; none if a poll ended empty.
    ///
    /// `max` is at least 1. It is the prefetch less what is unsettled; where a hand-over counts as an attempt
    /// ([`Capabilities::receive_counts`]) it is how many of a worker's handlers are free. It may be larger in the next
    /// call, which then drops this one.
    ///
    /// # Errors
    /// Core calls again after every error but `Closed`, after a backoff. The receiver attaches again by itself, also to
    /// a source that was deleted and made anew. Unsettled deliveries of the attachment that was lost are `LockLost`
    /// from then on. Entities are never created here.
    ///
    /// `NotFound`, `PermissionDenied` and `Unauthenticated` are for what is surely gone or forbidden. They end the
    /// subscription once they have lasted for `give_up_after` without a success in between, which is a receive that
    /// returns Ok, or one that is refused after 10 s or more. A wait that ends with a transient error says nothing,
    /// unless it lasted 120 s, longer than any attempt to connect.
    ///
    /// What passes by itself is `Unavailable`, `Throttled` or `Timeout`: a node that is down, a queue that is switched
    /// off, a credential that can be renewed, a clock that is off, a login that is refused while reconnecting. Where a
    /// quota of the broker holds messages up, the error is `Throttled` and names the quota as context `quota`, for the
    /// metric.
    ///
    /// # Cancel safety
    /// A dropped call loses nothing: what is in flight lives in `self`, never in the future.
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>>;

    /// Stops taking messages, and gives back those that `receive` has not returned, at once and in order.
    ///
    /// Those that it has returned can still be settled. On an ordered source nothing unsettled is given back yet:
    /// [`Settler::close`] does that, in whatever way keeps each key's order. A second call does nothing.
    async fn close(&mut self) -> Result<()>;
}

/// Settles the deliveries of one receiver. Many tasks share it.
///
/// The [module](super) has a whole driver as an example.
#[async_trait]
pub trait Settler: Send + Sync + 'static {
    /// How core forms batches for this settler. Read once.
    fn batching(&self) -> Batching;

    /// Settles a batch, and answers with one result for each item, in order.
    ///
    /// A batch holds either only `Ack`, `Release` and `GiveBack`, or only the settlements that may make a copy
    /// ([`Settlement::copies`](super::Settlement::copies)). A copy is confirmed before its original is settled, so a
    /// copy that fails leaves the message unacknowledged.
    /// [`CopyState::copied`](crate::message::cloudevents::CopyState::copied) says what a copy carries. Where the broker
    /// may deduplicate, the copy's native id is [`copy_id`](super::kit::names::copy_id), never one made of the
    /// message's own.
    ///
    /// # Errors
    /// - `LockLost` for a token whose lock, channel or connection is gone. It settles nothing, least of all another
    ///   message.
    /// - `PayloadTooLarge` for a copy that is too large, and for that item alone.
    /// - `Unsupported` for a [`Settlement`](super::Settlement) that the driver does not know, which then does nothing.
    ///   An arm `_` that acknowledges would delete messages.
    /// - Any error with [`Error::with_kept_copy`] if the copy was made, settling the original failed, and the copy
    ///   cannot be withdrawn. Core goes on with `Ack`.
    ///
    /// An unanswered settlement is `MayDuplicate`, which core does not repeat. `Safe` where the request did not go out.
    /// `Safe` also where doing it again does nothing more: the broker settles a delivery once, however often it is
    /// asked.
    async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>>;

    /// Lengthens locks: each is then held for `by` from now, or for as long as the broker gives. Called if
    /// [`Capabilities::locks`] is set.
    ///
    /// It answers each token's new deadline on the client's clock, with the margin
    /// ([`lock_margin`](super::lock_margin)) taken off. The answer counts, and core renews again at half of it. Core
    /// calls it for up to [`Batching::entries`] tokens and up to [`Batching::in_flight`] times at once, beside
    /// settlements. A call that is not answered within an eighth of the lock is dropped, and each of its tokens goes
    /// into a call of its own the next time.
    ///
    /// # Errors
    /// `LockLost` for a token whose lock is gone. After any other error core tries again while there is time.
    async fn extend(&self, tokens: &[DriverToken], by: Duration) -> Vec<Result<Instant>> {
        let _ = by;
        Error::unsupported("extend: this broker's hold on a delivery cannot be renewed").for_each_of(tokens.len())
    }

    /// Whether this delivery is still held, as far as that is known without I/O. Core does not hand out buffered
    /// deliveries that are not.
    fn holds(&self, token: &DriverToken) -> bool {
        let _ = token;
        true
    }

    /// Tells that core lets go of a delivery without settling it, because its lock has run out or that of an earlier
    /// one of its key. What the driver keeps for it can go. Without I/O.
    fn forget(&self, token: &DriverToken) {
        let _ = token;
    }

    /// Finishes what is under way, and gives every unsettled delivery back to the broker without reordering a key.
    ///
    /// Later settlements are `LockLost`. A second call does nothing.
    async fn close(&self) -> Result<()>;
}
