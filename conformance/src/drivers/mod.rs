//! Drivers around a target's driver: they count its calls, refuse them for a while, or declare fewer capabilities.
//!
//! Each one forwards what it does not change. A scenario puts one around a bus with
//! [`BusSetup::wrap`](crate::BusSetup::wrap), a target around all its connections with
//! [`Target::wrap`](crate::Target::wrap).

pub(crate) mod counting;
pub(crate) mod flaky;
pub(crate) mod masked;
pub(crate) mod outage_switch;
