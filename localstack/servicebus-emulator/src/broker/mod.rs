//! The broker: entities and their messages, in memory, independent of any protocol.
//!
//! A protocol resolves an address once and keeps the handle: a [`Target`] to send to, or a [`Source`] to receive from.
//! No call waits except [`Source::accept_session`]. A protocol that wants messages opens a [`Receiver`], and the broker
//! calls its [`Wake`] when there are some.
//!
//! A message enters at `target.rs`. A queue puts it into its store; a topic asks the `rules/` of each subscription and
//! gives the store of each match a copy. The `store/` holds it until a receiver settles it, it expires, or it is
//! forwarded; `dispatch.rs` carries dead letters and forwarded messages to the next store. `entities/` are queues,
//! topics and subscriptions with their settings, `namespace.rs` finds them by name, and `timers.rs` runs each store
//! when its next lock, schedule or expiry is due.

mod address;
mod delivery;
mod dispatch;
mod entities;
mod namespace;
mod receiver;
mod rules;
mod source;
mod store;
mod target;
mod timers;

#[cfg(test)]
mod tests;

pub use address::{Address, SubQueue};
pub use delivery::{DeliveredMessage, MessageState, Outcome, ReceiveMode, token_of_tag};
pub(crate) use entities::validate;
pub use entities::{EntityStatus, QueueSettings, SubscriptionSettings, TopicSettings};
pub use entities::{EntityTimes, MessageCounts, QueueInfo, SubscriptionInfo, TopicInfo};
pub use namespace::{Broker, NamespaceLimits, Tier};
pub use receiver::{Receiver, Wake};
pub use rules::{CorrelationFilter, Rule, RuleFilter, SqlAction, SqlFilter};
pub(crate) use rules::{WITHOUT_ZONE, plain};
pub use source::Source;
pub use store::SessionLock;
pub use target::Target;
