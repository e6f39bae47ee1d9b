//! What consuming over both transports has in common.
//!
//! A consumer of either transport keeps its deliveries in [`unsettled`], from when core receives them until the broker
//! has settled them. [`in_place_hold`] holds messages that cannot be copied for a retry. [`consumers`] counts what all
//! consumers of a driver hold.

pub(crate) mod consumers;
pub(crate) mod in_place_hold;
pub(crate) mod unsettled;
