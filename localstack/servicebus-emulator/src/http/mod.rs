//! The HTTP server: management in Atom, the REST data plane, and the emulator's own control requests, all on one port,
//! plain or TLS.
//!
//! `server.rs` accepts connections and hands each request to `service.rs`. That checks the token and asks `path.rs`
//! what the path names: an entity or a rule goes to `atom/`, messages go to `rest/`, and `/$emulator/…` goes to
//! `control.rs`. `websocket_upgrade.rs` turns a connection into a WebSocket, which the AMQP server then serves.

pub(crate) mod atom;
mod body;
mod control;
pub(crate) mod iso8601;
#[cfg(test)]
mod nonsense_tests;
mod path;
mod response;
mod rest;
mod server;
mod service;
mod websocket_upgrade;
mod xml;

pub use server::serve;
