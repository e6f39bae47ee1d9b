//! Where claims may lie, and how they are named.

use std::fmt;

use polybus_core::{
    Error, Result,
    time::{Date, Month},
};

use super::ClaimError;

/// The longest prefix in bytes, so that a name fits into any store and a message's attributes.
const MAX_PREFIX: usize = 200;

/// The length of a UUID with its hyphens.
const UUID: usize = 36;

/// The folder of an object store in which claims lie, as `<prefix>/<yyyy-mm-dd>/<uuid>`.
///
/// The date is the UTC day on which the message is due, so that age can be told from the name. A message must not make
/// its consumer read any other object, so a name of any other shape is outside.
///
/// ```
/// use polybus_patterns::claim::ClaimPrefix;
/// use polybus_core::time::{Date, Month};
///
/// let claims = ClaimPrefix::new("shop/claims")?;
/// let day = Date::from_calendar_date(2026, Month::May, 1).expect("a day");
/// let key = claims.key(day, "0197a1c2-7d3e-7000-8000-000000000001");
/// assert_eq!(key, "shop/claims/2026-05-01/0197a1c2-7d3e-7000-8000-000000000001");
/// assert_eq!(claims.day_of(&key).expect("inside"), day);
/// assert!(claims.day_of("shop/claims/../secrets").is_err());
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPrefix(Box<str>);

impl ClaimPrefix {
    /// A prefix of one or more segments, divided by `/`.
    ///
    /// # Errors
    /// `InvalidArgument`: it is empty, longer than 200 bytes, or a segment is empty, begins with a dot, or has other
    /// characters than `[A-Za-z0-9_.-]`.
    ///
    /// ```
    /// use polybus_patterns::claim::ClaimPrefix;
    ///
    /// assert!(ClaimPrefix::new("claims").is_ok());
    /// assert!(ClaimPrefix::new("/claims").is_err() && ClaimPrefix::new("a/../b").is_err());
    /// ```
    pub fn new(prefix: impl Into<Box<str>>) -> Result<Self> {
        let prefix = prefix.into();
        let legal = |segment: &str| {
            let of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            !segment.is_empty() && !segment.starts_with('.') && segment.bytes().all(of_name)
        };
        if prefix.len() > MAX_PREFIX || !prefix.split('/').all(legal) {
            let text = format!(
                "claims: the prefix {prefix:?}: use segments of A-Z a-z 0-9 _ . - divided by /, none empty, none that \
                 begins with a dot, {MAX_PREFIX} bytes at most"
            );
            return Err(Error::invalid(text));
        }
        Ok(Self(prefix))
    }

    /// The prefix, without a slash at either end.
    ///
    /// ```
    /// # use polybus_patterns::claim::ClaimPrefix;
    /// assert_eq!(ClaimPrefix::new("claims")?.as_str(), "claims");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The folder of a day.
    ///
    /// ```
    /// # use polybus_patterns::claim::ClaimPrefix;
    /// # use polybus_core::time::{Date, Month};
    /// let day = Date::from_calendar_date(2026, Month::May, 1).expect("a day");
    /// assert_eq!(ClaimPrefix::new("claims")?.folder(day), "claims/2026-05-01");
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn folder(&self, day: Date) -> String {
        format!("{}/{:04}-{:02}-{:02}", self.0, day.year(), u8::from(day.month()), day.day())
    }

    /// The name of a payload that is due on a day. `uuid` is in its hyphenated lower-case form.
    ///
    /// ```
    /// # use polybus_patterns::claim::ClaimPrefix;
    /// # use polybus_core::time::{Date, Month};
    /// let day = Date::from_calendar_date(2026, Month::May, 1).expect("a day");
    /// let key = ClaimPrefix::new("claims")?.key(day, "0197a1c2-7d3e-7000-8000-000000000001");
    /// assert!(key.starts_with("claims/2026-05-01/"));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn key(&self, day: Date, uuid: impl fmt::Display) -> String {
        format!("{}/{uuid}", self.folder(day))
    }

    /// The day of a name, if it is one of this prefix.
    ///
    /// # Errors
    /// [`Outside`](ClaimError::Outside) for a name of any other shape.
    ///
    /// ```
    /// # use polybus_patterns::claim::ClaimPrefix;
    /// let claims = ClaimPrefix::new("claims")?;
    /// assert!(claims.day_of("claims/2026-05-01/0197a1c2-7d3e-7000-8000-000000000001").is_ok());
    /// assert!(claims.day_of("claims/2026-05-01/passwd").is_err());
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn day_of(&self, key: &str) -> Result<Date, ClaimError> {
        let inside = key.strip_prefix(&*self.0).and_then(|rest| rest.strip_prefix('/'));
        let day = inside.and_then(|rest| rest.split_once('/')).filter(|(_, uuid)| is_uuid(uuid));
        day.and_then(|(day, _)| Self::day(day)).ok_or_else(|| ClaimError::outside(key))
    }

    /// The day that a folder is named after; `None` for any other name.
    ///
    /// ```
    /// # use polybus_patterns::claim::ClaimPrefix;
    /// assert!(ClaimPrefix::day("2026-05-01").is_some());
    /// assert!(ClaimPrefix::day("2026-05-32").is_none() && ClaimPrefix::day("old").is_none());
    /// ```
    pub fn day(name: &str) -> Option<Date> {
        let bytes = name.as_bytes();
        if bytes.len() != 10 || bytes[4] != b'-' || bytes[7] != b'-' {
            return None;
        }
        let number = |range: std::ops::Range<usize>| {
            let digits = name.get(range)?;
            digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u16>().ok()).flatten()
        };
        let month = Month::try_from(u8::try_from(number(5..7)?).ok()?).ok()?;
        Date::from_calendar_date(i32::from(number(0..4)?), month, u8::try_from(number(8..10)?).ok()?).ok()
    }
}

impl fmt::Display for ClaimPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_uuid(text: &str) -> bool {
    let hyphen = |i: usize| matches!(i, 8 | 13 | 18 | 23);
    let of_uuid = |(i, b): (usize, u8)| match hyphen(i) {
        true => b == b'-',
        false => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
    };
    text.len() == UUID && text.bytes().enumerate().all(of_uuid)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const UUID_TEXT: &str = "0197a1c2-7d3e-7000-8000-000000000001";

    #[test]
    fn names_of_any_other_shape_are_outside() {
        let prefix = ClaimPrefix::new("a/claims").unwrap();
        assert!(prefix.day_of(&format!("a/claims/2026-02-28/{UUID_TEXT}")).is_ok());
        for outside in [
            format!("claims/2026-02-28/{UUID_TEXT}"),
            format!("a/claims2/2026-02-28/{UUID_TEXT}"),
            format!("/a/claims/2026-02-28/{UUID_TEXT}"),
            format!("a/claims//2026-02-28/{UUID_TEXT}"),
            format!("a/claims/2026-02-28//{UUID_TEXT}"),
            format!("a/claims/2026-02-30/{UUID_TEXT}"),
            format!("a/claims/+026-02-28/{UUID_TEXT}"),
            format!("a/claims/2026-02-28/{UUID_TEXT}/x"),
            format!("a/claims/2026-02-28/{}", UUID_TEXT.to_uppercase()),
            format!("a/claims/2026-02-28/../2026-02-28/{UUID_TEXT}"),
            format!("a/claims/../../{UUID_TEXT}"),
            format!("a/claims/2026-02-28/{UUID_TEXT}\n"),
            format!("a/claims/é26-02-28/{UUID_TEXT}"),
            "a/claims/2026-02-28/..".into(),
            "a/claims".into(),
            String::new(),
        ] {
            assert!(matches!(prefix.day_of(&outside), Err(ClaimError::Outside { .. })), "{outside}");
        }
    }

    #[test]
    fn prefixes_that_could_leave_their_store_are_refused() {
        for wrong in ["", "/", "a/", "/a", "a//b", "..", "a/..", ".hidden", "a b", "a\\b", "ä", "a?b"] {
            assert!(ClaimPrefix::new(wrong).is_err(), "{wrong}");
        }
        assert!(ClaimPrefix::new("x".repeat(MAX_PREFIX)).is_ok());
        assert!(ClaimPrefix::new("x".repeat(MAX_PREFIX + 1)).is_err());
    }
}
