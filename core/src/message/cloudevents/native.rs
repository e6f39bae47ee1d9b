//! Native properties that are no attributes and no headers, shown all the same.

use super::{WireMessage, packed_headers::NATIVE};
use crate::message::EnvelopeFields;

/// Puts into the event what the broker's own properties say where it says nothing itself.
pub(super) fn fill(parts: &mut EnvelopeFields, wire: &WireMessage<'_>) {
    if parts.correlation_id.is_none() {
        parts.correlation_id = wire.correlation_id.map(Into::into);
    }
    if parts.subject.is_none() {
        // polybus and others write an event's type there, for tools that show no attributes.
        parts.subject = wire.subject.filter(|subject| **subject != *parts.event_type).map(Into::into);
    }
    for (name, value) in &wire.native {
        let name = format!("{NATIVE}{name}");
        // What the broker says comes before a header of that name, which anybody can write.
        parts.headers.remove(&name);
        parts.headers.push(name, &**value);
    }
}
