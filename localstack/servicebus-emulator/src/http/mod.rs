//! The HTTP side: management in Atom, the REST data plane, and switches for tests, all on one port, plain or TLS.

mod answer;
mod atom;
mod authorization_rules;
mod body;
mod description;
mod iso8601;
mod key_values;
mod management;
mod path;
mod rules;
mod server;
mod service;
mod settings;
mod xml;

pub use server::serve;
