//! Application headers: an ordered map of text to text.

use std::fmt;

use crate::{
    Error, Result,
    message::cloudevents::{NATIVE, is_counter, starts},
};

/// Longest header name, in bytes.
pub const MAX_HEADER_KEY: usize = 64;
/// Most headers on one message.
pub const MAX_HEADERS: usize = 64;
/// Most bytes of all attributes and headers of one message together.
pub const MAX_METADATA: usize = 32 * 1024;

/// Prefixes that CloudEvents or polybus use themselves, compared ignoring case. Of the brokers' headers only exact
/// names are reserved, those in which they count: `x-delivery-note` is an application's own.
const RESERVED: [&str; 5] = ["cloudevents_", "ce-", "ce_", "polybus-", NATIVE];

/// Headers in the order in which they were added. Keys are unique ignoring case; values are any UTF-8.
///
/// ```
/// let headers = polybus_core::Headers::from_iter([("tenant", "acme"), ("region", "eu")]);
/// assert_eq!(headers.get("Tenant"), Some("acme"));
/// assert_eq!(headers.iter().next(), Some(("tenant", "acme")));
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Box<str>, Box<str>)>);

impl Headers {
    /// No headers.
    ///
    /// ```
    /// assert!(polybus_core::Headers::new().is_empty());
    /// ```
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The value of a key, which is compared ignoring case.
    ///
    /// ```
    /// let headers = polybus_core::Headers::from_iter([("Tenant", "acme")]);
    /// assert_eq!((headers.get("TENANT"), headers.get("region")), (Some("acme"), None));
    /// ```
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k.eq_ignore_ascii_case(key)).map(|(_, v)| &**v)
    }

    /// Adds a header at the end without any check. [`Headers::check`] runs at publish.
    ///
    /// ```
    /// let mut headers = polybus_core::Headers::new();
    /// headers.push("tenant", "acme");
    /// assert_eq!(headers.len(), 1);
    /// ```
    pub fn push(&mut self, key: impl Into<Box<str>>, value: impl Into<Box<str>>) {
        self.0.push((key.into(), value.into()));
    }

    /// Removes a key, which is compared ignoring case, and returns its value.
    ///
    /// ```
    /// let mut headers = polybus_core::Headers::from_iter([("Tenant", "acme")]);
    /// assert_eq!(headers.remove("tenant").as_deref(), Some("acme"));
    /// assert!(headers.is_empty());
    /// ```
    pub fn remove(&mut self, key: &str) -> Option<Box<str>> {
        let at = self.0.iter().position(|(k, _)| k.eq_ignore_ascii_case(key))?;
        Some(self.0.remove(at).1)
    }

    /// The keys and values in order.
    ///
    /// ```
    /// let headers = polybus_core::Headers::from_iter([("b", "1"), ("a", "2")]);
    /// assert_eq!(headers.iter().collect::<Vec<_>>(), [("b", "1"), ("a", "2")]);
    /// ```
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (&**k, &**v))
    }

    /// How many headers there are.
    ///
    /// ```
    /// assert_eq!(polybus_core::Headers::from_iter([("a", "1"), ("b", "2")]).len(), 2);
    /// ```
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    ///
    /// ```
    /// assert!(!polybus_core::Headers::from_iter([("a", "1")]).is_empty());
    /// ```
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of all keys and values.
    ///
    /// ```
    /// assert_eq!(polybus_core::Headers::from_iter([("tenant", "acme")]).size(), 10);
    /// ```
    pub fn size(&self) -> usize {
        self.0.iter().map(|(k, v)| k.len() + v.len()).sum()
    }

    /// Checks what may be published: see [`check_header_key`] for one key.
    ///
    /// # Errors
    /// `InvalidArgument` for more than 64 headers, for an illegal or reserved key, and for two keys that differ in case
    /// alone.
    ///
    /// ```
    /// let headers = polybus_core::Headers::from_iter([("Tenant", "acme"), ("tenant", "other")]);
    /// assert!(headers.check().is_err());
    /// ```
    pub fn check(&self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        if self.0.len() > MAX_HEADERS {
            return Err(Error::invalid(format!("{} headers: at most {MAX_HEADERS} are allowed", self.0.len())));
        }
        for (i, (key, _)) in self.0.iter().enumerate() {
            check_header_key(key)?;
            if let Some((other, _)) = self.0[..i].iter().find(|(k, _)| k.eq_ignore_ascii_case(key)) {
                return Err(Error::invalid(format!("header {key:?} collides with {other:?}: keys ignore case")));
            }
        }
        Ok(())
    }
}

/// Checks one header key.
///
/// It is 1 to 64 of `[A-Za-z0-9_.-]`. It has none of the prefixes `cloudevents_`, `ce-`, `ce_`, `polybus-` and
/// `native.`, and is no name in which a broker counts (`x-death`, `x-delivery-count` …). Case is ignored.
///
/// # Errors
/// `InvalidArgument` says what is wrong with the key.
///
/// ```
/// use polybus_core::message::headers::check_header_key;
///
/// assert!(check_header_key("x-request-id").is_ok());
/// assert!(check_header_key("polybus-hop").is_err());
/// ```
pub fn check_header_key(key: &str) -> Result<()> {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    if !(1..=MAX_HEADER_KEY).contains(&key.len()) || !key.bytes().all(legal) {
        return Err(Error::invalid(format!(
            "header key {key:?}: use 1 to {MAX_HEADER_KEY} of A-Z, a-z, 0-9, '_', '.', '-'"
        )));
    }
    if let Some(prefix) = RESERVED.iter().find(|prefix| starts(key, prefix)) {
        return Err(Error::invalid(format!("header key {key:?}: the prefix {prefix:?} is reserved")));
    }
    if is_counter(key) {
        return Err(Error::invalid(format!("header key {key:?} is reserved: brokers count in it")));
    }
    Ok(())
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(iter: I) -> Self {
        Self(iter.into_iter().map(|(k, v)| (k.into(), v.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        for good in ["a", "X-Request-Id", "a.b_c-1", "x-delivery-note", "x-opt-tenant", "AWS.trace", &"k".repeat(64)] {
            check_header_key(good).unwrap();
        }
        for bad in [
            "",
            "a b",
            "é",
            "a:b",
            &"k".repeat(65),
            "cloudEvents:id",
            "CloudEvents_id",
            "X-Death",
            "x-delivery-count",
            "POLYBUS-hop",
            "Native.to",
            "CE-x",
        ] {
            assert!(check_header_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn case_collisions_and_counts_are_refused() {
        assert!(Headers::from_iter([("A", "1"), ("a", "2")]).check().unwrap_err().to_string().contains("ignore case"));
        let many = |n: usize| (0..n).map(|i| (format!("k{i}"), "v")).collect::<Headers>();
        many(64).check().unwrap();
        assert!(many(65).check().is_err());
    }
}
