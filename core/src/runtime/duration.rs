//! Durations as text (`250ms`, `30s`, `5m`, `2h`, `1d`), and deadlines that may be far away.

use std::time::Duration;

use tokio::time::Instant;

/// The farthest deadline, 30 years away: longer than any program runs, and as far as tokio's timers go.
const FAR: Duration = Duration::from_secs(30 * 365 * 86_400);

/// The deadline `duration` after `now`. `Duration::MAX` stands for no limit, so the sum must not overflow.
pub(crate) fn after(now: Instant, duration: Duration) -> Instant {
    now + duration.min(FAR)
}

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Parses a whole number and a unit: `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// A text that says what is expected.
///
/// ```
/// use polybus_core::driver::kit::duration;
/// use std::time::Duration;
///
/// assert_eq!(duration::parse("5m"), Ok(Duration::from_secs(300)));
/// assert!(duration::parse("5 minutes").is_err());
/// ```
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("duration {text:?}: expected a whole number and a unit, such as 250ms, 30s, 5m, 2h or 1d");
    let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
    let (_, unit) = UNITS.iter().find(|(name, _)| *name == &text[digits..]).ok_or_else(wrong)?;
    number.checked_mul(*unit).map(Duration::from_millis).ok_or_else(wrong)
}

/// Writes a duration in the largest unit that loses nothing. Fractions of a millisecond are rounded up.
///
/// ```
/// use polybus_core::driver::kit::duration;
/// use std::time::Duration;
///
/// assert_eq!(duration::format(Duration::from_secs(90)), "90s");
/// assert_eq!(duration::format(Duration::from_secs(120)), "2m");
/// ```
pub fn format(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let (name, unit) = UNITS.iter().rev().find(|(_, unit)| millis >= *unit && millis % unit == 0).unwrap_or(&("ms", 1));
    format!("{}{name}", millis / unit)
}

/// Serde for an optional duration.
pub(crate) mod option {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        d.map(super::format).serialize(s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        text.map(|t| super::parse(&t).map_err(D::Error::custom)).transpose()
    }
}

/// Serde for an optional duration that may be `never`: [`Duration::MAX`].
#[cfg(feature = "config")]
pub(crate) mod or_never {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    const NEVER: &str = "never";

    pub(crate) fn serialize<S: Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        d.map(|d| if d == Duration::MAX { NEVER.into() } else { super::format(d) }).serialize(s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        match Option::<String>::deserialize(d)?.as_deref() {
            None => Ok(None),
            Some(NEVER) => Ok(Some(Duration::MAX)),
            Some(text) => super::parse(text).map(Some).map_err(|e| D::Error::custom(format!("{e}, or never"))),
        }
    }
}

/// Serde for an optional list of durations.
pub(crate) mod list {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    pub(crate) fn serialize<S: Serializer>(d: &Option<Vec<Duration>>, s: S) -> Result<S::Ok, S::Error> {
        d.as_ref().map(|all| all.iter().map(|d| super::format(*d)).collect::<Vec<_>>()).serialize(s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Vec<Duration>>, D::Error> {
        let texts = Option::<Vec<String>>::deserialize(d)?;
        texts.map(|all| all.iter().map(|t| super::parse(t).map_err(D::Error::custom)).collect()).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_refusals() {
        for text in ["0ms", "250ms", "30s", "5m", "2h", "1d", "90s"] {
            assert_eq!(format(parse(text).unwrap()), text);
        }
        for bad in ["", "s", "5", "5 s", "-1s", "1.5s", "5S", "99999999999999999999d"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
