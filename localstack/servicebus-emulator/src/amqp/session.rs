//! The state of an AMQP session: its windows, its links, and its unsettled deliveries.

use std::collections::{BTreeMap, HashMap};

use uuid::Uuid;

use super::links::{Link, LinkSlot};
use super::wire::Begin;
use super::wire::writer::SessionWindows;

/// The incoming window: how many transfers a peer may send until a flow renews it.
pub(crate) const WINDOW: u32 = 5000;

/// The most unsettled deliveries that a session remembers. A client that settles through `$management` of another
/// connection never settles here, so the oldest deliveries are forgotten. Settling one of them later is answered as a
/// lost lock.
const MAX_UNSETTLED: usize = 100_000;

/// A delivery that the peer has not settled.
#[derive(Clone, Copy)]
pub(crate) struct UnsettledDelivery {
    pub(crate) handle: u32,
    pub(crate) token: Uuid,
}

pub(crate) struct Session {
    pub(crate) next_incoming_id: u32,
    pub(crate) incoming_window: u32,
    pub(crate) next_outgoing_id: u32,
    /// How many transfers the peer's incoming window still allows.
    pub(crate) remote_window: u32,
    pub(crate) next_delivery_id: u32,
    pub(crate) links: HashMap<u32, LinkSlot>,
    pub(crate) unsettled: BTreeMap<u32, UnsettledDelivery>,
}

/// The state of a channel.
pub(crate) enum SessionSlot {
    Begun(Box<Session>),
    /// The server ended the session. Frames of the peer are ignored until it ends the session too.
    Leaving,
}

impl Session {
    pub(crate) fn new(begin: &Begin) -> Self {
        Self {
            next_incoming_id: begin.next_outgoing_id,
            incoming_window: WINDOW,
            next_outgoing_id: 0,
            remote_window: begin.incoming_window,
            next_delivery_id: 0,
            links: HashMap::new(),
            unsettled: BTreeMap::new(),
        }
    }

    pub(crate) fn windows(&self) -> SessionWindows {
        SessionWindows {
            next_incoming_id: self.next_incoming_id,
            incoming_window: self.incoming_window,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: WINDOW,
        }
    }

    pub(crate) fn link_mut(&mut self, handle: u32) -> Option<&mut Link> {
        match self.links.get_mut(&handle) {
            Some(LinkSlot::Attached(link)) => Some(link),
            _ => None,
        }
    }

    /// Handles and serials of the attached links.
    pub(crate) fn attached(&self) -> impl Iterator<Item = (u32, u64)> {
        self.links.iter().filter_map(|(handle, slot)| match slot {
            LinkSlot::Attached(link) => Some((*handle, link.serial)),
            LinkSlot::Leaving => None,
        })
    }

    pub(crate) fn hold(&mut self, delivery_id: u32, held: UnsettledDelivery) {
        self.unsettled.insert(delivery_id, held);
        if self.unsettled.len() > MAX_UNSETTLED {
            self.unsettled.pop_first();
        }
    }
}
