//! Signatures as Standard Webhooks says: <https://github.com/standard-webhooks/standard-webhooks>.

use base64::{
    Engine,
    engine::{GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use hmac::{Hmac, Mac};
use polybus_core::{Error, Result};
use sha2::Sha256;

/// The length of a secret in bytes, by the specification.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;

/// With padding or without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
);

/// A key that bodies are signed with. It is never shown.
pub(super) struct SigningSecret(Vec<u8>);

impl SigningSecret {
    /// Reads `whsec_` and base64, or base64 alone. The error shows nothing of it.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let key = LENIENT.decode(text.strip_prefix("whsec_").unwrap_or(text)).ok();
        let key = key.filter(|key| LENGTHS.contains(&key.len()));
        key.map(Self).ok_or_else(|| {
            Error::config(
                "a webhook's secret must be 24 to 64 bytes in base64, with or without whsec_ before it: make one by \
                 openssl rand -base64 32",
            )
        })
    }

    fn sign(&self, id: &str, timestamp: i64, body: &[u8]) -> String {
        // HMAC takes keys of any length.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.0) else { return String::new() };
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// The header `Webhook-Signature`: one signature for each secret, with spaces between.
pub(super) fn header(secrets: &[SigningSecret], id: &str, timestamp: i64, body: &[u8]) -> String {
    let signatures: Vec<String> = secrets.iter().map(|secret| secret.sign(id, timestamp, body)).collect();
    signatures.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference implementations.
    #[test]
    fn signs_as_the_reference_implementations_do() {
        let secret = SigningSecret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_shown() {
        let of = |bytes: usize| STANDARD.encode(vec![7; bytes]);
        for good in [of(24), of(64), format!("whsec_{}", of(25)), of(25).trim_end_matches('=').into(), of(24) + "\n"] {
            assert!(SigningSecret::parse(&good).is_ok(), "{good}");
        }
        for bad in [of(23), of(65), String::new(), "whsec_".into(), "hunter2 hunter2 hunter2 hunter2 hunter2".into()] {
            let Err(error) = SigningSecret::parse(&bad) else { panic!("{bad}") };
            assert!(bad.len() < 7 || !format!("{error:?}").contains(&bad));
        }
    }
}
