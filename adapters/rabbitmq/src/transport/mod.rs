//! Connections to the broker: how they are made and made again, and what lapin reads and logs.
//!
//! All bytes from the broker pass [`tls`], where the URL asks for it, and then the [`sanitizer`], before lapin reads
//! them. [`connection`] keeps the connections of one driver. [`quiet_log`] keeps errors that are answers out of the
//! log.

pub(crate) mod connection;
pub(crate) mod quiet_log;
pub(crate) mod sanitizer;
pub(crate) mod tls;
