//! What both transports and the administration API need of a connection.

pub(crate) mod broker_clock;
pub(crate) mod http;
pub(crate) mod tls;
