//! Connections below both drivers.
//!
//! [`namespace`] keeps the configuration and the AMQP connection of a driver. [`http`] makes requests over HTTP, to the
//! administration API and for the transport `rest`; [`broker_clock`] reads the broker's time from their answers.
//! [`tls`] is used by all.

pub(crate) mod broker_clock;
pub(crate) mod http;
pub(crate) mod namespace;
pub(crate) mod tls;
