//! The three attributes of a message whose payload is elsewhere.

use std::fmt;

use bytes::Bytes;
use polybus_core::Envelope;

use super::{CLAIM_REF, CLAIM_SHA256, CLAIM_SIZE, ClaimError};

/// Where the payload of a message is, how large, and its SHA-256.
///
/// ```
/// use polybus_core::Envelope;
/// use polybus_patterns::claim::ClaimReference;
///
/// let report = Envelope::new("report.made", "a large report");
/// let name = "claims/2026-05-01/0197a1c2-7d3e-7000-8000-000000000001";
/// let reference = ClaimReference::new(name, 14, [7; 32]);
/// let message = reference.attach(report.clone());
/// assert!(message.data.is_empty() && ClaimReference::is_claim(&message));
///
/// assert_eq!(ClaimReference::of(&message).expect("readable"), Some(reference));
/// assert_eq!(ClaimReference::detach(message, "a large report"), report);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ClaimReference {
    name: Box<str>,
    size: u64,
    sha256: [u8; 32],
}

impl ClaimReference {
    /// A reference to a payload of so many bytes.
    ///
    /// ```
    /// # use polybus_patterns::claim::ClaimReference;
    /// let reference = ClaimReference::new("claims/2026-05-01/0197a1c2-7d3e-7000-8000-000000000001", 14, [7; 32]);
    /// assert_eq!(reference.size(), 14);
    /// ```
    pub fn new(name: impl Into<Box<str>>, size: u64, sha256: [u8; 32]) -> Self {
        Self { name: name.into(), size, sha256 }
    }

    /// The name of the payload in its store. It comes from a message: look at it with
    /// [`ClaimPrefix::day_of`](super::ClaimPrefix::day_of) before you read anything.
    ///
    /// ```
    /// # use polybus_patterns::claim::ClaimReference;
    /// assert_eq!(ClaimReference::new("claims/x", 14, [7; 32]).name(), "claims/x");
    /// ```
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size of the payload in bytes, as the message tells it.
    ///
    /// ```
    /// # use polybus_patterns::claim::ClaimReference;
    /// assert_eq!(ClaimReference::new("claims/x", 14, [7; 32]).size(), 14);
    /// ```
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The SHA-256 of the payload, as the message tells it.
    ///
    /// ```
    /// # use polybus_patterns::claim::ClaimReference;
    /// assert_eq!(ClaimReference::new("claims/x", 14, [7; 32]).sha256(), &[7; 32]);
    /// ```
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }

    /// Whether a message says that its payload is elsewhere.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// # use polybus_patterns::claim::ClaimReference;
    /// assert!(!ClaimReference::is_claim(&Envelope::new("report.made", "small")));
    /// ```
    pub fn is_claim(envelope: &Envelope) -> bool {
        envelope.extensions.get(CLAIM_REF).is_some()
    }

    /// The reference of a message; `None` if its payload is in it.
    ///
    /// # Errors
    /// [`Malformed`](ClaimError::Malformed): an attribute is missing or cannot be read, or there is a payload as well.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// # use polybus_patterns::claim::ClaimReference;
    /// assert_eq!(ClaimReference::of(&Envelope::new("report.made", "small")).expect("readable"), None);
    /// ```
    pub fn of(envelope: &Envelope) -> Result<Option<Self>, ClaimError> {
        let malformed = |problem| ClaimError::Malformed { problem };
        let Some(name) = envelope.extensions.get(CLAIM_REF) else { return Ok(None) };
        if !envelope.data.is_empty() {
            return Err(malformed("there is a payload beside claimref"));
        }
        let digits = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let size = envelope.extensions.get(CLAIM_SIZE).filter(digits).and_then(|text| text.parse().ok());
        let size = size.ok_or_else(|| malformed("claimsize is not a number of bytes"))?;
        let sha256 = envelope.extensions.get(CLAIM_SHA256).and_then(from_hex);
        let sha256 = sha256.ok_or_else(|| malformed("claimsha256 is not 64 lower-case hexadecimal digits"))?;
        Ok(Some(Self { name: name.into(), size, sha256 }))
    }

    /// The message with this reference in place of its payload. Everything else stays, the content type included.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// # use polybus_patterns::claim::ClaimReference;
    /// let message = ClaimReference::new("claims/x", 5, [7; 32]).attach(Envelope::new("report.made", "large"));
    /// assert_eq!(message.extensions.get("claimsize"), Some("5"));
    /// ```
    pub fn attach(&self, envelope: Envelope) -> Envelope {
        envelope.edit(|fields| {
            fields.data = Bytes::new();
            for name in [CLAIM_REF, CLAIM_SIZE, CLAIM_SHA256] {
                fields.extensions.remove(name);
            }
            fields.extensions.push(CLAIM_REF, &*self.name);
            fields.extensions.push(CLAIM_SIZE, self.size.to_string());
            fields.extensions.push(CLAIM_SHA256, to_hex(&self.sha256));
        })
    }

    /// The message with its payload in place of the reference, as it was before.
    ///
    /// ```
    /// # use polybus_core::Envelope;
    /// # use polybus_patterns::claim::ClaimReference;
    /// let message = ClaimReference::new("claims/x", 5, [7; 32]).attach(Envelope::new("report.made", "large"));
    /// assert!(!ClaimReference::is_claim(&ClaimReference::detach(message, "large")));
    /// ```
    pub fn detach(envelope: Envelope, data: impl Into<Bytes>) -> Envelope {
        envelope.edit(|fields| {
            fields.data = data.into();
            for name in [CLAIM_REF, CLAIM_SIZE, CLAIM_SHA256] {
                fields.extensions.remove(name);
            }
        })
    }
}

impl fmt::Debug for ClaimReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClaimReference").field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}

fn to_hex(bytes: &[u8; 32]) -> String {
    let digit = |n: u8| char::from(b"0123456789abcdef"[usize::from(n)]);
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = value(pair[0])? << 4 | value(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn claim() -> Envelope {
        ClaimReference::new("claims/x", 5, [0xab; 32]).attach(Envelope::new("a.b", "large"))
    }

    fn with(name: &'static str, value: Option<&'static str>) -> Envelope {
        claim().edit(|fields| {
            fields.extensions.remove(name);
            if let Some(value) = value {
                fields.extensions.push(name, value);
            }
        })
    }

    #[test]
    fn attributes_that_cannot_be_read_are_malformed() {
        let sixty_three = "a".repeat(63).leak();
        for (name, value) in [
            (CLAIM_SIZE, None),
            (CLAIM_SIZE, Some("")),
            (CLAIM_SIZE, Some("+5")),
            (CLAIM_SIZE, Some("-5")),
            (CLAIM_SIZE, Some("18446744073709551616")),
            (CLAIM_SHA256, None),
            (CLAIM_SHA256, Some(sixty_three)),
            (CLAIM_SHA256, Some("AB".repeat(32).leak())),
            (CLAIM_SHA256, Some("é".repeat(32).leak())),
        ] {
            let found = ClaimReference::of(&with(name, value));
            assert!(matches!(found, Err(ClaimError::Malformed { .. })), "{name} {value:?}");
        }
        let both = claim().edit(|fields| fields.data = "x".into());
        assert!(matches!(ClaimReference::of(&both), Err(ClaimError::Malformed { .. })));
        assert_eq!(
            ClaimReference::of(&with(CLAIM_SIZE, Some("18446744073709551615"))).unwrap().unwrap().size,
            u64::MAX
        );
    }

    #[test]
    fn what_was_attached_comes_off_again() {
        let before = Envelope::new("a.b", "large").header("tenant", "acme").key("k").content_type("text/plain");
        let reference = ClaimReference::new("claims/x", 5, std::array::from_fn(|i| i as u8));
        let message = reference.attach(before.clone());
        message.check().unwrap();
        assert_eq!(ClaimReference::of(&message).unwrap(), Some(reference));
        assert_eq!(ClaimReference::detach(message, "large"), before);
    }
}
