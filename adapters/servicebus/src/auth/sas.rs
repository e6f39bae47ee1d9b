//! Shared access signatures: tokens that prove a key without showing it.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha2::Sha256;
use time::OffsetDateTime;

use crate::auth::credential::{AccessToken, Secret};

/// As every SDK writes it: unreserved characters stay.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// How long a token is good for that is made from a key.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// A token made from a key, for `resource`.
pub(crate) fn token(resource: &str, name: &str, key: &Secret, now: OffsetDateTime) -> AccessToken {
    let expires = now + TOKEN_LIFETIME;
    AccessToken { text: sign(resource, name, key, expires.unix_timestamp()), expires, bearer: false }
}

/// A token made elsewhere.
pub(crate) fn token_from_text(text: &Secret, now: OffsetDateTime) -> AccessToken {
    AccessToken { text: text.clone(), expires: expiry(text).unwrap_or(now + TOKEN_LIFETIME), bearer: false }
}

/// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-sas#generate-a-shared-access-signature-token>
fn sign(resource: &str, name: &str, key: &Secret, expires: i64) -> Secret {
    let resource = escape(&resource.to_lowercase());
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.reveal().as_bytes()) else {
        return Secret::new("");
    };
    mac.update(format!("{resource}\n{expires}").as_bytes());
    let signature = escape(&STANDARD.encode(mac.finalize().into_bytes()));
    Secret::new(format!("SharedAccessSignature sr={resource}&sig={signature}&se={expires}&skn={}", escape(name)))
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

fn field<'a>(token: &'a Secret, name: &str) -> Option<&'a str> {
    token.reveal().split(['&', ' ']).find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
}

/// When a token made elsewhere ends, as it says itself.
fn expiry(token: &Secret) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(field(token, "se")?.parse().ok()?).ok()
}

/// What a token made elsewhere is for, if it is not the namespace.
pub(crate) fn entity(token: &Secret) -> Option<String> {
    let resource = percent_decode_str(field(token, "sr")?).decode_utf8().ok()?;
    let (_, path) = resource.split_once("://")?.1.split_once('/')?;
    Some(path.trim_matches('/').to_owned()).filter(|path| !path.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use time::macros::datetime;

    use super::*;
    use crate::auth::credential::Credential;

    #[test]
    fn a_token_as_other_implementations_make_it() {
        let token = sign("sb://Shop.servicebus.windows.net/q", "Root", &Secret::new("key"), 1_700_000_000);
        // Made with Python: hmac.new(b"key", quote_plus(uri.lower()) + "\n" + expiry, sha256).
        let wanted = "SharedAccessSignature sr=sb%3A%2F%2Fshop.servicebus.windows.net%2Fq&sig=Z3NKF4fZjUR5PXN9IH6I%2FHi0unRYQQDjKK3zWH6xu94%3D&se=1700000000&skn=Root";
        assert_eq!(token.reveal(), wanted);
    }

    #[test]
    fn the_expiry_of_a_foreign_token_is_read() {
        let token = Secret::new("SharedAccessSignature sr=x&sig=y&se=1700000000&skn=z");
        assert_eq!(expiry(&token), Some(datetime!(2023-11-14 22:13:20 UTC)));
        assert_eq!(format!("{:?}", Credential::Token(token)), "Token(***)");
    }
}
