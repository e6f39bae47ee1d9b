//! The protocol of one connection, without its bytes: frames go in, frames come out, and nothing here waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::Options;
use super::answer;
use super::cbs::Claim;
use super::condition::{AmqpError, CONNECTION_FORCED, DECODE_ERROR, NOT_ALLOWED};
use super::frame::Frame;
use super::link::{End, Link, LinkSlot};
use super::performative::{Open, Performative};
use super::session::{Session, SessionSlot};
use super::state::DeliveryState;
use super::wake::{LinkKey, Wakes};
use crate::Shared;
use crate::access::Right;
use crate::broker::SessionLock;
use crate::faults::Order;
use crate::refusal::Refusal;

/// Sessions a connection may have.
pub(crate) const CHANNEL_MAX: u16 = 4999;
/// Links a connection may have.
pub(crate) const MAX_LINKS: usize = 5000;
/// What peers must take according to the protocol.
const MIN_MAX_FRAME_SIZE: u32 = 512;

/// The outcome of waiting for a session.
pub(crate) type Accepted = (LinkKey, Result<SessionLock, Refusal>);

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Open has not come yet.
    Waiting,
    Open,
    /// Close was said; what is written goes out, then the socket closes.
    Closing,
    /// The socket closes without another word.
    Dropped,
}

/// Settlements that go out as one range.
pub(crate) struct Settling {
    channel: u16,
    as_receiver: bool,
    first: u32,
    last: u32,
    state: DeliveryState,
}

pub(crate) struct Engine {
    pub(crate) shared: Shared,
    pub(crate) options: Options,
    pub(crate) out: Vec<u8>,
    pub(crate) phase: Phase,
    pub(crate) peer_max_frame: usize,
    pub(crate) peer_idle_ms: Option<u32>,
    pub(crate) sessions: HashMap<u16, SessionSlot>,
    pub(crate) wakes: Arc<Wakes>,
    /// Links that may have something to send.
    pub(crate) ready: VecDeque<LinkKey>,
    pub(crate) accepting: FuturesUnordered<BoxFuture<'static, Option<Accepted>>>,
    pub(crate) links: usize,
    /// What deliveries that are not complete take together.
    pub(crate) partial_bytes: usize,
    /// What tokens were put for.
    pub(crate) claims: Vec<Claim>,
    /// A claim came since the connection last looked when the next one ends.
    pub(crate) claims_changed: bool,
    /// What the client may do since it logged in with a key.
    pub(crate) login: Option<Claim>,
    settling: Option<Settling>,
    serial: u64,
}

impl Engine {
    pub(crate) fn new(shared: Shared, options: Options, login: Option<Claim>) -> Self {
        Self {
            shared,
            options,
            out: Vec::new(),
            phase: Phase::Waiting,
            peer_max_frame: 512,
            peer_idle_ms: None,
            sessions: HashMap::new(),
            wakes: Arc::default(),
            ready: VecDeque::new(),
            accepting: FuturesUnordered::new(),
            links: 0,
            partial_bytes: 0,
            claims: Vec::new(),
            claims_changed: false,
            login,
            settling: None,
            serial: 0,
        }
    }

    /// Handles one frame; an error closes the connection.
    pub(crate) fn frame(&mut self, frame: &Frame) {
        if let Err(error) = self.try_frame(frame) {
            self.fail(&error);
        }
    }

    /// Closes the connection with an error.
    pub(crate) fn fail(&mut self, error: &AmqpError) {
        if matches!(self.phase, Phase::Closing | Phase::Dropped) {
            return;
        }
        if self.phase == Phase::Waiting {
            self.say_open();
        }
        tracing::debug!(
            condition = error.condition,
            description = error.description,
            "connection closed with an error"
        );
        self.flush_settling();
        answer::close(&mut self.out, Some(error));
        self.end_all(Phase::Closing);
    }

    fn end_all(&mut self, phase: Phase) {
        self.phase = phase;
        // Receivers and held sessions go with their links.
        self.sessions.clear();
        self.ready.clear();
        self.accepting.clear();
    }

    fn try_frame(&mut self, frame: &Frame) -> Result<(), AmqpError> {
        if frame.body.is_empty() {
            return Ok(());
        }
        let (performative, payload) = Performative::decode(&frame.body)?;
        match (self.phase, performative) {
            (Phase::Waiting, Performative::Open(open)) => {
                self.opened(&open);
                Ok(())
            }
            (Phase::Waiting, _) => Err(AmqpError::new(NOT_ALLOWED, "open comes first")),
            (Phase::Open, Performative::Open(_)) => Err(AmqpError::new(NOT_ALLOWED, "open came twice")),
            (Phase::Open, Performative::Close) => {
                self.flush_settling();
                answer::close(&mut self.out, None);
                self.end_all(Phase::Closing);
                Ok(())
            }
            (Phase::Open, performative) => self.session_frame(frame.channel, performative, payload),
            (Phase::Closing | Phase::Dropped, _) => Ok(()),
        }
    }

    fn opened(&mut self, open: &Open) {
        self.peer_max_frame = usize::try_from(open.max_frame_size.max(MIN_MAX_FRAME_SIZE)).unwrap_or(usize::MAX);
        self.peer_idle_ms = open.idle_timeout_ms;
        self.say_open();
    }

    fn say_open(&mut self) {
        self.phase = Phase::Open;
        let idle = u32::try_from(self.options.idle_timeout.as_millis()).unwrap_or(u32::MAX);
        answer::open(&mut self.out, &self.options.container, self.options.max_frame_size, CHANNEL_MAX, idle);
    }

    fn session_frame(&mut self, channel: u16, performative: Performative, payload: &[u8]) -> Result<(), AmqpError> {
        if let Performative::Begin(begin) = &performative {
            if channel > CHANNEL_MAX {
                return Err(AmqpError::new(NOT_ALLOWED, format!("channel {channel} is above channel-max")));
            }
            if self.sessions.contains_key(&channel) {
                return Err(AmqpError::new(NOT_ALLOWED, format!("channel {channel} is in use")));
            }
            let session = Session::new(begin);
            answer::begin(&mut self.out, channel, session.next_outgoing_id, session.incoming_window, 4999);
            self.sessions.insert(channel, SessionSlot::Begun(Box::new(session)));
            return Ok(());
        }
        match self.sessions.get(&channel) {
            None => return Err(AmqpError::new(NOT_ALLOWED, format!("no session on channel {channel}"))),
            Some(SessionSlot::Leaving) => {
                if let Performative::End = performative {
                    self.sessions.remove(&channel);
                }
                return Ok(());
            }
            Some(SessionSlot::Begun(_)) => {}
        }
        let done = match performative {
            Performative::Attach(attach) => self.attach(channel, attach),
            Performative::Flow(flow) => self.flow(channel, &flow),
            Performative::Transfer(transfer) => self.transfer(channel, &transfer, payload),
            Performative::Disposition(disposition) => {
                self.disposition(channel, disposition);
                Ok(())
            }
            Performative::Detach(detach) => self.detached(channel, &detach),
            Performative::End => {
                self.flush_settling();
                self.forget_session(channel, None);
                answer::end(&mut self.out, channel, None);
                Ok(())
            }
            Performative::Open(_) | Performative::Begin(_) | Performative::Close => {
                Err(AmqpError::new(DECODE_ERROR, "not for a session"))
            }
        };
        if let Err(error) = done {
            self.end_session(channel, &error);
        }
        Ok(())
    }

    /// Ends one session with an error.
    fn end_session(&mut self, channel: u16, error: &AmqpError) {
        self.flush_settling();
        self.forget_session(channel, Some(SessionSlot::Leaving));
        answer::end(&mut self.out, channel, Some(error));
    }

    fn forget_session(&mut self, channel: u16, instead: Option<SessionSlot>) {
        let old = match instead {
            Some(slot) => self.sessions.insert(channel, slot),
            None => self.sessions.remove(&channel),
        };
        if let Some(SessionSlot::Begun(session)) = old {
            session.links.into_values().for_each(|slot| self.forget_link(slot));
        }
    }

    /// Accounts for a link that is gone.
    pub(crate) fn forget_link(&mut self, slot: LinkSlot) {
        if let LinkSlot::Attached(link) = slot {
            self.links -= 1;
            if let End::In(incoming) = link.end {
                self.partial_bytes -= incoming.partial.map_or(0, |partial| partial.bytes.len());
            }
        }
    }

    pub(crate) fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn session_mut(&mut self, channel: u16) -> Option<&mut Session> {
        match self.sessions.get_mut(&channel) {
            Some(SessionSlot::Begun(session)) => Some(session),
            _ => None,
        }
    }

    /// The link of this key, unless its handle names another one by now.
    pub(crate) fn link_mut(&mut self, key: LinkKey) -> Option<&mut Link> {
        self.session_mut(key.channel)?.link_mut(key.handle).filter(|link| link.serial == key.serial)
    }

    /// Settles deliveries towards the peer. Neighbours with the same state go out as one range.
    pub(crate) fn settle(&mut self, channel: u16, as_receiver: bool, first: u32, last: u32, state: DeliveryState) {
        if let Some(open) = &mut self.settling
            && (open.channel, open.as_receiver) == (channel, as_receiver)
            && open.last.wrapping_add(1) == first
            && open.state == state
        {
            open.last = last;
            return;
        }
        self.flush_settling();
        self.settling = Some(Settling { channel, as_receiver, first, last, state });
    }

    /// Writes the range that is still open.
    pub(crate) fn flush_settling(&mut self) {
        if let Some(range) = self.settling.take() {
            answer::disposition(&mut self.out, range.channel, range.as_receiver, range.first, range.last, &range.state);
        }
    }

    /// A fault that a test asked for.
    pub(crate) fn order(&mut self, order: &Order) {
        match order {
            Order::DropConnections => self.end_all(Phase::Dropped),
            Order::LookAgain => self.claims_changed = true,
            Order::EndTokens => self.end_claims(),
            Order::ForgetTokens => {
                self.claims.clear();
                self.claims_changed = true;
            }
            Order::Detach { address, condition, description } => {
                let error = AmqpError::new(condition, description.clone());
                let part = address.to_lowercase();
                for (channel, handle, address, _) in self.attached_links() {
                    if address.to_lowercase().contains(&part) {
                        self.detach(channel, handle, Some(&error));
                    }
                }
            }
        }
    }

    /// The channels, handles and addresses of all links, and the rights they need.
    pub(crate) fn attached_links(&self) -> Vec<(u16, u32, String, Option<Right>)> {
        let mut found = Vec::new();
        for (channel, slot) in &self.sessions {
            let SessionSlot::Begun(session) = slot else { continue };
            for (handle, slot) in &session.links {
                if let LinkSlot::Attached(link) = slot {
                    found.push((*channel, *handle, link.address.clone(), link.right()));
                }
            }
        }
        found
    }

    /// The peer was silent for too long.
    pub(crate) fn idle(&mut self) {
        self.fail(&AmqpError::new(CONNECTION_FORCED, "nothing came in within the idle time-out"));
    }
}
