//! The view of a message that is no CloudEvent, or none that can be read.

use uuid::Uuid;

use super::{WireMessage, internal_headers, native};
use crate::message::{Envelope, EnvelopeFields};

pub(super) fn view(mut wire: WireMessage<'_>) -> EnvelopeFields {
    let mut parts = EnvelopeFields::bare(Envelope::FOREIGN_TYPE, std::mem::take(&mut wire.body));
    parts.id = match wire.id {
        Some(id) if !id.is_empty() => id.into(),
        _ => Uuid::now_v7().hyphenated().to_string().into(),
    };
    parts.source = wire.address.into();
    parts.time = wire.time;
    parts.content_type = wire.content_type.map(Into::into);
    let headers = std::mem::take(&mut wire.headers);
    parts.headers = headers.into_iter().filter(|(name, _)| internal_headers::own(name).is_none()).collect();
    native::fill(&mut parts, &wire);
    parts
}
