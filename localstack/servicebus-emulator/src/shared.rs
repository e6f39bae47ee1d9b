//! What every connection of one emulator shares.

use std::sync::Arc;

use crate::access::{Grant, Keys};
use crate::broker::Broker;
use crate::clock::Clock;
use crate::cloud::Cloud;
use crate::faults::{Faults, Operation};
use crate::jwt::JwtKey;
use crate::refusal::{Condition, Refusal};
use crate::sas::{self, AccessKey, SAS};

/// What a server needs to serve; a clone is the same.
#[derive(Clone)]
pub struct Shared {
    /// Entities and messages.
    pub broker: Broker,
    /// The faults that were asked for.
    pub faults: Faults,
    /// What shared access signatures are checked with. Without any and [`Shared::jwt`] everybody may do everything.
    pub keys: Keys,
    /// What JSON web tokens are checked with.
    pub jwt: Option<Arc<JwtKey>>,
    /// What the service in the cloud does besides.
    pub cloud: Cloud,
}

impl Shared {
    /// A broker that anybody may use.
    pub fn new(broker: Broker) -> Self {
        Self { broker, faults: Faults::default(), keys: Keys::default(), jwt: None, cloud: Cloud::default() }
    }

    /// The clock everything goes by.
    pub fn clock(&self) -> &Clock {
        self.broker.clock()
    }

    /// Whether anything is checked.
    pub fn is_guarded(&self) -> bool {
        self.jwt.is_some() || !self.keys.is_empty()
    }

    /// Refuses an operation while the service is said to be too busy for it.
    pub(crate) fn check_busy(&self, operation: Operation) -> Result<(), Refusal> {
        self.faults.check_busy(operation, self.clock())
    }

    /// What a token grants at an address of any scheme and host. Which kind it is, its content tells: SDKs put shared access
    /// signatures as JSON web tokens, and some send those without a word in front.
    pub fn authorize(&self, token: Option<&str>, audience: &str) -> Result<Grant, Refusal> {
        if !self.is_guarded() {
            return Ok(Grant { rights: crate::access::Rights::ALL, until_ms: i64::MAX });
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

    /// The keys of that name at the namespace first, then those at the entity.
    fn check_signature(&self, token: &str, audience: &str, now_ms: i64) -> Result<Grant, Refusal> {
        let mut why = refused("InvalidSignature: The token is refused: its key name is not known.");
        let name = sas::key_name(token);
        let named = |key: &AccessKey| name.as_deref().is_none_or(|name| name == key.name());
        let own = self.broker.access_keys(audience);
        for key in self.keys.all().iter().chain(&own).filter(|key| named(key)) {
            match key.check(token, audience, now_ms) {
                Ok(until_ms) => return Ok(Grant { rights: key.rights(), until_ms }),
                Err(refusal) => why = refusal,
            }
        }
        Err(why)
    }
}

fn refused(description: &str) -> Refusal {
    Refusal::new(Condition::Unauthorized, description)
}
