//! What would go back in vain, or not at all.

use crate::{
    Bus, Entity, Envelope, Error, FOREIGN, Kind, Result, Source, Unwanted, topology::type_filter::any_matches,
};

use super::{Guard, Letter, Sift};

pub(super) const EXPIRED: &str = "expired";
pub(super) const UNWANTED: &str = "unwanted-type";
pub(super) const UNREADABLE: &str = "unreadable";
pub(super) const TOO_LARGE: &str = "too-large";

/// Judges what is about to be moved.
pub(super) struct Guards {
    live: Entity<Source>,
    expired: Guard,
    unwanted: Guard,
}

impl Guards {
    pub(super) fn new(live: Entity<Source>, how: &Sift) -> Self {
        Self { live, expired: how.expired, unwanted: how.unwanted }
    }

    /// Why this letter stays, if so.
    pub(super) fn refuses(&self, bus: &Bus, letter: &Letter) -> Option<&'static str> {
        if letter.malformed().is_some() {
            return Some(UNREADABLE);
        }
        self.refuses_message(bus, letter.envelope())
    }

    fn refuses_message(&self, bus: &Bus, message: &Envelope) -> Option<&'static str> {
        let settings = &self.live.settings;
        if self.expired == Guard::Refuse && message.expires_at.is_some_and(|at| at <= bus.now()) {
            return Some(EXPIRED);
        }
        let judged =
            self.unwanted == Guard::Refuse && settings.unwanted != Unwanted::Handle && &*message.event_type != FOREIGN;
        (judged && !any_matches(&settings.types, &message.event_type)).then_some(UNWANTED)
    }

    /// What goes back in the letter's place, complete; or why not.
    pub(super) fn replacement(&self, bus: &Bus, letter: &Letter, message: Envelope) -> Result<Envelope, Refused> {
        if let Some(cause) = self.refuses_message(bus, &message) {
            return Err(Refused::For(cause));
        }
        let old = letter.envelope();
        let message = message.edit(|m| {
            if m.source.is_empty() {
                m.source = if old.source.is_empty() { bus.inner.source.clone() } else { old.source.clone() };
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
        Kind::PayloadTooLarge => Some(TOO_LARGE),
        Kind::Malformed => Some(UNREADABLE),
        _ => None,
    }
}

/// Whether the failure is the broker's and not the letter's.
pub(super) fn is_the_brokers(e: &Error) -> bool {
    matches!(
        e.kind(),
        Kind::Unavailable
            | Kind::Throttled
            | Kind::Timeout
            | Kind::NotFound
            | Kind::PermissionDenied
            | Kind::Unauthenticated
            | Kind::Closed
    )
}
