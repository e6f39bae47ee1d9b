//! Proving who the bus is: keys, tokens, Entra ID, and claims that are put on a connection.

pub(crate) mod cbs;
pub(crate) mod connection_string;
pub(crate) mod credential;
#[cfg(feature = "identity")]
pub(crate) mod identity;
pub(crate) mod sas;
