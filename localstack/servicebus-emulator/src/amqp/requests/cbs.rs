//! The `$cbs` node: clients put tokens there, and each token gives the connection a claim.

use super::RequestAnswer;
use crate::amqp::engine::ConnectionEngine;
use crate::auth::{AccessKey, AccessRight, Rights, TokenGrant, claim_missing};
use crate::codec::Value;
use crate::message::Message;
use crate::refusal::{Condition, Refusal};

/// The most claims of a connection. Above it the oldest are dropped.
const MAX_CLAIMS: usize = 10_000;

/// The audience that a token was put for, and the rights that it grants there.
#[derive(Debug)]
pub(crate) struct CbsClaim {
    path: String,
    rights: Rights,
    until_ms: i64,
}

impl CbsClaim {
    /// The claim of a login with a key. It lasts as long as the connection.
    pub(crate) fn of_login(key: &AccessKey) -> Self {
        Self { path: path(key.entity()), rights: key.rights(), until_ms: i64::MAX }
    }

    /// True when the claim covers a path now and grants this right or, with `None`, any right.
    fn opens(&self, path: &str, right: Option<AccessRight>, now: i64) -> bool {
        let granted = right.map_or(self.rights != Rights::NONE, |right| self.rights.allow(right));
        granted && self.until_ms > now && covers(&self.path, path)
    }
}

impl ConnectionEngine {
    pub(crate) fn cbs_request(&mut self, channel: u16, request: &Message) {
        let (code, description) = match self.put_token(request) {
            Ok(()) => (202, "Accepted".to_owned()),
            Err(refusal) => (i32::from(refusal.condition.status()), refusal.description),
        };
        let properties = vec![("status-code", Value::Int(code)), ("status-description", Value::String(description))];
        self.answer(channel, "$cbs", request, RequestAnswer { properties, body: Value::Null });
    }

    fn put_token(&mut self, request: &Message) -> Result<(), Refusal> {
        let property = |name: &str| request.application_property(name).and_then(Value::as_text);
        if property("operation") != Some("put-token") {
            return Err(Refusal::new(Condition::InvalidField, "The operation is not put-token."));
        }
        let audience =
            property("name").ok_or_else(|| Refusal::new(Condition::InvalidField, "The audience is missing."))?;
        let body = request.body_value().unwrap_or(Value::Null);
        let text = match &body {
            Value::Binary(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
            other => other.as_text().unwrap_or_default(),
        };
        let TokenGrant { rights, until_ms } = self.shared.authorize(Some(text), audience)?;
        let path = path(audience);
        let entity = path.strip_suffix("/$management").unwrap_or(&path);
        if !entity.is_empty() && !entity.starts_with('$') {
            self.check_exists(entity)?;
        }
        if !self.shared.is_guarded() {
            return Ok(());
        }
        self.claims.retain(|claim| claim.path != path);
        if self.claims.len() >= MAX_CLAIMS {
            self.claims.remove(0);
        }
        self.claims.push(CbsClaim { path, rights, until_ms });
        self.claims_changed = true;
        Ok(())
    }

    /// When the next claim expires or the next link has been idle for too long.
    pub(crate) fn next_expiry(&self) -> Option<i64> {
        self.claims.iter().map(|claim| claim.until_ms).chain(self.next_idle_link()).min()
    }

    /// Removes expired claims, and detaches the links that no other claim covers.
    pub(crate) fn expire_claims(&mut self) {
        self.end_claims_by(self.shared.clock().now_ms());
    }

    /// The same for all claims, expired or not.
    pub(crate) fn end_claims(&mut self) {
        self.end_claims_by(i64::MAX);
        self.claims_changed = true;
    }

    fn end_claims_by(&mut self, end: i64) {
        let now = self.shared.clock().now_ms();
        let held = self.claims.len();
        self.claims.retain(|claim| claim.until_ms > end);
        if self.claims.len() == held {
            return;
        }
        let error = Refusal::expired_token(now).into();
        for (channel, handle, address, right) in self.attached_links() {
            if !is_cbs(&address) && self.check_claim(&address, right).is_err() {
                self.detach(channel, handle, Some(&error));
            }
        }
    }

    /// Refuses an address for which the connection has no claim with this right or, with `None`, with any right.
    pub(crate) fn check_claim(&self, address: &str, right: Option<AccessRight>) -> Result<(), Refusal> {
        if !self.shared.is_guarded() {
            return Ok(());
        }
        let (path, now) = (path(address), self.shared.clock().now_ms());
        if self.login.iter().chain(&self.claims).any(|claim| claim.opens(&path, right, now)) {
            return Ok(());
        }
        Err(claim_missing(right.unwrap_or(AccessRight::Listen), address))
    }
}

/// True for the address of `$cbs`, which requires no claim.
pub(crate) fn is_cbs(address: &str) -> bool {
    let path = address.trim_end_matches('/');
    path.rsplit('/').next().is_some_and(|last| last.eq_ignore_ascii_case("$cbs"))
}

fn covers(claimed: &str, path: &str) -> bool {
    path.strip_prefix(claimed).is_some_and(|rest| claimed.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

/// The path of an address, without scheme and host, in lower case.
fn path(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
    rest.trim_matches('/').to_lowercase()
}
