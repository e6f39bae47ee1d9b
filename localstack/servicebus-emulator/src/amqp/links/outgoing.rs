//! Outgoing deliveries, sent as far as credit, the session's window and the socket allow.

use super::{Link, LinkEnd, LinkFeed, LinkKey, LinkSlot};
use crate::amqp::engine::ConnectionEngine;
use crate::amqp::session::{Session, SessionSlot, UnsettledDelivery};
use crate::amqp::wire::error::UNATTACHED_HANDLE;
use crate::amqp::wire::writer::{self, LinkFlow, TRANSFER_OVERHEAD, TransferFrame};
use crate::amqp::wire::{AmqpError, Flow, delivered_message};

/// No more messages are fetched while this much output waits to be written.
pub(crate) const HIGH_WATER: usize = 256 * 1024;
/// How many messages one link may send before the next link has its turn.
const TURN: u32 = 64;
/// Messages above this size are fetched one by one, so that the encoded output stays bounded.
const LARGE: usize = 16 * 1024;

/// Why a link's turn ended.
enum TurnEnd {
    /// The link has sent its share, or too much output waits. It continues later.
    Later,
    /// The link waits for a flow or for the broker to wake it.
    Waits,
    Failed(AmqpError),
}

impl ConnectionEngine {
    pub(crate) fn flow(&mut self, channel: u16, flow: &Flow) -> Result<(), AmqpError> {
        let now = self.shared.clock().now_ms();
        let Some(session) = self.session_mut(channel) else { return Ok(()) };
        let was_shut = session.remote_window == 0;
        // Before the peer has seen the server's begin it does not know the first id, which is 0.
        let under_way = session.next_outgoing_id.wrapping_sub(flow.next_incoming_id.unwrap_or(0));
        session.remote_window = flow.incoming_window.saturating_sub(under_way);
        session.next_incoming_id = flow.next_outgoing_id;
        let windows = session.windows();
        let reopened: Vec<LinkKey> = match was_shut && session.remote_window > 0 {
            true => session.attached().map(|(handle, serial)| LinkKey { channel, handle, serial }).collect(),
            false => Vec::new(),
        };
        let Some(handle) = flow.handle else {
            if flow.echo {
                writer::flow(&mut self.out, channel, windows, None);
            }
            reopened.into_iter().for_each(|key| self.enqueue(key));
            return Ok(());
        };
        let link = match session.links.get_mut(&handle) {
            Some(LinkSlot::Attached(link)) => link,
            Some(LinkSlot::Leaving) => return Ok(()),
            None => return Err(AmqpError::new(UNATTACHED_HANDLE, format!("no link has handle {handle}"))),
        };
        link.used_at = now;
        let key = LinkKey { channel, handle, serial: link.serial };
        let view = match &mut link.end {
            LinkEnd::Out(outgoing) => {
                if let Some(credit) = flow.link_credit {
                    let sent = outgoing.delivery_count.wrapping_sub(flow.delivery_count.unwrap_or(0));
                    outgoing.credit = credit.saturating_sub(sent);
                }
                outgoing.drain = flow.drain;
                LinkFlow {
                    handle,
                    delivery_count: outgoing.delivery_count,
                    credit: outgoing.credit,
                    drain: outgoing.drain,
                }
            }
            LinkEnd::In(incoming) => {
                LinkFlow { handle, delivery_count: incoming.delivery_count, credit: incoming.credit, drain: false }
            }
        };
        if flow.echo {
            writer::flow(&mut self.out, channel, windows, Some(view));
        }
        self.enqueue(key);
        reopened.into_iter().for_each(|key| self.enqueue(key));
        Ok(())
    }

    /// Handles a wake: the broker has messages for a link.
    pub(crate) fn woken(&mut self, key: LinkKey) {
        let Some(Link { end: LinkEnd::Out(outgoing), .. }) = self.link_mut(key) else { return };
        if let LinkFeed::Entity { more, .. } = &mut outgoing.feed {
            *more = true;
        }
        self.enqueue(key);
    }

    /// Queues a link that may have something to send.
    pub(crate) fn enqueue(&mut self, key: LinkKey) {
        let Some(Link { end: LinkEnd::Out(outgoing), .. }) = self.link_mut(key) else { return };
        if !outgoing.queued {
            outgoing.queued = true;
            self.ready.push_back(key);
        }
    }

    /// Sends what can be sent.
    pub(crate) fn pump(&mut self) {
        while self.out.len() < HIGH_WATER {
            let Some(key) = self.ready.pop_front() else { return };
            let (max_frame, now) = (self.peer_max_frame, self.shared.clock().now_ms());
            let Some(SessionSlot::Begun(session)) = self.sessions.get_mut(&key.channel) else { continue };
            let stop = turn(&mut self.out, session, key, max_frame, now);
            match stop {
                TurnEnd::Later => self.enqueue(key),
                TurnEnd::Waits => {}
                TurnEnd::Failed(error) => self.detach(key.channel, key.handle, Some(&error)),
            }
        }
    }
}

/// Gives one link its turn to send.
fn turn(out: &mut Vec<u8>, session: &mut Session, key: LinkKey, max_frame: usize, now: i64) -> TurnEnd {
    // The link is taken out of its session for the turn, because sending changes the session too.
    let Some(mut slot) = session.links.remove(&key.handle) else { return TurnEnd::Waits };
    let stop = match &mut slot {
        LinkSlot::Attached(link) if link.serial == key.serial => {
            let before = link.deliveries();
            let stop = link_turn(out, session, key, link, max_frame);
            if link.deliveries() != before {
                link.used_at = now;
            }
            stop
        }
        _ => TurnEnd::Waits,
    };
    session.links.insert(key.handle, slot);
    stop
}

fn link_turn(out: &mut Vec<u8>, session: &mut Session, key: LinkKey, link: &mut Link, max_frame: usize) -> TurnEnd {
    let LinkEnd::Out(outgoing) = &mut link.end else { return TurnEnd::Waits };
    outgoing.queued = false;
    let mut left = TURN;
    let mut encoded = Vec::new();
    let mut one_by_one = false;
    while outgoing.credit > 0 {
        if left == 0 || out.len() >= HIGH_WATER {
            return TurnEnd::Later;
        }
        if session.remote_window == 0 {
            return TurnEnd::Waits;
        }
        let mut sender = TransferWriter { out, session, channel: key.channel, handle: key.handle, max_frame };
        match &mut outgoing.feed {
            LinkFeed::Session { .. } => return TurnEnd::Waits,
            LinkFeed::Answers { waiting, .. } => {
                let Some(message) = waiting.pop_front() else { break };
                let tag = sender.session.next_delivery_id.to_be_bytes();
                sender.send(&tag, true, &message);
                outgoing.sent(1);
                left -= 1;
            }
            LinkFeed::Entity { more: false, .. } => break,
            LinkFeed::Entity { receiver, settled, more, .. } => {
                let want = if one_by_one { 1 } else { outgoing.credit.min(left).min(sender.session.remote_window) };
                let batch = match receiver.try_receive(usize::try_from(want).unwrap_or(1)) {
                    Ok(batch) => batch,
                    Err(refusal) => return TurnEnd::Failed(refusal.into()),
                };
                let got = u32::try_from(batch.len()).unwrap_or(want);
                *more = got == want;
                for delivered in &batch {
                    encoded.clear();
                    delivered_message::encode_into(&mut encoded, delivered);
                    one_by_one |= encoded.len() > LARGE;
                    let id = sender.send(&delivered.delivery_tag(), *settled, &encoded);
                    if let (false, Some(token)) = (*settled, delivered.lock_token) {
                        sender.session.hold(id, UnsettledDelivery { handle: key.handle, token });
                    }
                }
                outgoing.sent(got);
                left = left.saturating_sub(got);
            }
        }
    }
    if outgoing.drain {
        outgoing.drain = false;
        outgoing.delivery_count = outgoing.delivery_count.wrapping_add(outgoing.credit);
        outgoing.credit = 0;
        let drained = LinkFlow { handle: key.handle, delivery_count: outgoing.delivery_count, credit: 0, drain: true };
        writer::flow(out, key.channel, session.windows(), Some(drained));
    }
    TurnEnd::Waits
}

impl Link {
    fn deliveries(&self) -> u32 {
        match &self.end {
            LinkEnd::Out(outgoing) => outgoing.delivery_count,
            LinkEnd::In(incoming) => incoming.delivery_count,
        }
    }
}

impl super::OutgoingLink {
    fn sent(&mut self, deliveries: u32) {
        self.credit = self.credit.saturating_sub(deliveries);
        self.delivery_count = self.delivery_count.wrapping_add(deliveries);
    }
}

struct TransferWriter<'a> {
    out: &'a mut Vec<u8>,
    session: &'a mut Session,
    channel: u16,
    handle: u32,
    max_frame: usize,
}

impl TransferWriter<'_> {
    /// Sends one delivery in as many frames as it takes. A delivery is never split over two windows, so it may overdraw
    /// the window.
    fn send(&mut self, tag: &[u8], settled: bool, message: &[u8]) -> u32 {
        let delivery_id = self.session.next_delivery_id;
        self.session.next_delivery_id = delivery_id.wrapping_add(1);
        let room = self.max_frame - TRANSFER_OVERHEAD.min(self.max_frame / 2);
        let mut rest = message;
        loop {
            let (payload, after) = rest.split_at(room.min(rest.len()));
            rest = after;
            let frame =
                TransferFrame { handle: self.handle, delivery_id, tag, settled, more: !rest.is_empty(), payload };
            writer::transfer(self.out, self.channel, &frame);
            self.session.next_outgoing_id = self.session.next_outgoing_id.wrapping_add(1);
            self.session.remote_window = self.session.remote_window.saturating_sub(1);
            if rest.is_empty() {
                return delivery_id;
            }
        }
    }
}
