//! The rules by which a letter is not moved: no consumer would be handed it, or the broker would not take it.

use crate::{
    Bus, Envelope, Error, ErrorKind, Result, Source,
    topology::{Entity, UnwantedPolicy, type_filter::any_matches},
};

use super::{RedriveGuard, RedriveLetter, RedriveOptions};

// The causes, as RedriveReport::refused tells them.
pub(super) const EXPIRED: &str = "expired";
pub(super) const UNWANTED: &str = "unwanted-type";
pub(super) const UNREADABLE: &str = "unreadable";
pub(super) const TOO_LARGE: &str = "too-large";

/// The rules for one source.
pub(super) struct RefusalRules {
    live: Entity<Source>,
    expired: RedriveGuard,
    unwanted: RedriveGuard,
}

impl RefusalRules {
    pub(super) fn new(live: Entity<Source>, options: &RedriveOptions) -> Self {
        Self { live, expired: options.expired, unwanted: options.unwanted }
    }

    /// The cause for which this letter is not moved; `None` if it may be.
    pub(super) fn refusal_of(&self, bus: &Bus, letter: &RedriveLetter) -> Option<&'static str> {
        if letter.malformed().is_some() {
            return Some(UNREADABLE);
        }
        self.refusal_of_message(bus, letter.envelope())
    }

    fn refusal_of_message(&self, bus: &Bus, message: &Envelope) -> Option<&'static str> {
        let settings = &self.live.settings;
        if self.expired == RedriveGuard::Refuse && message.expires_at.is_some_and(|at| at <= bus.now()) {
            return Some(EXPIRED);
        }
        let judged = self.unwanted == RedriveGuard::Refuse
            && settings.unwanted != UnwantedPolicy::Handle
            && &*message.event_type != Envelope::FOREIGN_TYPE;
        (judged && !any_matches(&settings.types, &message.event_type)).then_some(UNWANTED)
    }

    /// Completes the message that goes back in the letter's place: its source and its causation id. Refuses one that
    /// could not be published.
    pub(super) fn replacement(
        &self,
        bus: &Bus,
        letter: &RedriveLetter,
        message: Envelope,
    ) -> Result<Envelope, ReplacementRefusal> {
        if let Some(cause) = self.refusal_of_message(bus, &message) {
            return Err(ReplacementRefusal::Cause(cause));
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
            return Err(ReplacementRefusal::Invalid(Error::invalid(text)));
        }
        message.check().map_err(ReplacementRefusal::Invalid)?;
        Ok(message)
    }
}

/// Why a message does not go back in a letter's place.
pub(super) enum ReplacementRefusal {
    /// A rule refuses it, for this cause.
    Cause(&'static str),
    /// It could be published nowhere.
    Invalid(Error),
}

/// The cause that an error of the move itself stands for, where the letter is to blame.
pub(super) fn refusal_cause(e: &Error) -> Option<&'static str> {
    match e.kind() {
        ErrorKind::PayloadTooLarge => Some(TOO_LARGE),
        ErrorKind::Malformed => Some(UNREADABLE),
        _ => None,
    }
}

/// Whether the broker is to blame for the failure, so that the next letter would fail too.
pub(super) fn is_broker_failure(e: &Error) -> bool {
    use ErrorKind::{Closed, NotFound, PermissionDenied, Unauthenticated};
    e.is_transient() || matches!(e.kind(), NotFound | PermissionDenied | Unauthenticated | Closed)
}
