//! What every connection of one emulator shares.

use std::sync::Arc;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::faults::Faults;
use crate::jwt::JwtKey;
use crate::refusal::{Condition, Refusal};
use crate::sas::AccessKey;

/// What a server needs to serve; a clone is the same.
#[derive(Clone)]
pub struct Shared {
    /// Entities and messages.
    pub broker: Broker,
    /// The faults that were asked for.
    pub faults: Faults,
    /// What shared access signatures are checked with. Without this and [`Shared::jwt`] everybody may do everything.
    pub key: Option<Arc<AccessKey>>,
    /// What JSON web tokens are checked with. Whoever has one may do everything.
    pub jwt: Option<Arc<JwtKey>>,
}

/// What a client proves itself by.
#[derive(Clone, Copy, Debug)]
pub enum Token<'a> {
    /// A shared access signature.
    Sas(&'a str),
    /// A JSON web token.
    Jwt(&'a str),
}

impl Shared {
    /// The clock everything goes by.
    pub fn clock(&self) -> &Clock {
        self.broker.clock()
    }

    /// Whether anything is checked.
    pub fn is_guarded(&self) -> bool {
        self.key.is_some() || self.jwt.is_some()
    }

    /// Whether a token allows the use of an address of any scheme and host, and until when, in milliseconds.
    pub fn authorize(&self, token: Option<Token<'_>>, audience: &str) -> Result<i64, Refusal> {
        let now_ms = self.clock().now_ms();
        match (token, &self.key, &self.jwt) {
            (_, None, None) => Ok(i64::MAX),
            (Some(Token::Sas(token)), Some(key), _) => key.check(token, audience, now_ms),
            (Some(Token::Jwt(token)), _, Some(jwt)) => jwt.check(token, now_ms),
            (Some(_), ..) => {
                Err(Refusal::new(Condition::Unauthorized, "InvalidToken: Tokens of this type are refused."))
            }
            (None, ..) => Err(Refusal::new(Condition::Unauthorized, "MissingToken: There is no authorization token.")),
        }
    }
}
