//! Access control: the keys with their rights, shared access signatures, and JSON web tokens.
//!
//! A token comes in over AMQP (`$cbs`, SASL PLAIN) or in the `Authorization` header of HTTP.
//! [`crate::SharedState::authorize`] hands it to [`AccessKey::check`] or [`JwtKey::check`], and the result is a
//! [`TokenGrant`] or a refusal. Without any key everything is allowed.

mod access;
mod jwt;
pub(crate) mod sas;

pub(crate) use access::claim_missing;
pub use access::{AccessRight, AccessRule, KeySet, Rights, TokenGrant};
pub use jwt::JwtKey;
pub use sas::AccessKey;
