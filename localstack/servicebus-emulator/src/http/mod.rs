//! The HTTP side: management in Atom, the REST data plane, and switches for tests, all on one port, plain or TLS.

mod answer;
mod atom;
pub(crate) mod authorization_rules;
mod body;
mod broker_properties;
mod data;
mod description;
pub(crate) mod iso8601;
mod key_values;
mod management;
mod messages;
mod paced;
mod path;
mod rules;
mod server;
mod service;
mod settings;
mod switches;
mod upgrade;
mod xml;

#[cfg(test)]
mod nonsense_tests;

pub use server::serve;
