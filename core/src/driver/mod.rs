//! What an adapter author implements. The docs here are the contract, and the conformance suite judges by it.
//!
//! Core batches, retries, validates and renews, once and for all drivers. A driver does none of that: it translates,
//! reports each item's own result, and keeps its promises when a future is dropped or a connection is lost.
//!
//! An adapter has a [`Connector`], which makes a [`Driver`] of a URL. The driver opens a [`Sender`] for each address,
//! and a [`Receiver`] with its [`Settler`] for each source. A published message comes to [`Sender::prepare`], which
//! encodes it, and then in a batch to [`Sender::send`]. A received message goes from [`Receiver::receive`] to the
//! application; what the application does with it comes back in a batch to [`Settler::settle`]. [`kit`] has parts to
//! build these from, [`DriverLayer`] wraps a driver, and [`cloudevents`](crate::message::cloudevents) writes and reads
//! messages.
//!
//! # Five words
//!
//! | word | a queue | a subscription | the dead letters of the queue |
//! |---|---|---|---|
//! | address: what is published to | `queue:payments` | `topic:orders` | none of its own |
//! | source: what is consumed | `queue:payments` | `subscription:orders/billing` | `queue:payments#dead-letters` |
//! | entity: one of them, resolved | `Entity<Address>`, `Entity<Source>` | the same | the queue's, other `name` |
//! | physical: the broker's name, with prefix `shop` | `shop_payments` | `billing` | `shop_payments` |
//! | parent: the physical name of the topic | none | `shop_orders` | none |
//!
//! An entity is an [`Entity`](crate::topology::Entity). The adapter makes the broker's own names of `physical` and
//! `parent`: for a subscription it may join the two, for dead letters it may add an ending. A name that is
//! [`fixed`](crate::topology::Entity::fixed) is used as it is.
//!
//! # What core does after an error
//!
//! Every call is one attempt. What follows depends on the [`ErrorKind`](crate::error::ErrorKind) and on
//! [`Error::retry`](crate::error::Error::retry):
//!
//! | call | core calls again after | for how long |
//! |---|---|---|
//! | `open_sender`, `open_receiver` | transient errors that are not `Never` | the publish timeout |
//! | `declare` | `Unavailable`, `Throttled` that are `Safe` | the publish timeout |
//! | `send` | `Unavailable`, `Timeout` that are not `Never`; `Throttled` that is `Safe` | the publish timeout |
//! | `settle` | transient errors that are `Safe`; never `GiveBack` | 30 s, or until the consumer closes |
//! | `receive` | everything but `Closed` | for ever, but see below |
//! | `extend` | everything but `LockLost`, which loses the lock | as long as the lock lasts |
//! | `stats`, `purge`, `delete`, `version`, `close` | nothing | – |
//!
//! Transient errors are `Unavailable`, `Timeout` and `Throttled`. What is not called again is the caller's error at
//! once.
//!
//! - `send` goes again with the same id each time. One `MayDuplicate` on the way makes the last error that, too.
//! - `settle` goes on only as long as the delivery is held. Its error gives the delivery back, unless it is
//!   `LockLost`. A worker's settlement goes on after any transient error as long as the delivery is held.
//! - A settlement whose error says `copy=kept` ([`Error::is_copy_kept`](crate::Error::is_copy_kept)) is not repeated:
//!   the copy is stored, and core goes on with an ack of the original.
//! - `receive`: `NotFound`, `PermissionDenied`, `Unauthenticated` that last for `give_up_after` (30 s by default)
//!   without a success in between end the subscription. So does `Closed`, at once.
//! - One call of `extend` has an eighth of the lock. Where none succeeds, the lock runs out.
//!
//! Between calls core waits with a backoff from 50 ms to 2 s, with jitter. A panic in `send`, `settle` or `extend` is
//! `Unexpected`, `MayDuplicate`, for the items of that call. A panic in any other call of a driver, such as `receive`,
//! `declare` or `open_sender`, is not caught.
//!
//! `Safe` means that the call surely had no effect, or that doing it again does nothing more. `MayDuplicate` means that
//! it may have had an effect, and that doing it again may have another. Core publishes a
//! `MayDuplicate` message again, since consumers know a duplicate by its id. It does not settle again: an ack that was
//! carried out makes the next one `LockLost`, and a second copy would be a second message. So an unanswered settlement
//! is `MayDuplicate`. Say `Safe` wherever the request did not go out, and also where doing it again does nothing more.
//!
//! # The order of closing
//!
//! `Bus::close` does this, one after the other:
//!
//! 1. it stops every receiver ([`Receiver::close`]) and gives back what was not handed out,
//! 2. waits for settlements that are under way,
//! 3. closes every settler ([`Settler::close`]), whereby everything that is still unsettled goes back,
//! 4. waits for publishes,
//! 5. closes every [`Sender`],
//! 6. and then the [`Driver`].
//!
//! A broker that does not answer is waited for about 5 s. The future of a close may be dropped like any other.
//!
//! # A whole driver
//!
//! This one has a single queue in memory. It can publish, receive, ack and release, which is the least that a driver
//! can do.
//!
//! ```
//! use std::{
//!     collections::{BTreeMap, VecDeque},
//!     sync::{Arc, Mutex},
//! };
//!
//! use polybus_core::{
//!     Address, Bus, BusOptions, Envelope, Error, ErrorKind, Outgoing, Receipt, Result, Source,
//!     driver::{
//!         Batching, Capabilities, Driver, DriverToken, PreparedMessage, ReceivedMessage, Receiver, Sender,
//!         SettleRequest, Settlement, Settler, async_trait,
//!     },
//!     topology::{DeclareMode, DeclarePlan, DeclareReport, Entity},
//! };
//! use tokio::sync::Notify;
//!
//! #[derive(Default)]
//! struct Queue {
//!     messages: Mutex<Messages>,
//!     arrived: Notify,
//! }
//!
//! #[derive(Default)]
//! struct Messages {
//!     ready: VecDeque<Envelope>,
//!     /// By the number that is the delivery's token.
//!     unsettled: BTreeMap<u64, Envelope>,
//!     handed_out: u64,
//! }
//!
//! #[derive(Default)]
//! struct ToyDriver {
//!     queue: Arc<Queue>,
//!     capabilities: Capabilities,
//! }
//!
//! #[async_trait]
//! impl Driver for ToyDriver {
//!     fn backend(&self) -> &'static str {
//!         "toy"
//!     }
//!
//!     fn capabilities(&self) -> &Capabilities {
//!         &self.capabilities
//!     }
//!
//!     async fn declare(&self, _plan: &DeclarePlan, _mode: DeclareMode) -> Result<DeclareReport> {
//!         Ok(DeclareReport::default())
//!     }
//!
//!     async fn open_sender(&self, _to: &Entity<Address>) -> Result<Arc<dyn Sender>> {
//!         Ok(Arc::new(ToySender(self.queue.clone())))
//!     }
//!
//!     async fn open_receiver(&self, _from: &Entity<Source>) -> Result<(Box<dyn Receiver>, Arc<dyn Settler>)> {
//!         Ok((Box::new(ToyReceiver(self.queue.clone())), Arc::new(ToySettler(self.queue.clone()))))
//!     }
//!
//!     async fn close(&self) -> Result<()> {
//!         Ok(())
//!     }
//! }
//!
//! struct ToySender(Arc<Queue>);
//!
//! #[async_trait]
//! impl Sender for ToySender {
//!     fn batching(&self) -> Batching {
//!         Batching::new(10, 1 << 20, 1)
//!     }
//!
//!     fn prepare(&self, message: Outgoing) -> Result<PreparedMessage> {
//!         let size = message.envelope.metadata_size() + message.envelope.data.len();
//!         Ok(PreparedMessage::new(message, size))
//!     }
//!
//!     async fn send(&self, batch: &[PreparedMessage]) -> Vec<Result<Receipt>> {
//!         let envelopes = batch.iter().map(|prepared| prepared.message.envelope.clone());
//!         self.0.messages.lock().unwrap().ready.extend(envelopes);
//!         self.0.arrived.notify_one();
//!         batch.iter().map(|_| Ok(Receipt::default())).collect()
//!     }
//! }
//!
//! struct ToyReceiver(Arc<Queue>);
//!
//! impl ToyReceiver {
//!     fn take(&self, max: usize) -> Vec<ReceivedMessage> {
//!         let mut messages = self.0.messages.lock().unwrap();
//!         let mut taken = Vec::new();
//!         while taken.len() < max
//!             && let Some(envelope) = messages.ready.pop_front()
//!         {
//!             messages.handed_out += 1;
//!             let number = messages.handed_out;
//!             messages.unsettled.insert(number, envelope.clone());
//!             taken.push(ReceivedMessage::new(DriverToken::new(number), envelope, 1));
//!         }
//!         taken
//!     }
//! }
//!
//! #[async_trait]
//! impl Receiver for ToyReceiver {
//!     async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
//!         loop {
//!             // Nothing is awaited between taking messages and returning them: a dropped call loses none.
//!             let taken = self.take(max);
//!             if !taken.is_empty() {
//!                 return Ok(taken);
//!             }
//!             self.0.arrived.notified().await;
//!         }
//!     }
//!
//!     async fn close(&mut self) -> Result<()> {
//!         Ok(())
//!     }
//! }
//!
//! struct ToySettler(Arc<Queue>);
//!
//! impl ToySettler {
//!     fn settle_one(&self, request: &SettleRequest) -> Result<()> {
//!         let number: &u64 = request.token.get()?;
//!         let mut messages = self.0.messages.lock().unwrap();
//!         let lost = || Error::new(ErrorKind::LockLost, "this delivery was settled before");
//!         match &request.how {
//!             Settlement::Ack => messages.unsettled.remove(number).map(|_| ()).ok_or_else(lost),
//!             Settlement::Release | Settlement::GiveBack => {
//!                 let envelope = messages.unsettled.remove(number).ok_or_else(lost)?;
//!                 messages.ready.push_front(envelope);
//!                 self.0.arrived.notify_one();
//!                 Ok(())
//!             }
//!             other => Err(Error::unsupported(format!("{other:?}"))),
//!         }
//!     }
//! }
//!
//! #[async_trait]
//! impl Settler for ToySettler {
//!     fn batching(&self) -> Batching {
//!         Batching::new(10, usize::MAX, 1)
//!     }
//!
//!     async fn settle(&self, batch: &[SettleRequest]) -> Vec<Result<()>> {
//!         batch.iter().map(|request| self.settle_one(request)).collect()
//!     }
//!
//!     async fn close(&self) -> Result<()> {
//!         let mut messages = self.0.messages.lock().unwrap();
//!         while let Some((_, envelope)) = messages.unsettled.pop_last() {
//!             messages.ready.push_front(envelope);
//!         }
//!         Ok(())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let bus = Bus::new(Arc::new(ToyDriver::default()), BusOptions::default())?;
//! bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}")).await?;
//!
//! let mut payments = bus.subscribe(Source::queue("payments")).open().await?;
//! if let Some(delivery) = payments.next().await {
//!     delivery?.ack().await?;
//! }
//! bus.close().await?;
//! # Ok(()) }
//! ```

mod batch_limits;
mod capabilities;
pub(crate) mod catch_panic;
mod connect_url;
mod connector;
mod contract;
pub mod kit;
mod layer;
mod messages;
mod messaging_system;
pub(crate) mod pasted_urls;
mod redact;
mod settlement;

pub use async_trait::async_trait;

pub use self::{
    batch_limits::Batching,
    capabilities::{AttemptDurability, Capabilities, KeyHolder, KeyOrder},
    connect_url::ConnectUrl,
    connector::Connector,
    contract::{Driver, Receiver, Sender, Settler},
    layer::DriverLayer,
    messages::{DriverToken, PreparedMessage, ReceivedMessage, lock_margin},
    messaging_system::MessagingSystem,
    settlement::{SettleRequest, Settlement},
};
pub use crate::message::DeadLetter;
