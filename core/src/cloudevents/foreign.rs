//! The view of a message that is no CloudEvent, or none that can be read.

use uuid::Uuid;

use super::{Wire, carried};
use crate::{FOREIGN, Parts};

pub(super) fn view(wire: Wire<'_>) -> Parts {
    let mut parts = Parts::bare(FOREIGN, wire.body);
    parts.id = match wire.id {
        Some(id) if !id.is_empty() => id.into(),
        _ => Uuid::now_v7().hyphenated().to_string().into(),
    };
    parts.source = wire.address.into();
    parts.time = wire.time;
    parts.content_type = wire.content_type.map(Into::into);
    parts.headers = wire.headers.into_iter().filter(|(name, _)| carried::own(name).is_none()).collect();
    parts
}
