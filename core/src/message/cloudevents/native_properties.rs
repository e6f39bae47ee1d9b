//! Shows the broker's native properties, which are neither attributes nor headers, in the envelope.

use super::{WireMessage, native_headers::NATIVE};
use crate::message::EnvelopeFields;

/// Fills fields that the event left unset from the native properties, and adds the other properties as `native.…`
/// headers.
pub(super) fn fill(fields: &mut EnvelopeFields, wire: &WireMessage<'_>) {
    // A request of polybus has its own id as the native correlation id, for programs that know no CloudEvents.
    let own = fields.extensions.get("replyto").is_some() && wire.correlation_id == Some(&*fields.id);
    if fields.correlation_id.is_none() && !own {
        fields.correlation_id = wire.correlation_id.map(Into::into);
    }
    // A session is no word of the sender's: on a broker that has none it would lead an answer elsewhere.
    fields.headers.remove("native.reply-to-session-id");
    if fields.subject.is_none() {
        // A native subject that repeats the event's type says nothing: polybus and others write it for tools that show
        // no attributes.
        fields.subject = wire.subject.filter(|subject| **subject != *fields.event_type).map(Into::into);
    }
    for (name, value) in &wire.native {
        // polybus writes where an answer goes natively as well, for programs that know no CloudEvents.
        if *name == "reply-to" && fields.extensions.get("replyto") == Some(value) {
            continue;
        }
        let name = format!("{NATIVE}{name}");
        // The broker's word replaces a header of that name, which any producer can write.
        fields.headers.remove(&name);
        fields.headers.push(name, &**value);
    }
}
