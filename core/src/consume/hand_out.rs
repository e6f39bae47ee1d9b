//! What is decided when a message is handed over, on every broker alike: who gets it, or what becomes of it instead.
//!
//! Nothing leaves a source here unseen: a message goes to the handler, to the dead letters, or past its expiry, and only the
//! last of these, and `unwanted = "discard"`, delete it.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    consume::{
        Delivery,
        consumer::Consumer,
        handled_counts::times,
        settle::rules::MAX_DELIVERIES,
        unsettled::{UnsettledDelivery, UnsettledMessage},
    },
    driver::Settlement,
    message::Envelope,
    topology::{EntitySettings, Source, UnwantedPolicy, type_filter::any_matches},
};

/// The reason of messages whose type the subscription does not want.
pub(crate) const UNWANTED_TYPE: &str = "unwanted-type";

/// So many types are warned of by name. A producer that makes up types without end must not fill the memory or the log.
const MOST_TOLD: usize = 256;

/// Which messages a bus has warned of already, by source and what is odd about them.
#[derive(Default)]
pub(crate) struct WarningLog(Mutex<BTreeSet<(String, Box<str>)>>);

impl WarningLog {
    /// Whether this is the first of its kind.
    fn is_new(&self, source: &Source, kind: &str) -> bool {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = (source.to_string(), kind.into());
        !told.contains(&entry) && told.len() < MOST_TOLD && told.insert(entry)
    }
}

fn dead_letter(reason: &str, detail: String) -> Settlement {
    Settlement::DeadLetter { reason: reason.into(), detail: detail.into() }
}

fn wanted(settings: &EntitySettings) -> String {
    settings.types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Consumer {
    /// Hands a message over. `None`: it was settled without any handler seeing it.
    pub(crate) fn admit(self: &Arc<Self>, parts: UnsettledMessage) -> Option<Delivery> {
        let held = UnsettledDelivery::new(self.clone(), parts);
        if !held.is_held() {
            self.metrics.lock_lost();
            tracing::debug!(source = %self.entity.name, "a buffered delivery is no longer held; the broker has it");
            return None;
        }
        match self.refused(held.parts()) {
            None => {
                self.metrics.received(1);
                Some(Delivery::new(held))
            }
            Some(how) => {
                self.settle_detached(held, how);
                None
            }
        }
    }

    /// What becomes of a message that no handler may see.
    fn refused(&self, parts: &UnsettledMessage) -> Option<Settlement> {
        if !self.is_live() {
            return None;
        }
        let settings = &self.entity.settings;
        let buries = self.connection.driver.capabilities().dead_letters;
        if let (Some(why), true) = (parts.malformed(), buries) {
            return Some(dead_letter("malformed", why.to_string()));
        }
        if parts.attempt > settings.max_deliveries && buries {
            let handled = times(self.consumers.handled.count(&self.entity.name, parts));
            let (before, allowed) = (parts.attempt - 1, settings.max_deliveries);
            let detail = format!("delivered {before} times, allowed {allowed}; handled {handled} by this process");
            return Some(dead_letter(MAX_DELIVERIES, detail));
        }
        if let Some(at) = parts.envelope.expires_at.filter(|at| *at <= self.connection.clock.now()) {
            return Some(self.expired(parts, buries, format!("expired at {at}")));
        }
        let event_type = &*parts.envelope.event_type;
        // A foreign message has no type to judge by. The broker chose to deliver it.
        if event_type == Envelope::FOREIGN_TYPE || any_matches(&settings.types, event_type) {
            return None;
        }
        self.unwanted(parts, buries)
    }

    fn expired(&self, parts: &UnsettledMessage, buries: bool, detail: String) -> Settlement {
        self.metrics.expired();
        let keep = self.entity.settings.dead_letter_expired && buries;
        let (source, id) = (&self.entity.name, &*parts.envelope.id);
        if self.consumers.told.is_new(source, "expired") {
            let then = if keep { "dead-letter" } else { "acknowledge" };
            tracing::info!(%source, id, %detail, then, "an expired message is not handed out; more of them are only counted");
        } else {
            tracing::debug!(%source, id, %detail, "an expired message was not handed out");
        }
        if keep { dead_letter("expired", detail) } else { Settlement::Ack }
    }

    /// The broker's filter and this program's list differ: one of them is older, as while a new version is rolled out.
    fn unwanted(&self, parts: &UnsettledMessage, buries: bool) -> Option<Settlement> {
        let settings = &self.entity.settings;
        let event_type = &*parts.envelope.event_type;
        let (policy, how) = match settings.unwanted {
            UnwantedPolicy::Discard => ("discard", Some(Settlement::Ack)),
            UnwantedPolicy::DeadLetter if buries => {
                let detail = format!("type {event_type}, wanted: {}", wanted(settings));
                ("dead-letter", Some(dead_letter(UNWANTED_TYPE, detail)))
            }
            UnwantedPolicy::DeadLetter | UnwantedPolicy::Handle => ("handle", None),
        };
        self.metrics.unwanted(policy);
        let (source, id) = (&self.entity.name, &*parts.envelope.id);
        if self.consumers.told.is_new(source, event_type) {
            let wanted = wanted(settings);
            tracing::warn!(
                %source, id, event_type, wanted, unwanted = policy,
                "the broker delivered a type that this subscription does not want; more of this type are only counted"
            );
        }
        how
    }
}
