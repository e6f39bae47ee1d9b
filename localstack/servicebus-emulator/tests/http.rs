//! The HTTP side over real sockets, by a client that says exactly what a test wants said.

#[path = "http/client.rs"]
mod client;
#[path = "http/data.rs"]
mod data;
#[path = "http/limits.rs"]
mod limits;
#[path = "http/management.rs"]
mod management;
#[path = "http/switches.rs"]
mod switches;
#[path = "http/tokens.rs"]
mod tokens;
