//! The links of a session.
//!
//! `attach.rs` attaches a link to an entity, `$cbs` or `$management` and detaches it. `incoming.rs` receives what the
//! peer sends; `outgoing.rs` sends what the broker or an answer has for the peer, when `wake.rs` says that there is
//! something. `settlement.rs` handles dispositions, `session_filter.rs` the choice of a message session, and `idle.rs`
//! detaches idle links.

mod attach;
mod idle;
mod incoming;
mod outgoing;
mod session_filter;
mod settlement;
mod wake;

pub(crate) use wake::{LinkKey, LinkWake, WokenLinks};

use std::collections::VecDeque;

use futures_util::future::AbortHandle;

use super::wire::Attach;
use crate::auth::AccessRight;
use crate::broker::{Receiver, Source, Target};

/// The state of a handle.
pub(crate) enum LinkSlot {
    Attached(Link),
    /// The server detached the link. Frames of the peer are ignored until it detaches too.
    Leaving,
}

/// An attached link.
pub(crate) struct Link {
    pub(crate) serial: u64,
    pub(crate) name: String,
    pub(crate) address: String,
    /// When the link was last used, on the emulator's clock.
    pub(crate) used_at: i64,
    pub(crate) end: LinkEnd,
}

impl Link {
    /// The right that the link requires. `None` for request links, where each operation requires its own.
    pub(crate) fn right(&self) -> Option<AccessRight> {
        match &self.end {
            LinkEnd::In(IncomingLink { node: TargetNode::Entity(_), .. }) => Some(AccessRight::Send),
            LinkEnd::Out(OutgoingLink { feed: LinkFeed::Session { .. } | LinkFeed::Entity { .. }, .. }) => {
                Some(AccessRight::Listen)
            }
            _ => None,
        }
    }
}

pub(crate) enum LinkEnd {
    /// The peer sends.
    In(IncomingLink),
    /// The peer receives.
    Out(OutgoingLink),
}

/// The receiving end of a link.
pub(crate) struct IncomingLink {
    pub(crate) node: TargetNode,
    pub(crate) delivery_count: u32,
    pub(crate) credit: u32,
    pub(crate) partial: Option<PartialDelivery>,
}

/// The node that messages of the peer go to.
pub(crate) enum TargetNode {
    Entity(Target),
    Cbs,
    /// The `$management` node of the entity at this address.
    Management(String),
}

/// A delivery of which more transfers are to come.
pub(crate) struct PartialDelivery {
    pub(crate) delivery_id: u32,
    pub(crate) format: u32,
    pub(crate) settled: bool,
    pub(crate) bytes: Vec<u8>,
    /// The delivery exceeds the limit. Its remaining transfers are dropped, then it is rejected.
    pub(crate) oversize: bool,
}

/// The sending end of a link.
pub(crate) struct OutgoingLink {
    pub(crate) feed: LinkFeed,
    pub(crate) delivery_count: u32,
    pub(crate) credit: u32,
    pub(crate) drain: bool,
    /// The link is in the queue of links that may have something to send.
    pub(crate) queued: bool,
}

/// The origin of the messages that go to the peer.
pub(crate) enum LinkFeed {
    /// The link waits for a message session. Its attach has not been answered.
    Session { attach: Box<Attach>, source: Source, _waiting: AbortOnDrop },
    /// Messages of an entity.
    Entity {
        receiver: Receiver,
        source: Source,
        /// Receive-and-delete.
        settled: bool,
        /// Another `try_receive` may return messages.
        more: bool,
    },
    /// Answers to requests whose reply-to is this address.
    Answers { reply_to: String, waiting: VecDeque<Vec<u8>> },
}

/// Aborts a waiting future when its link is dropped.
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
