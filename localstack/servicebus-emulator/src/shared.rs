//! The state that all connections of one emulator share, and the check of a client's token against its keys.

use std::sync::Arc;

use crate::auth::sas::{self, SAS};
use crate::auth::{AccessKey, JwtKey, KeySet, TokenGrant};
use crate::broker::Broker;
use crate::clock::Clock;
use crate::cloud::CloudRules;
use crate::faults::{BusyOperation, Faults};
use crate::refusal::{Condition, Refusal};

/// The state that all connections share. A clone refers to the same state.
#[derive(Clone)]
pub struct SharedState {
    /// Entities and messages.
    pub broker: Broker,
    /// The faults that were asked for.
    pub faults: Faults,
    /// The keys that shared access signatures are checked with. Without any key and without [`SharedState::jwt`]
    /// nothing is checked.
    pub keys: KeySet,
    /// The key that JSON web tokens are checked with.
    pub jwt: Option<Arc<JwtKey>>,
    /// The rules of the cloud that are switched on.
    pub cloud: CloudRules,
}

impl SharedState {
    /// A broker that anybody may use.
    pub fn new(broker: Broker) -> Self {
        Self { broker, faults: Faults::default(), keys: KeySet::default(), jwt: None, cloud: CloudRules::default() }
    }

    /// The clock everything goes by.
    pub fn clock(&self) -> &Clock {
        self.broker.clock()
    }

    /// True when clients' tokens are checked.
    pub fn is_guarded(&self) -> bool {
        self.jwt.is_some() || !self.keys.is_empty()
    }

    /// Refuses an operation while the service is said to be too busy for it.
    pub(crate) fn check_busy(&self, operation: BusyOperation) -> Result<(), Refusal> {
        self.faults.check_busy(operation, self.clock())
    }

    /// Returns the rights that a token grants at an address of any scheme and host. The token's content decides of
    /// which kind it is, because SDKs label shared access signatures as JSON web tokens and some send JSON web tokens
    /// without `Bearer`.
    pub fn authorize(&self, token: Option<&str>, audience: &str) -> Result<TokenGrant, Refusal> {
        if !self.is_guarded() {
            return Ok(TokenGrant { rights: crate::auth::Rights::ALL, until_ms: i64::MAX });
        }
        let token = token.map(str::trim).filter(|token| !token.is_empty());
        let token = token.ok_or_else(|| refused("MissingToken: There is no authorization token."))?;
        let now_ms = self.clock().now_ms();
        if token.starts_with(SAS) {
            return self.check_signature(token, audience, now_ms);
        }
        match &self.jwt {
            Some(jwt) => jwt.check(token.strip_prefix("Bearer ").unwrap_or(token), now_ms),
            None => Err(refused("InvalidToken: The token is no shared access signature, and no other is taken here.")),
        }
    }

    /// Tries the namespace's keys of the token's key name first, then the entity's own.
    fn check_signature(&self, token: &str, audience: &str, now_ms: i64) -> Result<TokenGrant, Refusal> {
        let mut why = refused("InvalidSignature: The token is refused: its key name is not known.");
        let name = sas::key_name(token);
        let named = |key: &AccessKey| name.as_deref().is_none_or(|name| name == key.name());
        let own = self.broker.access_keys(audience);
        for key in self.keys.all().iter().chain(&own).filter(|key| named(key)) {
            match key.check(token, audience, now_ms) {
                Ok(until_ms) => return Ok(TokenGrant { rights: key.rights(), until_ms }),
                Err(refusal) => why = refusal,
            }
        }
        Err(why)
    }
}

fn refused(description: &str) -> Refusal {
    Refusal::new(Condition::Unauthorized, description)
}
