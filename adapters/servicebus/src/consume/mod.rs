//! What consuming over both transports has in common.

pub(crate) mod consumers;
pub(crate) mod in_place_hold;
