//! The decision, just before a message is handed out, whether the application gets it or it is settled instead.
//!
//! | the message | becomes |
//! |---|---|
//! | is no longer held | nothing: the broker hands it out again |
//! | cannot be decoded | a dead letter, `malformed` |
//! | was handed out too often | a dead letter, `max-deliveries-exceeded` |
//! | is past its expiry | acknowledged, or a dead letter (`expired`) where the topology asks for it |
//! | has a type that nobody wants here | what `unwanted` says: a dead letter, a delivery, or acknowledged |
//! | is anything else | a [`Delivery`] |
//!
//! Dead letters are handed out as they are. Only an expiry, and `unwanted = "discard"`, delete a message that nobody
//! saw.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;

use crate::{
    Delivery, Envelope, Source,
    consume::{
        consumer::Consumer,
        handlings_by_message::times,
        settle::rules::MAX_DELIVERIES,
        unsettled::{UnsettledDelivery, UnsettledMessage},
    },
    driver::Settlement,
    topology::{EntitySettings, UnwantedPolicy, type_filter::any_matches},
};

/// The dead-letter reason of messages whose type the subscription does not want.
pub(crate) const UNWANTED_TYPE: &str = "unwanted-type";

/// How many warnings are remembered and logged. A producer that makes up types without end must fill neither the memory
/// nor the log.
const MAX_WARNINGS: usize = 256;

/// The warnings that a bus has logged, by source and by what is odd about the message.
#[derive(Default)]
pub(crate) struct WarningLog(Mutex<BTreeSet<(String, Box<str>)>>);

impl WarningLog {
    /// Whether this is the first message of its kind from this source. Remembers it.
    fn is_first(&self, source: &Source, kind: &str) -> bool {
        let mut logged = self.0.lock();
        let entry = (source.to_string(), kind.into());
        !logged.contains(&entry) && logged.len() < MAX_WARNINGS && logged.insert(entry)
    }
}

fn dead_letter(reason: &str, detail: String) -> Settlement {
    Settlement::DeadLetter { reason: reason.into(), detail: detail.into() }
}

fn wanted_types(settings: &EntitySettings) -> String {
    settings.types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Consumer {
    /// Hands a message out. `None` if it was settled instead, or is no longer held.
    pub(crate) fn hand_out(self: &Arc<Self>, message: UnsettledMessage) -> Option<Delivery> {
        let mut delivery = UnsettledDelivery::new(self.clone(), message);
        if !delivery.is_held() {
            self.metrics.lock_lost();
            tracing::debug!(source = %self.entity.name, "a buffered delivery is no longer held; the broker has it");
            return None;
        }
        match self.settlement_instead(delivery.message()) {
            None => {
                self.metrics.received(1);
                delivery.set_handed_out();
                Some(Delivery::new(delivery))
            }
            Some(how) => {
                self.settle_detached(delivery, how);
                None
            }
        }
    }

    /// The settlement of a message that is not handed out; `None` for one that is.
    fn settlement_instead(&self, message: &UnsettledMessage) -> Option<Settlement> {
        if !self.is_live() {
            return None;
        }
        let settings = &self.entity.settings;
        let can_dead_letter = self.connection.driver.capabilities().dead_letters;
        if let (Some(why), true) = (message.malformed(), can_dead_letter) {
            return Some(dead_letter("malformed", why.to_string()));
        }
        let allowed = self.max_deliveries(message);
        if message.attempt > allowed && can_dead_letter {
            let handled = times(self.consumers.handled_counts.count(&self.entity.name, message));
            let before = message.attempt - 1;
            let detail = format!("delivered {before} times, allowed {allowed}; handled {handled} by this process");
            return Some(dead_letter(MAX_DELIVERIES, detail));
        }
        if let Some(at) = message.envelope.expires_at.filter(|at| *at <= self.connection.clock.now()) {
            return Some(self.expired(message, can_dead_letter, format!("expired at {at}")));
        }
        let event_type = &*message.envelope.event_type;
        // A foreign message has no type of its own. It is handed out, since the broker has chosen to deliver it.
        if event_type == Envelope::FOREIGN_TYPE || any_matches(&settings.types, event_type) {
            return None;
        }
        self.unwanted(message, can_dead_letter)
    }

    fn expired(&self, message: &UnsettledMessage, can_dead_letter: bool, detail: String) -> Settlement {
        self.metrics.expired();
        let keep = self.entity.settings.dead_letter_expired && can_dead_letter;
        let (source, id) = (&self.entity.name, &*message.envelope.id);
        if self.consumers.warnings.is_first(source, "expired") {
            let then = if keep { "dead-letter" } else { "acknowledge" };
            tracing::info!(%source, id, %detail, then, "an expired message is not handed out; more of them are only counted");
        } else {
            tracing::debug!(%source, id, %detail, "an expired message was not handed out");
        }
        if keep { dead_letter("expired", detail) } else { Settlement::Ack }
    }

    /// The settlement of a message whose type the subscription does not want. The broker's filter and this program's
    /// list differ then, as while a new version is rolled out.
    fn unwanted(&self, message: &UnsettledMessage, can_dead_letter: bool) -> Option<Settlement> {
        let settings = &self.entity.settings;
        let event_type = &*message.envelope.event_type;
        let (policy, how) = match settings.unwanted {
            UnwantedPolicy::Discard => ("discard", Some(Settlement::Ack)),
            UnwantedPolicy::DeadLetter if can_dead_letter => {
                let detail = format!("type {event_type}, wanted: {}", wanted_types(settings));
                ("dead-letter", Some(dead_letter(UNWANTED_TYPE, detail)))
            }
            UnwantedPolicy::DeadLetter | UnwantedPolicy::Handle => ("handle", None),
        };
        self.metrics.unwanted(policy);
        let (source, id) = (&self.entity.name, &*message.envelope.id);
        if self.consumers.warnings.is_first(source, event_type) {
            let wanted = wanted_types(settings);
            tracing::warn!(
                %source, id, event_type, wanted, unwanted = policy,
                "the broker delivered a type that this subscription does not want; more of this type are only counted"
            );
        }
        how
    }
}
