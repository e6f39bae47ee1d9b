//! Credentials: from a URL or an application to the broker.
//!
//! A [`connection_string`] or the URL gives a key or a token, an application gives an [`identity`]: each is a
//! [`credential`], which makes access tokens ([`sas`] from keys). [`cbs`] sends them over an AMQP connection and renews
//! them; over HTTP each request carries one.

pub(crate) mod cbs;
pub(crate) mod connection_string;
pub(crate) mod credential;
#[cfg(feature = "identity")]
pub(crate) mod identity;
pub(crate) mod sas;
