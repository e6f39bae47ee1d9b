//! What would go back in vain, or not at all.

use crate::{
    bus::Bus,
    error::{Error, ErrorKind, Result},
    message::Envelope,
    topology::{Entity, Source, UnwantedPolicy, type_filter::any_matches},
};

use super::{RedriveGuard, RedriveLetter, RedriveOptions};

pub(super) const EXPIRED: &str = "expired";
pub(super) const UNWANTED: &str = "unwanted-type";
pub(super) const UNREADABLE: &str = "unreadable";
pub(super) const TOO_LARGE: &str = "too-large";

/// Judges what is about to be moved.
pub(super) struct Guards {
    live: Entity<Source>,
    expired: RedriveGuard,
    unwanted: RedriveGuard,
}

impl Guards {
    pub(super) fn new(live: Entity<Source>, how: &RedriveOptions) -> Self {
        Self { live, expired: how.expired, unwanted: how.unwanted }
    }

    /// Why this letter stays, if so.
    pub(super) fn refuses(&self, bus: &Bus, letter: &RedriveLetter) -> Option<&'static str> {
        if letter.malformed().is_some() {
            return Some(UNREADABLE);
        }
        self.refuses_message(bus, letter.envelope())
    }

    fn refuses_message(&self, bus: &Bus, message: &Envelope) -> Option<&'static str> {
        let settings = &self.live.settings;
        if self.expired == RedriveGuard::Refuse && message.expires_at.is_some_and(|at| at <= bus.now()) {
            return Some(EXPIRED);
        }
        let judged = self.unwanted == RedriveGuard::Refuse
            && settings.unwanted != UnwantedPolicy::Handle
            && &*message.event_type != Envelope::FOREIGN_TYPE;
        (judged && !any_matches(&settings.types, &message.event_type)).then_some(UNWANTED)
    }

    /// What goes back in the letter's place, complete; or why not.
    pub(super) fn replacement(
        &self,
        bus: &Bus,
        letter: &RedriveLetter,
        message: Envelope,
    ) -> Result<Envelope, Refused> {
        if let Some(cause) = self.refuses_message(bus, &message) {
            return Err(Refused::For(cause));
        }
        let old = letter.envelope();
        let message = message.edit(|m| {
            if m.source.is_empty() {
                m.source =
                    if old.source.is_empty() { bus.connection().event_source.clone() } else { old.source.clone() };
            }
            if m.id != old.id && m.causation_id.is_none() && !old.id.is_empty() {
                m.causation_id = Some(old.id.clone());
            }
        });
        if self.live.settings.ordered && message.key.is_none() {
            let text = "an ordered source needs a key on every message: set Envelope::key";
            return Err(Refused::With(Error::invalid(text)));
        }
        message.check().map_err(Refused::With)?;
        Ok(message)
    }
}

pub(super) enum Refused {
    For(&'static str),
    With(Error),
}

/// The cause of a refusal that only the move tells.
pub(super) fn told_by(e: &Error) -> Option<&'static str> {
    match e.kind() {
        ErrorKind::PayloadTooLarge => Some(TOO_LARGE),
        ErrorKind::Malformed => Some(UNREADABLE),
        _ => None,
    }
}

/// Whether the failure is the broker's and not the letter's.
pub(super) fn is_the_brokers(e: &Error) -> bool {
    matches!(
        e.kind(),
        ErrorKind::Unavailable
            | ErrorKind::Throttled
            | ErrorKind::Timeout
            | ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::Unauthenticated
            | ErrorKind::Closed
    )
}
