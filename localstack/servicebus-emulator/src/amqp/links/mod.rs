//! The links of a session, as the server sees them.

use std::collections::VecDeque;

use futures_util::future::AbortHandle;

use super::performative::Attach;
use crate::access::Right;
use crate::broker::{Receiver, Source, Target};

/// The place of a handle in its session.
pub(crate) enum LinkSlot {
    Attached(Link),
    /// The server detached it; what the peer still sends is passed over until it detaches too.
    Leaving,
}

/// An attached link.
pub(crate) struct Link {
    pub(crate) serial: u64,
    pub(crate) name: String,
    pub(crate) address: String,
    /// When something was last said over it or about it, on the emulator's clock.
    pub(crate) used_at: i64,
    pub(crate) end: End,
}

impl Link {
    /// The right it takes; `None` for links over which requests go, which need several.
    pub(crate) fn right(&self) -> Option<Right> {
        match &self.end {
            End::In(Incoming { node: Node::Entity(_), .. }) => Some(Right::Send),
            End::Out(Outgoing { feed: Feed::Session { .. } | Feed::Entity { .. }, .. }) => Some(Right::Listen),
            _ => None,
        }
    }
}

pub(crate) enum End {
    /// The peer sends.
    In(Incoming),
    /// The peer receives.
    Out(Outgoing),
}

/// The receiving end of a link.
pub(crate) struct Incoming {
    pub(crate) node: Node,
    pub(crate) delivery_count: u32,
    pub(crate) credit: u32,
    pub(crate) partial: Option<Partial>,
}

/// What takes in what the peer sends.
pub(crate) enum Node {
    Entity(Target),
    Cbs,
    /// Of the entity at this address.
    Management(String),
}

/// A delivery of which more is to come.
pub(crate) struct Partial {
    pub(crate) delivery_id: u32,
    pub(crate) format: u32,
    pub(crate) settled: bool,
    pub(crate) bytes: Vec<u8>,
    /// Above the limit; the rest is passed over, then it is rejected.
    pub(crate) oversize: bool,
}

/// The sending end of a link.
pub(crate) struct Outgoing {
    pub(crate) feed: Feed,
    pub(crate) delivery_count: u32,
    pub(crate) credit: u32,
    pub(crate) drain: bool,
    /// In the queue of links to be looked at.
    pub(crate) queued: bool,
}

/// Where what goes to the peer comes from.
pub(crate) enum Feed {
    /// A session to be accepted; the attach is not answered yet.
    Session { attach: Box<Attach>, source: Source, _waiting: AbortOnDrop },
    /// Messages of an entity.
    Entity {
        receiver: Receiver,
        source: Source,
        /// Receive-and-delete.
        settled: bool,
        /// Another try may bring messages.
        more: bool,
    },
    /// Answers to requests, under the address that requests name for them.
    Answers { reply_to: String, waiting: VecDeque<Vec<u8>> },
}

/// Ends a waiting future together with its link.
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
