//! The view of a message that is no CloudEvent, or none that can be read.

use uuid::Uuid;

use super::{Wire, internal_headers, native};
use crate::{FOREIGN, Parts};

pub(super) fn view(mut wire: Wire<'_>) -> Parts {
    let mut parts = Parts::bare(FOREIGN, std::mem::take(&mut wire.body));
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
