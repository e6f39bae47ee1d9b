//! JSON web tokens like those of Entra ID. A shared secret (HS256) takes the place of the directory's keys.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use serde::Deserialize;
use serde_json::json;
use sha2::Sha256;

use super::{AccessRight, Rights, TokenGrant};
use crate::refusal::{Condition, Refusal};

/// The audience of the tokens: the service, whatever the namespace.
const AUDIENCE: &str = "https://servicebus.azure.net";

/// The secret that tokens are signed with. `Debug` omits it.
#[derive(Clone)]
pub struct JwtKey(String);

#[derive(Deserialize)]
struct JwtHeader {
    alg: String,
}

#[derive(Deserialize)]
struct JwtClaims {
    aud: String,
    exp: i64,
    /// The roles, in place of role assignments in Azure. Without the claim everything is allowed.
    #[serde(default)]
    roles: Option<Vec<String>>,
}

impl JwtKey {
    /// A key from a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// A token for the service until `expires_s`, seconds since the epoch.
    pub fn token(&self, expires_s: i64) -> String {
        self.sign(&json!({ "aud": AUDIENCE, "exp": expires_s }))
    }

    /// The same with a `roles` claim, which may name `Azure Service Bus Data Owner`, `… Sender` and `… Receiver`.
    pub fn token_with_roles(&self, expires_s: i64, roles: &[&str]) -> String {
        self.sign(&json!({ "aud": AUDIENCE, "exp": expires_s, "roles": roles }))
    }

    fn sign(&self, claims: &serde_json::Value) -> String {
        let part = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "alg": "HS256", "typ": "JWT" })), part(claims));
        let signature = URL_SAFE_NO_PAD.encode(self.signer(&signed).finalize().into_bytes());
        format!("{signed}.{signature}")
    }

    /// Checks that a token was signed with this key, is for the service, and has not expired at `now_ms`. Returns its
    /// rights and its expiry.
    pub fn check(&self, token: &str, now_ms: i64) -> Result<TokenGrant, Refusal> {
        let (signed, signature) = token.trim().rsplit_once('.').ok_or_else(|| invalid("it is no JSON web token"))?;
        let (head, claims) = signed.split_once('.').ok_or_else(|| invalid("it is no JSON web token"))?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| invalid("its signature is not base64"))?;
        let head: JwtHeader = part(head)?;
        if head.alg != "HS256" {
            return Err(invalid("its algorithm is not HS256"));
        }
        if self.signer(signed).verify_slice(&signature).is_err() {
            return Err(invalid("its signature is wrong"));
        }
        let claims: JwtClaims = part(claims)?;
        if claims.aud.trim_end_matches('/') != AUDIENCE {
            return Err(invalid("it is for another service"));
        }
        let until_ms = claims.exp.saturating_mul(1000);
        if until_ms <= now_ms {
            return Err(Refusal::expired_token(until_ms));
        }
        let rights = claims.roles.map_or(Rights::ALL, |roles| roles.iter().filter_map(|role| right(role)).collect());
        Ok(TokenGrant { rights, until_ms })
    }

    fn signer(&self, signed: &str) -> Hmac<Sha256> {
        #[allow(clippy::unwrap_used, reason = "HMAC takes keys of any length")]
        let mut signer = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).unwrap();
        signer.update(signed.as_bytes());
        signer
    }
}

impl fmt::Debug for JwtKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JwtKey(***)")
    }
}

/// The right that a role gives: <https://learn.microsoft.com/azure/service-bus-messaging/authenticate-application>.
fn right(role: &str) -> Option<AccessRight> {
    match role {
        "Azure Service Bus Data Owner" => Some(AccessRight::Manage),
        "Azure Service Bus Data Sender" => Some(AccessRight::Send),
        "Azure Service Bus Data Receiver" => Some(AccessRight::Listen),
        _ => None,
    }
}

fn part<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid("a part of it is not base64"))?;
    serde_json::from_slice(&bytes).map_err(|_| invalid("a part of it is not what it should be"))
}

fn invalid(why: &str) -> Refusal {
    Refusal::new(Condition::Unauthorized, format!("InvalidToken: The token is refused: {why}."))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;
    const LATER_S: i64 = 1_700_000_060;

    fn why(token: &str) -> String {
        let refusal = JwtKey::new("s3cret").check(token, NOW_MS).expect_err(token);
        assert_eq!(refusal.condition, Condition::Unauthorized);
        assert!(!refusal.description.contains("s3cret"), "{refusal}");
        refusal.description
    }

    #[test]
    fn a_token_of_another_implementation_is_taken_until_it_ends() {
        // Made with Python's hmac and base64.
        let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiJodHRwczovL3NlcnZpY2VidXMuYXp1cmUubmV0LyIsImV4cCI6MTcwMDAwMDA2MH0.LU38JNm5nmUmA5ltniW5g2q2JCdjarUDlDj2DWH-J4A";
        let all = TokenGrant { rights: Rights::ALL, until_ms: LATER_S * 1000 };
        assert_eq!(JwtKey::new("s3cret").check(token, NOW_MS), Ok(all));
        assert_eq!(JwtKey::new("s3cret").check(&JwtKey::new("s3cret").token(LATER_S), NOW_MS), Ok(all));
    }

    #[test]
    fn roles_are_rights() {
        let rights = |roles: &[&str]| {
            let key = JwtKey::new("s3cret");
            key.check(&key.token_with_roles(LATER_S, roles), NOW_MS).expect("a grant").rights
        };
        assert_eq!(rights(&["Azure Service Bus Data Sender"]), Rights::NONE.with(AccessRight::Send));
        assert_eq!(rights(&["Azure Service Bus Data Receiver", "Reader"]), Rights::NONE.with(AccessRight::Listen));
        assert_eq!(rights(&["Azure Service Bus Data Owner"]), Rights::ALL);
        assert_eq!(rights(&[]), Rights::NONE);
    }

    #[test]
    fn each_defect_is_named() {
        let key = JwtKey::new("s3cret");
        let good = key.token(LATER_S);
        assert!(why("").contains("no JSON web token"));
        assert!(why("a.b").contains("no JSON web token"));
        assert!(why("SharedAccessSignature sr=q&sig=x&se=1&skn=Root").contains("no JSON web token"));
        assert!(why(&JwtKey::new("other").token(LATER_S)).contains("signature is wrong"));
        assert!(why(&format!("{good}A")).contains("signature"));
        assert_eq!(
            why(&key.token(NOW_MS / 1000)),
            "ExpiredToken: The token is expired. Expiration time: '2023-11-14 22:13:20Z'."
        );
        assert!(
            why(&key.sign(&json!({ "aud": "https://vault.azure.net", "exp": LATER_S }))).contains("another service")
        );
        assert!(why(&key.sign(&json!({ "aud": AUDIENCE }))).contains("not what it should be"));
        let none =
            format!("{}.{}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#), good.split('.').nth(1).expect("claims"));
        assert!(why(&none).contains("not HS256"));
        assert!(!format!("{key:?}").contains("s3cret"));
    }
}
