//! The protocol engine of one connection: decoded frames go in, encoded frames come out, and nothing in it waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use super::AmqpOptions;
use super::links::{Link, LinkEnd, LinkKey, LinkSlot, WokenLinks};
use super::requests::cbs::CbsClaim;
use super::session::{Session, SessionSlot};
use super::wire::error::{CONNECTION_FORCED, DECODE_ERROR, NOT_ALLOWED};
use super::wire::{AmqpError, DeliveryState, Frame, Open, Performative, writer};
use crate::SharedState;
use crate::auth::AccessRight;
use crate::broker::SessionLock;
use crate::faults::FaultOrder;
use crate::refusal::Refusal;

/// The highest channel, and so the limit on a connection's sessions.
pub(crate) const CHANNEL_MAX: u16 = 4999;
/// The most links that a connection may have.
pub(crate) const MAX_LINKS: usize = 5000;
/// The frame size that every peer must accept according to the protocol.
const MIN_MAX_FRAME_SIZE: u32 = 512;

/// The result of waiting for a message session on behalf of a link.
pub(crate) type AcceptedSession = (LinkKey, Result<SessionLock, Refusal>);

/// The phase of a connection, from protocol header to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConnectionPhase {
    /// Open has not come yet.
    Waiting,
    Open,
    /// The close frame is written. The output is flushed, then the socket closes.
    Closing,
    /// The socket closes without anything more being sent.
    Dropped,
}

/// Adjacent deliveries with one state, which are settled by one disposition.
pub(crate) struct SettledRange {
    channel: u16,
    as_receiver: bool,
    first: u32,
    last: u32,
    state: DeliveryState,
}

pub(crate) struct ConnectionEngine {
    pub(crate) shared: SharedState,
    pub(crate) options: AmqpOptions,
    pub(crate) out: Vec<u8>,
    pub(crate) phase: ConnectionPhase,
    pub(crate) peer_max_frame: usize,
    pub(crate) peer_idle_ms: Option<u32>,
    pub(crate) sessions: HashMap<u16, SessionSlot>,
    pub(crate) wakes: Arc<WokenLinks>,
    /// Links that may have something to send.
    pub(crate) ready: VecDeque<LinkKey>,
    pub(crate) accepting: FuturesUnordered<BoxFuture<'static, Option<AcceptedSession>>>,
    pub(crate) links: usize,
    /// The bytes of all incomplete deliveries.
    pub(crate) partial_bytes: usize,
    /// The claims that tokens were put for, the oldest first.
    pub(crate) claims: Vec<CbsClaim>,
    /// Set when a claim or a link changes, so that the connection computes the next expiry anew.
    pub(crate) claims_changed: bool,
    /// The claim of a client that logged in with a key by SASL PLAIN.
    pub(crate) login: Option<CbsClaim>,
    settling: Option<SettledRange>,
    serial: u64,
}

impl ConnectionEngine {
    pub(crate) fn new(shared: SharedState, options: AmqpOptions, login: Option<CbsClaim>) -> Self {
        Self {
            shared,
            options,
            out: Vec::new(),
            phase: ConnectionPhase::Waiting,
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
        if matches!(self.phase, ConnectionPhase::Closing | ConnectionPhase::Dropped) {
            return;
        }
        if self.phase == ConnectionPhase::Waiting {
            self.say_open();
        }
        tracing::debug!(
            condition = error.condition,
            description = error.description,
            "connection closed with an error"
        );
        self.flush_settling();
        writer::close(&mut self.out, Some(error));
        self.end_all(ConnectionPhase::Closing);
    }

    fn end_all(&mut self, phase: ConnectionPhase) {
        self.phase = phase;
        // Dropping the links releases their receivers and message sessions.
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
            (ConnectionPhase::Waiting, Performative::Open(open)) => {
                self.opened(&open);
                Ok(())
            }
            (ConnectionPhase::Waiting, _) => Err(AmqpError::new(NOT_ALLOWED, "open comes first")),
            (ConnectionPhase::Open, Performative::Open(_)) => Err(AmqpError::new(NOT_ALLOWED, "open came twice")),
            (ConnectionPhase::Open, Performative::Close) => {
                self.flush_settling();
                writer::close(&mut self.out, None);
                self.end_all(ConnectionPhase::Closing);
                Ok(())
            }
            (ConnectionPhase::Open, performative) => self.session_frame(frame.channel, performative, payload),
            (ConnectionPhase::Closing | ConnectionPhase::Dropped, _) => Ok(()),
        }
    }

    fn opened(&mut self, open: &Open) {
        self.peer_max_frame = usize::try_from(open.max_frame_size.max(MIN_MAX_FRAME_SIZE)).unwrap_or(usize::MAX);
        self.peer_idle_ms = open.idle_timeout_ms;
        self.say_open();
    }

    fn say_open(&mut self) {
        self.phase = ConnectionPhase::Open;
        let idle = u32::try_from(self.options.idle_timeout.as_millis()).unwrap_or(u32::MAX);
        writer::open(&mut self.out, &self.options.container, self.options.max_frame_size, CHANNEL_MAX, idle);
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
            writer::begin(&mut self.out, channel, session.next_outgoing_id, session.incoming_window, 4999);
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
                writer::end(&mut self.out, channel, None);
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
        writer::end(&mut self.out, channel, Some(error));
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

    /// Updates the connection's counters for a link that is gone.
    pub(crate) fn forget_link(&mut self, slot: LinkSlot) {
        if let LinkSlot::Attached(link) = slot {
            self.links -= 1;
            if let LinkEnd::In(incoming) = link.end {
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

    /// The link of this key. `None` when the handle belongs to a later link by now.
    pub(crate) fn link_mut(&mut self, key: LinkKey) -> Option<&mut Link> {
        self.session_mut(key.channel)?.link_mut(key.handle).filter(|link| link.serial == key.serial)
    }

    /// Settles deliveries towards the peer. Adjacent deliveries with the same state are collected into one disposition.
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
        self.settling = Some(SettledRange { channel, as_receiver, first, last, state });
    }

    /// Writes the collected disposition. It must be written before a detach, end or close that follows it.
    pub(crate) fn flush_settling(&mut self) {
        if let Some(range) = self.settling.take() {
            writer::disposition(&mut self.out, range.channel, range.as_receiver, range.first, range.last, &range.state);
        }
    }

    /// Acts on a fault that a test switched on.
    pub(crate) fn order(&mut self, order: &FaultOrder) {
        match order {
            FaultOrder::DropConnections => self.end_all(ConnectionPhase::Dropped),
            FaultOrder::LookAgain => self.claims_changed = true,
            FaultOrder::EndTokens => self.end_claims(),
            FaultOrder::ForgetTokens => {
                self.claims.clear();
                self.claims_changed = true;
            }
            FaultOrder::Detach { address, condition, description } => {
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

    /// Channel, handle, address and required right of every attached link.
    pub(crate) fn attached_links(&self) -> Vec<(u16, u32, String, Option<AccessRight>)> {
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

    /// Closes the connection because the peer was silent for too long.
    pub(crate) fn idle(&mut self) {
        self.fail(&AmqpError::new(CONNECTION_FORCED, "nothing came in within the idle time-out"));
    }
}
