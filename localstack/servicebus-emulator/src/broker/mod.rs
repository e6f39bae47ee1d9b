//! The broker: entities and the messages in them, in memory, with no notion of a protocol.
//!
//! A protocol resolves an address once, to a [`Target`] that can be sent to or a [`Source`] that can be received from, and keeps the
//! handle. No call here waits, apart from [`Source::accept_session`]; who wants messages opens a [`Receiver`] and is woken.

mod address;
mod delivery;
mod dispatch;
mod duplicates;
mod entity;
mod namespace;
mod partitions;
mod receiver;
mod rule;
mod session;
mod settings;
mod source;
mod sql;
mod store;
mod store_entries;
mod store_receive;
mod store_settle;
mod target;
mod timers;
pub(crate) mod validate;

#[cfg(test)]
mod tests;

pub use address::{Address, SubQueue};
pub use delivery::{Delivered, MessageState, Mode, Outcome, token_of_tag};
pub use entity::{Counts, EntityTimes, QueueInfo, SubscriptionInfo, TopicInfo};
pub use namespace::{Broker, Limits, Tier};
pub use receiver::{Receiver, Wake};
pub use rule::{Correlation, Filter, Rule, SqlAction, SqlFilter};
pub(crate) use rule::{WITHOUT_ZONE, plain};
pub use session::SessionLock;
pub use settings::{QueueSettings, Status, SubscriptionSettings, TopicSettings};
pub use source::Source;
pub use target::Target;
