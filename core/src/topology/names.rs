//! Checks logical names, event types and keys, and fits names into a broker's limit.

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// Longest logical name of a queue, topic or subscription, in bytes.
pub const MAX_NAME: usize = 63;
/// Longest event type, in bytes.
pub const MAX_EVENT_TYPE: usize = 128;
/// Longest ordering key, in bytes.
pub const MAX_KEY: usize = 256;

/// Checks a logical name: `[a-z0-9][a-z0-9-]{0,62}`. `_` and `.` stay free to join the parts of brokers' names.
///
/// # Errors
/// `InvalidArgument` says what a name may be; `what` is the word before it, such as `queue`.
///
/// ```
/// use polybus_core::driver::kit::names::check_name;
///
/// assert!(check_name("queue", "payments-eu").is_ok());
/// assert!(check_name("queue", "Payments").is_err());
/// ```
pub fn check_name(what: &str, name: &str) -> Result<()> {
    let bytes = name.as_bytes();
    let legal = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    if (1..=MAX_NAME).contains(&bytes.len()) && bytes.iter().all(legal) && bytes[0] != b'-' {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{what} name {name:?}: use 1 to {MAX_NAME} of a-z, 0-9 and '-', starting with a letter or digit"
    )))
}

/// Checks an event type: 1 to 128 bytes of `[A-Za-z0-9_.-]`, no empty segment between dots.
///
/// # Errors
/// `InvalidArgument` says what an event type may be.
///
/// ```
/// use polybus_core::driver::kit::names::check_event_type;
///
/// assert!(check_event_type("order.placed").is_ok());
/// assert!(check_event_type("order..placed").is_err());
/// ```
pub fn check_event_type(event_type: &str) -> Result<()> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let ok = (1..=MAX_EVENT_TYPE).contains(&event_type.len())
        && event_type.bytes().all(legal)
        && event_type.split('.').all(|segment| !segment.is_empty());
    if ok {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "event type {event_type:?}: use 1 to {MAX_EVENT_TYPE} of A-Z, a-z, 0-9, '_', '.', '-', with no empty segment"
    )))
}

/// Checks an ordering key: 1 to 256 bytes of any UTF-8.
///
/// # Errors
/// `InvalidArgument` tells the length.
///
/// ```
/// use polybus_core::driver::kit::names::check_key;
///
/// assert!(check_key("order-7").is_ok() && check_key("").is_err());
/// ```
pub fn check_key(key: &str) -> Result<()> {
    if (1..=MAX_KEY).contains(&key.len()) {
        return Ok(());
    }
    Err(Error::invalid(format!("ordering key of {} bytes: use 1 to {MAX_KEY}", key.len())))
}

/// Fits a name into `limit` bytes. A name that is longer is cut, and ends in `_` and 10 hex digits of its SHA-256.
///
/// ```
/// use polybus_core::driver::kit::names::fit;
///
/// assert_eq!(fit("payments", 80), "payments");
/// assert_eq!(fit(&"x".repeat(100), 80).len(), 80);
/// ```
pub fn fit(name: &str, limit: usize) -> String {
    if name.len() <= limit {
        return name.to_owned();
    }
    let mut cut = limit.saturating_sub(11);
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}_{}", &name[..cut], &hex(&Sha256::digest(name))[..10])
}

/// The bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["a", "a-b", "0", &"x".repeat(63)] {
            check_name("queue", good).unwrap();
        }
        for bad in ["", "-a", "A", "a_b", "a.b", "é", &"x".repeat(64)] {
            assert!(check_name("queue", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn event_types() {
        for good in ["order.placed", "A_b-1.c", &"x".repeat(128)] {
            check_event_type(good).unwrap();
        }
        for bad in ["", ".", "a..b", ".a", "a.", "a b", "a*", &"x".repeat(129)] {
            assert!(check_event_type(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fit_keeps_short_names_and_tells_long_ones_apart() {
        assert_eq!(fit("abc", 80), "abc");
        let (a, b) = (fit(&format!("{}a", "x".repeat(90)), 80), fit(&format!("{}b", "x".repeat(90)), 80));
        assert_eq!(a.len(), 80);
        assert_ne!(a, b);
    }
}
