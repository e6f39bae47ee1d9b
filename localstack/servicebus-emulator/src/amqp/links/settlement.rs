//! Dispositions: the peer settles deliveries, and the server confirms the outcome or reports why it failed.

use std::collections::HashSet;

use uuid::Uuid;

use super::{Link, LinkEnd, LinkFeed};
use crate::amqp::engine::ConnectionEngine;
use crate::amqp::session::{Session, SessionSlot};
use crate::amqp::wire::{AmqpError, DeliveryState, Disposition};
use crate::broker::Outcome;
use crate::codec::{Value, lookup};
use crate::faults::{BusyOperation, SettleLoss};
use crate::refusal::{Condition, Refusal};

impl ConnectionEngine {
    pub(crate) fn disposition(&mut self, channel: u16, disposition: Disposition) {
        // A disposition of the peer as a sender needs no action, because the server settled the delivery when it
        // accepted it.
        let (true, Some(state)) = (disposition.as_receiver, disposition.state) else { return };
        let Some(outcome) = outcome_of(&state) else { return };
        let faults = self.shared.faults.clone();
        let Some(session) = self.session_mut(channel) else { return };
        for id in session.deliveries(disposition.first, disposition.last) {
            let loss = faults.next_loss();
            if loss == SettleLoss::Request {
                continue;
            }
            let (busy, now) = (self.shared.check_busy(BusyOperation::Settle), self.shared.clock().now_ms());
            let Some(session) = self.session_mut(channel) else { return };
            // A delivery that is refused because the service is busy stays unsettled, so the peer can try again.
            let done = busy.and_then(|()| session.settle(id, &outcome, now));
            if !disposition.settled && loss == SettleLoss::None {
                self.settle(channel, false, id, id, confirmed(&state, done));
            }
        }
    }

    /// Forgets deliveries that were settled through `$management`.
    pub(crate) fn settled_elsewhere(&mut self, tokens: &[Uuid]) {
        let tokens: HashSet<&Uuid> = tokens.iter().collect();
        for slot in self.sessions.values_mut() {
            if let SessionSlot::Begun(session) = slot {
                session.unsettled.retain(|_, held| !tokens.contains(&held.token));
            }
        }
    }
}

impl Session {
    /// The ids of a range that were ever sent. Ids wrap around, and the peer may name any range, so long ranges are
    /// answered from the unsettled deliveries only.
    fn deliveries(&self, first: u32, last: u32) -> Vec<u32> {
        let length = last.wrapping_sub(first);
        if length < 1024 {
            let made = |id: &u32| self.next_delivery_id.wrapping_sub(*id).wrapping_sub(1) < u32::MAX / 2;
            return (0..=length).map(|at| first.wrapping_add(at)).filter(made).collect();
        }
        let mut ids: Vec<u32> = self.unsettled.keys().copied().filter(|id| id.wrapping_sub(first) <= length).collect();
        ids.sort_by_key(|id| id.wrapping_sub(first));
        ids
    }

    fn settle(&mut self, id: u32, outcome: &Outcome, now: i64) -> Result<(), Refusal> {
        let held = self.unsettled.remove(&id).ok_or_else(Refusal::lock_lost)?;
        match self.link_mut(held.handle) {
            Some(Link { end: LinkEnd::Out(outgoing), used_at, .. }) => {
                *used_at = now;
                match &outgoing.feed {
                    LinkFeed::Entity { source, .. } => source.settle(held.token, outcome.clone()),
                    _ => Err(Refusal::lock_lost()),
                }
            }
            _ => Err(Refusal::lock_lost()),
        }
    }
}

fn outcome_of(state: &DeliveryState) -> Option<Outcome> {
    Some(match state {
        DeliveryState::Accepted => Outcome::Complete,
        DeliveryState::Released => Outcome::Release,
        DeliveryState::Modified { undeliverable_here: true, annotations, .. } => Outcome::Defer(annotations.clone()),
        DeliveryState::Modified { annotations, .. } => Outcome::Abandon(annotations.clone()),
        DeliveryState::Rejected(error) => dead_letter(error.as_ref()),
        DeliveryState::Other => return None,
    })
}

const REASON: &str = "DeadLetterReason";
const DESCRIPTION: &str = "DeadLetterErrorDescription";

/// The outcome of a rejection. Reason and description come from the error's info; its other entries are merged into the
/// message.
fn dead_letter(error: Option<&AmqpError>) -> Outcome {
    let info = error.map(|error| error.info.as_slice()).unwrap_or_default();
    let text = |name: &str| lookup(info, name).and_then(Value::as_text).map(str::to_owned);
    let named = |key: &Value| matches!(key.as_text(), Some(REASON | DESCRIPTION));
    Outcome::DeadLetter {
        reason: text(REASON),
        description: text(DESCRIPTION)
            .or_else(|| error.map(|error| error.description.clone()))
            .filter(|d| !d.is_empty()),
        properties: info.iter().filter(|(key, _)| !named(key)).cloned().collect(),
    }
}

/// The state that confirms a settlement: the same outcome, `rejected` without its error, or the error of a settlement
/// that failed.
fn confirmed(asked: &DeliveryState, done: Result<(), Refusal>) -> DeliveryState {
    match (done, asked) {
        (Err(refusal), _) => DeliveryState::Rejected(Some(lost(refusal).into())),
        (Ok(()), DeliveryState::Rejected(_)) => DeliveryState::Rejected(None),
        (Ok(()), DeliveryState::Modified { failed, undeliverable_here, .. }) => DeliveryState::Modified {
            failed: *failed,
            undeliverable_here: *undeliverable_here,
            annotations: Vec::new(),
        },
        (Ok(()), other) => other.clone(),
    }
}

fn lost(refusal: Refusal) -> Refusal {
    match refusal.condition {
        Condition::MessageNotFound => Refusal::lock_lost(),
        _ => refusal,
    }
}
