//! Shared access signatures: made with a key, and checked against it.

use std::collections::HashMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac};
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;

use super::Rights;
use crate::refusal::{Condition, Refusal};

/// The prefix of every shared access signature.
pub(crate) const SAS: &str = "SharedAccessSignature ";

/// One key and its name. `Debug` omits the key.
#[derive(Clone)]
pub struct AccessKey {
    name: String,
    key: String,
    /// The rule's second key. Clients use it while the first one is replaced.
    secondary: Option<String>,
    /// The entity that the key is valid for; empty for the whole namespace.
    entity: String,
    rights: Rights,
}

impl AccessKey {
    /// A named key that is valid for the whole namespace and has all rights.
    pub fn new(name: impl Into<String>, key: impl Into<String>) -> Self {
        Self { name: name.into(), key: key.into(), secondary: None, entity: String::new(), rights: Rights::ALL }
    }

    /// The same key with these rights and no others.
    #[must_use]
    pub fn with_rights(mut self, rights: Rights) -> Self {
        self.rights = rights;
        self
    }

    /// The same rule with a second key.
    #[must_use]
    pub fn or_secondary(mut self, key: impl Into<String>) -> Self {
        self.secondary = Some(key.into());
        self
    }

    /// The same key, valid for one queue or topic and the addresses below it, like a key of the entity's own access
    /// policy.
    #[must_use]
    pub fn of_entity(mut self, entity: &str) -> Self {
        self.entity = path(entity);
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn secret(&self) -> &str {
        &self.key
    }

    pub(crate) fn rights(&self) -> Rights {
        self.rights
    }

    pub(crate) fn entity(&self) -> &str {
        &self.entity
    }

    /// True when both keys belong to the same rule.
    pub(crate) fn is_named_as(&self, other: &Self) -> bool {
        (&self.name, &self.entity) == (&other.name, &other.entity)
    }

    /// True when `secret` is the rule's first or second key.
    pub(crate) fn has_secret(&self, secret: &str) -> bool {
        self.key == secret || self.secondary.as_deref() == Some(secret)
    }

    /// Checks that a token was signed with this key, has not expired at `now_ms`, and covers `audience`, an address of
    /// any scheme and host. Returns when it expires, in milliseconds since the epoch.
    pub fn check(&self, token: &str, audience: &str, now_ms: i64) -> Result<i64, Refusal> {
        let fields = token.trim().strip_prefix(SAS).ok_or_else(|| invalid("it is no shared access signature"))?;
        let fields: HashMap<&str, &str> = fields.split('&').filter_map(|field| field.split_once('=')).collect();
        let field = |name: &str| fields.get(name).copied().ok_or_else(|| invalid(&format!("it has no field '{name}'")));
        let (resource, expiry) = (field("sr")?, field("se")?);
        let signature =
            STANDARD.decode(&*decoded(field("sig")?)?).map_err(|_| invalid("its signature is not base64"))?;
        if decoded(field("skn")?)? != self.name {
            return Err(invalid("its key name is not known"));
        }
        // The text that was signed is the encoded one, byte for byte.
        let signed = |key: &str| signer(key, resource, expiry).verify_slice(&signature).is_ok();
        if !signed(&self.key) && !self.secondary.as_deref().is_some_and(signed) {
            return Err(invalid("its signature is wrong"));
        }
        let expires: i64 = expiry.parse().map_err(|_| invalid("its expiry is no number"))?;
        let until_ms = expires.saturating_mul(1000);
        if until_ms <= now_ms {
            return Err(Refusal::expired_token(until_ms));
        }
        let (covered, asked) = (resource_path(&decoded(resource)?), path(audience));
        if !below(&asked, &covered) {
            return Err(invalid("it is for another resource"));
        }
        // The service looks for a key name in the policy of the entity that is asked for, so elsewhere the name is
        // unknown.
        if below(&asked, &self.entity) { Ok(until_ms) } else { Err(invalid("its key name is not known")) }
    }

    /// A token for a resource until `expires_s`, seconds since the epoch.
    pub fn token(&self, resource: &str, expires_s: i64) -> String {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let (resource, expiry) = (encode(resource), expires_s.to_string());
        let signature = STANDARD.encode(signer(&self.key, &resource, &expiry).finalize().into_bytes());
        format!("SharedAccessSignature sr={resource}&sig={}&se={expiry}&skn={}", encode(&signature), encode(&self.name))
    }
}

fn signer(key: &str, resource: &str, expiry: &str) -> Hmac<Sha256> {
    #[allow(clippy::unwrap_used, reason = "HMAC takes keys of any length")]
    let mut signer = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
    signer.update(format!("{resource}\n{expiry}").as_bytes());
    signer
}

/// The key name that a token carries.
pub(crate) fn key_name(token: &str) -> Option<String> {
    let fields = token.trim().strip_prefix(SAS)?;
    let name = fields.split('&').find_map(|field| field.strip_prefix("skn="))?;
    decoded(name).ok()
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").field("name", &self.name).field("key", &"***").finish()
    }
}

/// True when `address` is `other` or lies below it.
fn below(address: &str, other: &str) -> bool {
    address.strip_prefix(other).is_some_and(|rest| other.is_empty() || rest.is_empty() || rest.starts_with('/'))
}

fn decoded(text: &str) -> Result<String, Refusal> {
    Ok(percent_decode_str(text).decode_utf8().map_err(|_| invalid("it is not UTF-8"))?.into_owned())
}

/// The path of a token's resource. Some clients leave out the scheme, and a host alone is the namespace.
fn resource_path(resource: &str) -> String {
    match resource.split_once("://") {
        Some(_) => path(resource),
        None => resource.split_once('/').map_or_else(String::new, |(_, below)| path(below)),
    }
}

/// The part after scheme and host and before the query, in lower case.
fn path(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest.split_once('/').map_or("", |(_, path)| path));
    let path = rest.split_once('?').map_or(rest, |(path, _)| path);
    path.trim_matches('/').to_lowercase()
}

fn invalid(why: &str) -> Refusal {
    Refusal::new(Condition::Unauthorized, format!("InvalidSignature: The token is refused: {why}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;
    const LATER_S: i64 = 1_700_000_060;

    fn key() -> AccessKey {
        AccessKey::new("Root", "s3cret+/=")
    }

    fn why(token: &str, audience: &str) -> String {
        let refusal = key().check(token, audience, NOW_MS).expect_err(token);
        assert_eq!(refusal.condition, Condition::Unauthorized);
        assert!(!refusal.description.contains("s3cret"), "{refusal}");
        refusal.description
    }

    #[test]
    fn the_signature_is_the_services() {
        // Computed with Python's hmac over "sb%3A%2F%2Flocalhost%2Fq\n1700000060".
        let token = "SharedAccessSignature sr=sb%3A%2F%2Flocalhost%2Fq&sig=8w9uUI2YprQm1bRffXsKCtjxpiLWp4oE0G16L4dRfFA%3D&se=1700000060&skn=Root";
        assert_eq!(key().check(token, "amqps://127.0.0.1:5672/Q", NOW_MS), Ok(LATER_S * 1000));
    }

    #[test]
    fn a_token_of_ours_is_taken_for_what_it_covers() {
        let token = key().token("sb://localhost/q", LATER_S);
        for audience in ["sb://localhost/q", "amqps://other:5671/q/$management", "https://localhost/Q/messages", "q"] {
            assert_eq!(key().check(&token, audience, NOW_MS), Ok(LATER_S * 1000), "{audience}");
        }
        // Administration clients sign the whole URL of a request.
        let whole = key().token("https://localhost:5300/t/subscriptions/?api-version=2021-05&$top=5", LATER_S);
        assert_eq!(key().check(&whole, "/t/Subscriptions", NOW_MS), Ok(LATER_S * 1000));
        assert_eq!(
            key().check(&key().token("sb://localhost/", LATER_S), "sb://localhost/any/thing", NOW_MS),
            Ok(LATER_S * 1000)
        );
        assert!(why(&token, "sb://localhost/queue").contains("another resource"));
        assert!(why(&token, "sb://localhost/").contains("another resource"));
    }

    #[test]
    fn an_entitys_key_opens_that_entity() {
        let key = AccessKey::new("Own", "s3cret+/=").of_entity("Q");
        for audience in ["sb://localhost/q", "sb://localhost/Q/$management", "https://localhost/q/$DeadLetterQueue"] {
            assert!(key.check(&key.token(audience, LATER_S), audience, NOW_MS).is_ok(), "{audience}");
            assert!(key.check(&key.token("sb://localhost/", LATER_S), audience, NOW_MS).is_ok(), "{audience}");
        }
        for audience in ["sb://localhost/", "sb://localhost/queue", "sb://localhost/other"] {
            assert!(key.check(&key.token(audience, LATER_S), audience, NOW_MS).is_err(), "{audience}");
        }
    }

    #[test]
    fn a_resource_may_come_without_a_scheme() {
        for resource in ["ns.servicebus.windows.net", "ns.servicebus.windows.net/", "localhost:5672/Q", "localhost/q/"]
        {
            let token = key().token(resource, LATER_S);
            assert_eq!(key().check(&token, "sb://localhost/q", NOW_MS), Ok(LATER_S * 1000), "{resource}");
        }
        assert!(why(&key().token("localhost/other", LATER_S), "sb://localhost/q").contains("another resource"));
    }

    #[test]
    fn either_key_of_a_rule_signs() {
        let rule = key().or_secondary("second");
        let token = AccessKey::new("Root", "second").token("sb://localhost/q", LATER_S);
        assert!(rule.check(&token, "sb://localhost/q", NOW_MS).is_ok());
        assert!(rule.check(&key().token("sb://localhost/q", LATER_S), "sb://localhost/q", NOW_MS).is_ok());
        assert!(key().check(&token, "sb://localhost/q", NOW_MS).is_err());
        assert_eq!(key_name(&token).as_deref(), Some("Root"));
    }

    #[test]
    fn each_defect_is_named() {
        let good = key().token("sb://localhost/q", LATER_S);
        assert!(why("", "q").contains("no shared access signature"));
        assert!(why("SharedAccessSignature sr=q&se=1&skn=Root", "q").contains("'sig'"));
        assert!(why(&good.replace("skn=Root", "skn=Other"), "q").contains("key name"));
        assert!(why(&good.replace("se=1700000060", "se=1800000060"), "q").contains("signature is wrong"));
        assert!(
            why(&AccessKey::new("Root", "other").token("sb://localhost/q", LATER_S), "q")
                .contains("signature is wrong")
        );
        assert_eq!(
            why(&key().token("sb://localhost/q", NOW_MS / 1000), "q"),
            "ExpiredToken: The token is expired. Expiration time: '2023-11-14 22:13:20Z'."
        );
        assert!(why(&good.replace("sig=", "sig=%FF"), "q").contains("UTF-8"));
        assert!(why(&good.replace("sig=", "sig=!"), "q").contains("base64"));
    }

    #[test]
    fn the_key_is_not_shown() {
        assert!(!format!("{:?}", key()).contains("s3cret"));
    }
}
