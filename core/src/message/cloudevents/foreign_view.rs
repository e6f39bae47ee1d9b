//! The envelope of a message that is no CloudEvent, or of one that cannot be decoded.

use uuid::Uuid;

use super::{WireMessage, internal_headers, native_properties};
use crate::{Envelope, message::EnvelopeFields};

/// Makes the foreign view: the body as payload, the broker's id and time, and all native headers but those of polybus.
pub(super) fn view(mut wire: WireMessage<'_>) -> EnvelopeFields {
    let mut fields = EnvelopeFields::bare(Envelope::FOREIGN_TYPE, std::mem::take(&mut wire.body));
    (fields.id, fields.id_is_made_up) = match wire.id {
        Some(id) if !id.is_empty() => (id.into(), wire.id_is_made_up),
        _ => (Uuid::now_v7().hyphenated().to_string().into(), true),
    };
    fields.source = wire.address.into();
    fields.time = wire.time;
    fields.content_type = wire.content_type.map(Into::into);
    let headers = std::mem::take(&mut wire.headers);
    fields.headers = headers.into_iter().filter(|(name, _)| internal_headers::own(name).is_none()).collect();
    native_properties::fill(&mut fields, &wire);
    fields
}
