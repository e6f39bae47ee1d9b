//! The broker: entities and the messages in them, in memory, with no notion of a protocol.
//!
//! A protocol resolves an address once, to a `Target` that can be sent to or a `Source` that can be received from, and keeps the
//! handle. No call here waits, apart from `Source::accept_session`; who wants messages opens a `Receiver` and is woken.
//!
//! What is to come:
//!
//! ```ignore
//! // broker API as it will be (bodies being written)
//! impl Broker {
//!     pub fn new(clock: Clock, limits: Limits) -> Self;
//!     pub fn target(&self, address: &str) -> Result<Target, Refusal>;   // strips scheme and host, ignores case
//!     pub fn source(&self, address: &str) -> Result<Source, Refusal>;   // also q/$DeadLetterQueue, t/Subscriptions/s[/$DeadLetterQueue]
//!     // admin: create_queue/update_queue/queue/queues/delete… see namespace.rs
//! }
//! impl Target { // Clone
//!     pub fn send(&self, messages: Vec<Message>) -> Result<(), Refusal>;                 // all or none; honours x-opt-scheduled-enqueue-time
//!     pub fn schedule(&self, messages: Vec<(Message, i64)>) -> Result<Vec<i64>, Refusal>;
//!     pub fn cancel_scheduled(&self, sequence_numbers: &[i64]) -> Result<(), Refusal>;   // all or none
//!     pub fn max_message_bytes(&self) -> u64;
//! }
//! impl Source { // Clone
//!     pub fn requires_session(&self) -> bool;
//!     // wake.wake() is called once after a try_receive that returned fewer than max, when there may be more or the source has ended.
//!     pub fn receiver(&self, mode: Mode, session: Option<SessionLock>, wake: Arc<dyn Wake>) -> Result<Receiver, Refusal>;
//!     pub async fn accept_session(&self, id: Option<&str>, timeout: Duration) -> Result<SessionLock, Refusal>;
//!     pub fn settle(&self, token: Uuid, outcome: Outcome) -> Result<(), Refusal>;
//!     pub fn settle_all(&self, tokens: &[Uuid], outcome: Outcome) -> Result<(), Refusal>; // all or none
//!     pub fn renew_locks(&self, tokens: &[Uuid]) -> Result<Vec<i64>, Refusal>;            // ms, all or none
//!     pub fn receive_deferred(&self, sequence_numbers: &[i64], mode: Mode, session: Option<&str>) -> Result<Vec<Delivered>, Refusal>;
//!     pub fn peek(&self, from: i64, max: usize, session: Option<&str>) -> Result<Vec<Delivered>, Refusal>;
//!     pub fn renew_session(&self, id: &str) -> Result<i64, Refusal>;  pub fn session_state(&self, id: &str) -> Result<Option<Bytes>, Refusal>;
//!     pub fn set_session_state(&self, id: &str, state: Option<Bytes>) -> Result<(), Refusal>;
//!     pub fn add_rule / remove_rule / rules  (subscriptions only, else NotAllowed)
//! }
//! impl Receiver { pub fn try_receive(&mut self, max: usize) -> Result<Vec<Delivered>, Refusal>; pub fn session(&self) -> Option<&SessionLock>; } // Drop: unregisters, releases the session
//! impl Delivered { pub lock_token: Option<Uuid>, pub sequence_number: i64, pub fn to_message(&self) -> Message /* header count and annotations put on */ }
//! // token on the wire: Delivered::delivery_tag() -> [u8;16] (little-endian GUID); token_from_tag(&[u8]) -> Option<Uuid>
//! // AMQP server seam used by lib.rs:  pub async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: crate::Shared)
//! //   crate::Shared { broker: Broker, faults: Faults, clock: Clock, sas: Option<Arc<sas::Keys>> } (Clone)
//! ```

mod address;
mod delivery;
mod settings;

pub use address::{Address, SubQueue};
pub use delivery::{Delivered, MessageState, Mode, Outcome, token_of_tag};
pub use settings::{QueueSettings, Status, SubscriptionSettings, TopicSettings};
