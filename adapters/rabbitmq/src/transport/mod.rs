//! Connections: how they are made and made again, TLS, and what is kept from lapin.

pub(crate) mod connection;
pub(crate) mod quiet_log;
pub(crate) mod sanitizer;
pub(crate) mod tls;
