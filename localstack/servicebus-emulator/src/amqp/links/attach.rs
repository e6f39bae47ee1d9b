//! Attaching and detaching: connects a link to an entity, `$cbs` or `$management`, or refuses it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::abortable;

use super::session_filter::{self, RequestedSession};
use super::{
    AbortOnDrop, IncomingLink, Link, LinkEnd, LinkFeed, LinkKey, LinkSlot, LinkWake, OutgoingLink, TargetNode,
};
use crate::amqp::engine::{AcceptedSession, ConnectionEngine, MAX_LINKS};
use crate::amqp::requests::cbs::is_cbs;
use crate::amqp::requests::management::management_of;
use crate::amqp::session::SessionSlot;
use crate::amqp::wire::error::{HANDLE_IN_USE, INVALID_FIELD, NOT_ALLOWED, NOT_IMPLEMENTED, RESOURCE_LIMIT};
use crate::amqp::wire::writer::{self, AttachReply, LinkFlow};
use crate::amqp::wire::{AmqpError, Attach, Detach};
use crate::auth::AccessRight;
use crate::broker::{ReceiveMode, SessionLock, Source};
use crate::codec::Value;
use crate::faults::BusyOperation;

/// The credit of a peer that sends.
pub(crate) const CREDIT: u32 = 1000;
/// The largest request to `$cbs` or `$management`.
pub(crate) const MAX_REQUEST_BYTES: u64 = 1024 * 1024;
/// How long a link waits for a message session when the client does not set a time-out.
const SESSION_TIMEOUT: Duration = Duration::from_secs(60);
const SETTLED: u8 = 1;

impl ConnectionEngine {
    pub(crate) fn attach(&mut self, channel: u16, attach: Box<Attach>) -> Result<(), AmqpError> {
        let Some(session) = self.session_mut(channel) else { return Ok(()) };
        if session.links.contains_key(&attach.handle) {
            return Err(AmqpError::new(HANDLE_IN_USE, format!("handle {} is in use", attach.handle)));
        }
        let handle = attach.handle;
        let reply = attach.clone();
        match self.try_attach(channel, attach) {
            Ok(link) => {
                self.links += 1;
                let serial = link.serial;
                let receives = matches!(link.end, LinkEnd::In(_));
                if let Some(session) = self.session_mut(channel) {
                    session.links.insert(handle, LinkSlot::Attached(link));
                }
                if receives {
                    self.grant(channel, handle);
                }
                self.enqueue(LinkKey { channel, handle, serial });
            }
            Err(error) => self.refuse(channel, &reply, &error),
        }
        Ok(())
    }

    fn try_attach(&mut self, channel: u16, attach: Box<Attach>) -> Result<Link, AmqpError> {
        if self.links >= MAX_LINKS {
            return Err(AmqpError::new(RESOURCE_LIMIT, format!("a connection may have {MAX_LINKS} links")));
        }
        let Some(address) = attach.address().map(str::to_owned) else {
            return Err(match attach.receives || attach.target.is_null() {
                true => AmqpError::new(INVALID_FIELD, "the link has no address"),
                false => AmqpError::new(NOT_IMPLEMENTED, "transactions are not supported"),
            });
        };
        let serial = self.next_serial();
        let key = LinkKey { channel, handle: attach.handle, serial };
        let (name, used_at) = (attach.name.clone(), self.shared.clock().now_ms());
        let end = match service_node(&address) {
            Some(node) => self.attach_to_service(channel, &attach, node)?,
            None => self.attach_to_entity(key, &address, attach.clone())?,
        };
        // This may be the first link that can become idle for too long.
        self.claims_changed |= self.shared.cloud.idle_link_ms().is_some();
        Ok(Link { serial, name, address, used_at, end })
    }

    fn attach_to_service(&mut self, channel: u16, attach: &Attach, node: TargetNode) -> Result<LinkEnd, AmqpError> {
        if let TargetNode::Management(address) = &node {
            self.check_exists(address)?;
            self.check_claim(&management_of(address), None)?;
        } else if self.has_cbs(attach.receives) {
            return Err(AmqpError::new(
                NOT_ALLOWED,
                "A link to the $cbs node of this connection has already been opened.",
            ));
        }
        self.say_attach(channel, attach, &attach.source, MAX_REQUEST_BYTES, &empty());
        Ok(if attach.receives {
            let reply_to = attach.own_address().unwrap_or_default().to_owned();
            LinkEnd::Out(OutgoingLink::new(LinkFeed::Answers { reply_to, waiting: VecDeque::new() }))
        } else {
            LinkEnd::In(IncomingLink::new(node, attach.initial_delivery_count))
        })
    }

    /// True when the connection already has a link of this direction to `$cbs`. There may be one pair.
    fn has_cbs(&self, receives: bool) -> bool {
        self.sessions.values().any(|slot| match slot {
            SessionSlot::Begun(session) => session.links.values().any(|slot| match slot {
                LinkSlot::Attached(link) => is_cbs(&link.address) && receives == matches!(link.end, LinkEnd::Out(_)),
                LinkSlot::Leaving => false,
            }),
            SessionSlot::Leaving => false,
        })
    }

    fn attach_to_entity(&mut self, key: LinkKey, address: &str, attach: Box<Attach>) -> Result<LinkEnd, AmqpError> {
        self.shared.faults.check_attach()?;
        self.shared.check_busy(BusyOperation::Attach)?;
        if !attach.receives {
            let target = self.shared.broker.target(address)?;
            self.check_claim(address, Some(AccessRight::Send))?;
            target.check_sends()?;
            // Newer SDKs size their batches by it.
            let batch = (Value::symbol("com.microsoft:max-message-batch-size"), Value::Ulong(target.max_batch_bytes()));
            let (properties, limit) = (Value::Map(vec![batch]), target.max_message_bytes());
            self.say_attach(key.channel, &attach, &attach.source, limit, &properties);
            return Ok(LinkEnd::In(IncomingLink::new(TargetNode::Entity(target), attach.initial_delivery_count)));
        }
        let source = self.shared.broker.source(address)?;
        self.check_claim(address, Some(AccessRight::Listen))?;
        match session_filter::wanted(&attach) {
            RequestedSession::None => {
                let feed = self.feed(key, &attach, source, None)?;
                self.say_attach(key.channel, &attach, &attach.source, 0, &empty());
                Ok(LinkEnd::Out(OutgoingLink::new(feed)))
            }
            RequestedSession::Next => Ok(self.wait_for_session(key, attach, source, None)),
            RequestedSession::Named(id) => Ok(self.wait_for_session(key, attach, source, Some(id))),
        }
    }

    fn feed(
        &self,
        key: LinkKey,
        attach: &Attach,
        source: Source,
        session: Option<SessionLock>,
    ) -> Result<LinkFeed, AmqpError> {
        let settled = attach.snd_settle_mode == SETTLED;
        let mode = if settled { ReceiveMode::ReceiveAndDelete } else { ReceiveMode::PeekLock };
        let wake = Arc::new(LinkWake { wakes: self.wakes.clone(), key });
        if let Some(session) = &session {
            session.name_holder(&attach.name);
        }
        let receiver = source.receiver(mode, session, wake)?;
        Ok(LinkFeed::Entity { receiver, source, settled, more: true })
    }

    fn wait_for_session(&mut self, key: LinkKey, attach: Box<Attach>, source: Source, id: Option<String>) -> LinkEnd {
        let timeout = attach.properties.get("com.microsoft:timeout").and_then(Value::as_u32);
        let timeout = timeout.map_or(SESSION_TIMEOUT, |ms| Duration::from_millis(u64::from(ms)));
        let from = source.clone();
        let accept = async move { from.accept_session(id.as_deref(), timeout).await };
        let (accept, abort) = abortable(accept);
        self.accepting.push(accept.map(move |accepted| Some((key, accepted.ok()?))).boxed());
        LinkEnd::Out(OutgoingLink::new(LinkFeed::Session { attach, source, _waiting: AbortOnDrop(abort) }))
    }

    /// Answers the attach of a link that waited for a message session.
    pub(crate) fn session_accepted(&mut self, (key, accepted): AcceptedSession) {
        // If the link was detached meanwhile, dropping the session lock releases the session.
        let Some(link) = self.link_mut(key) else { return };
        let LinkEnd::Out(outgoing) = &mut link.end else { return };
        let LinkFeed::Session { attach, source, .. } = &outgoing.feed else { return };
        let (attach, source) = (attach.clone(), source.clone());
        let opened = accepted.map_err(AmqpError::from).and_then(|session| {
            let (id, until) = (session.id().to_owned(), session.locked_until()?);
            Ok((self.feed(key, &attach, source, Some(session))?, id, until))
        });
        match opened {
            Ok((feed, id, until)) => {
                let properties = session_filter::locked_until(until);
                let answered = session_filter::answered(&attach.source, &id);
                self.say_attach(key.channel, &attach, &answered, 0, &properties);
                let now = self.shared.clock().now_ms();
                if let Some(Link { end: LinkEnd::Out(outgoing), used_at, .. }) = self.link_mut(key) {
                    outgoing.feed = feed;
                    *used_at = now;
                }
                self.claims_changed |= self.shared.cloud.idle_link_ms().is_some();
                self.enqueue(key);
            }
            Err(error) => {
                if let Some(slot) = self.session_mut(key.channel).and_then(|session| session.links.remove(&key.handle))
                {
                    self.forget_link(slot);
                }
                self.refuse(key.channel, &attach, &error);
            }
        }
    }

    fn say_attach(&mut self, channel: u16, attach: &Attach, source: &Value, max_message_size: u64, properties: &Value) {
        let reply = AttachReply {
            name: &attach.name,
            handle: attach.handle,
            receives: !attach.receives,
            snd_settle_mode: attach.snd_settle_mode,
            rcv_settle_mode: attach.rcv_settle_mode,
            source,
            target: &attach.target,
            max_message_size,
            properties,
        };
        writer::attach(&mut self.out, channel, &reply);
    }

    /// Refuses a link. AMQP allows a detach only after an attach, so an attach without the source or target comes
    /// first, which announces the refusal.
    fn refuse(&mut self, channel: u16, attach: &Attach, error: &AmqpError) {
        let (source, target) = match attach.receives {
            true => (&Value::Null, &attach.target),
            false => (&attach.source, &Value::Null),
        };
        let reply = AttachReply {
            name: &attach.name,
            handle: attach.handle,
            receives: !attach.receives,
            snd_settle_mode: attach.snd_settle_mode,
            rcv_settle_mode: attach.rcv_settle_mode,
            source,
            target,
            max_message_size: 0,
            properties: &empty(),
        };
        writer::attach(&mut self.out, channel, &reply);
        writer::detach(&mut self.out, channel, attach.handle, true, Some(error));
        if let Some(session) = self.session_mut(channel) {
            session.links.insert(attach.handle, LinkSlot::Leaving);
        }
    }

    /// Renews the credit of a peer that sends.
    pub(crate) fn grant(&mut self, channel: u16, handle: u32) {
        let Some(session) = self.session_mut(channel) else { return };
        let windows = session.windows();
        let Some(Link { end: LinkEnd::In(incoming), .. }) = session.link_mut(handle) else { return };
        incoming.credit = CREDIT;
        let link = LinkFlow { handle, delivery_count: incoming.delivery_count, credit: CREDIT, drain: false };
        writer::flow(&mut self.out, channel, windows, Some(link));
    }

    /// Handles a detach of the peer.
    pub(crate) fn detached(&mut self, channel: u16, detach: &Detach) -> Result<(), AmqpError> {
        self.flush_settling();
        let Some(session) = self.session_mut(channel) else { return Ok(()) };
        match session.links.remove(&detach.handle) {
            None | Some(LinkSlot::Leaving) => {}
            Some(slot) => {
                session.unsettled.retain(|_, held| held.handle != detach.handle);
                self.attach_late(channel, &slot);
                self.forget_link(slot);
                writer::detach(&mut self.out, channel, detach.handle, detach.closed, None);
            }
        }
        Ok(())
    }

    /// Answers the attach of a link that still waits for its session, without a source, so that a detach can follow.
    fn attach_late(&mut self, channel: u16, slot: &LinkSlot) {
        if let LinkSlot::Attached(Link { end: LinkEnd::Out(outgoing), .. }) = slot
            && let LinkFeed::Session { attach, .. } = &outgoing.feed
        {
            self.say_attach(channel, attach, &Value::Null, 0, &empty());
        }
    }

    /// Detaches a link of the peer.
    pub(crate) fn detach(&mut self, channel: u16, handle: u32, error: Option<&AmqpError>) {
        self.flush_settling();
        let Some(session) = self.session_mut(channel) else { return };
        session.unsettled.retain(|_, held| held.handle != handle);
        if let Some(slot) = session.links.insert(handle, LinkSlot::Leaving) {
            self.attach_late(channel, &slot);
            self.forget_link(slot);
        }
        writer::detach(&mut self.out, channel, handle, true, error);
    }
}

impl OutgoingLink {
    fn new(feed: LinkFeed) -> Self {
        Self { feed, delivery_count: 0, credit: 0, drain: false, queued: false }
    }
}

fn empty() -> Value {
    Value::Map(Vec::new())
}

/// The node of an address that names `$cbs` or the `$management` of an entity.
fn service_node(address: &str) -> Option<TargetNode> {
    let path = address.trim_end_matches('/');
    let (head, last) = path.rsplit_once('/').unwrap_or(("", path));
    if is_cbs(address) {
        Some(TargetNode::Cbs)
    } else if last.eq_ignore_ascii_case("$management") {
        Some(TargetNode::Management(head.to_owned()))
    } else {
        None
    }
}
