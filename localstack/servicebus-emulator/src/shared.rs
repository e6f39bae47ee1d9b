//! What every connection of one emulator shares.

use std::sync::Arc;

use crate::broker::Broker;
use crate::clock::Clock;
use crate::faults::Faults;
use crate::refusal::{Condition, Refusal};
use crate::sas::AccessKey;

/// What a server needs to serve; a clone is the same.
#[derive(Clone)]
pub struct Shared {
    /// Entities and messages.
    pub broker: Broker,
    /// The faults that were asked for.
    pub faults: Faults,
    /// Checked where there is one; otherwise everybody may do everything.
    pub key: Option<Arc<AccessKey>>,
}

impl Shared {
    /// The clock everything goes by.
    pub fn clock(&self) -> &Clock {
        self.broker.clock()
    }

    /// Whether a token allows the use of an address of any scheme and host. Without a key everything does.
    pub fn authorize(&self, token: Option<&str>, audience: &str) -> Result<(), Refusal> {
        match (&self.key, token) {
            (None, _) => Ok(()),
            (Some(key), Some(token)) => key.check(token, audience, self.clock().now_ms()),
            (Some(_), None) => {
                Err(Refusal::new(Condition::Unauthorized, "MissingToken: There is no authorization token."))
            }
        }
    }
}
