//! Durations and times in ISO 8601, as the service's schema writes them.

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, PrimitiveDateTime, UtcOffset, macros::format_description};

/// .NET's `TimeSpan.MaxValue`, which the service writes for "for ever".
const FOR_EVER: &str = "P10675199DT2H48M5.4775807S";
/// From here on a duration counts as for ever. It is the start of the last day, because clients round the value.
const FOR_EVER_MS: i64 = 10_675_199 * DAY_MS;

const SECOND_MS: i64 = 1000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;
const DAY_MS: i64 = 24 * HOUR_MS;

/// A duration in milliseconds; `None` is for ever.
pub(super) fn duration(ms: Option<i64>) -> String {
    let Some(ms) = ms.filter(|ms| *ms < FOR_EVER_MS) else { return FOR_EVER.to_owned() };
    let (days, hours) = (ms / DAY_MS, ms % DAY_MS / HOUR_MS);
    let (minutes, seconds, millis) = (ms % HOUR_MS / MINUTE_MS, ms % MINUTE_MS / SECOND_MS, ms % SECOND_MS);
    let mut text = String::from("P");
    if days > 0 {
        text += &format!("{days}D");
    }
    let mut clock = String::new();
    if hours > 0 {
        clock += &format!("{hours}H");
    }
    if minutes > 0 {
        clock += &format!("{minutes}M");
    }
    if millis > 0 {
        clock += &format!("{seconds}.{}S", format!("{millis:03}").trim_end_matches('0'));
    } else if seconds > 0 || (days == 0 && clock.is_empty()) {
        clock += &format!("{seconds}S");
    }
    if !clock.is_empty() {
        text.push('T');
        text += &clock;
    }
    text
}

/// Reads a duration. The outer `None` means that it is not a duration, the inner one for ever. A year counts 365 days
/// and a month 30.
pub(crate) fn parse_duration(text: &str) -> Option<Option<i64>> {
    let rest = text.trim().strip_prefix('P')?;
    let (date, clock) = match rest.split_once('T') {
        Some((date, clock)) if !clock.is_empty() => (date, clock),
        None if !rest.is_empty() => (rest, ""),
        _ => return None,
    };
    let date = parts(date, &[('Y', 365 * DAY_MS), ('M', 30 * DAY_MS), ('W', 7 * DAY_MS), ('D', DAY_MS)])?;
    let clock = parts(clock, &[('H', HOUR_MS), ('M', MINUTE_MS), ('S', SECOND_MS)])?;
    let ms = date.checked_add(clock)?;
    Some((ms < FOR_EVER_MS).then_some(ms))
}

/// Adds up numbers with their units, which must come in this order. Only seconds may have a fraction.
fn parts(mut text: &str, units: &[(char, i64)]) -> Option<i64> {
    let mut units = units.iter();
    let mut total = 0_i64;
    while !text.is_empty() {
        let at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, rest) = text.split_at(at);
        let unit = rest.chars().next()?;
        let (_, unit_ms) = units.find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: i64 = whole.parse().ok()?;
        total = total.checked_add(whole.checked_mul(*unit_ms)?)?;
        if number.contains('.') {
            if *unit_ms != SECOND_MS {
                return None;
            }
            let digits = !fraction.is_empty() && fraction.bytes().all(|byte| byte.is_ascii_digit());
            let fraction: f64 = digits.then(|| format!("0.{fraction}").parse().ok())??;
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                reason = "below one unit, in milliseconds"
            )]
            let fraction = (fraction * SECOND_MS as f64).round() as i64;
            total = total.checked_add(fraction)?;
        }
        text = &rest[unit.len_utf8()..];
    }
    Some(total)
}

/// Reads a duration as .NET writes it, `[d.]hh:mm:ss[.fffffff]`; the inner `None` is for ever.
pub(super) fn parse_time_span(text: &str) -> Option<Option<i64>> {
    let (before, minutes_and_seconds) = text.trim().split_once(':')?;
    let (minutes, seconds) = minutes_and_seconds.split_once(':')?;
    let (days, hours) = before.split_once('.').unwrap_or(("0", before));
    parse_duration(&format!("P{days}DT{hours}H{minutes}M{seconds}S"))
}

/// Writes a time in milliseconds since the epoch. 0 means never, for which the service writes .NET's first day.
pub(super) fn timestamp(ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok().filter(|_| ms != 0);
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_else(|| "0001-01-01T00:00:00Z".to_owned())
}

/// Reads a time. A time without an offset is UTC.
pub(super) fn parse_timestamp(text: &str) -> Option<i64> {
    let text = text.trim();
    let time = OffsetDateTime::parse(text, &Rfc3339).ok().or_else(|| {
        let plain = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second][optional [.[subsecond]]]");
        Some(PrimitiveDateTime::parse(text, plain).ok()?.assume_offset(UtcOffset::UTC))
    })?;
    i64::try_from(time.unix_timestamp_nanos().div_euclid(1_000_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_the_service_does() {
        let cases = [
            (0, "PT0S"),
            (60_000, "PT1M"),
            (30_500, "PT30.5S"),
            (600_000, "PT10M"),
            (DAY_MS, "P1D"),
            (14 * DAY_MS + 1, "P14DT0.001S"),
            (DAY_MS + HOUR_MS + MINUTE_MS + SECOND_MS, "P1DT1H1M1S"),
        ];
        for (ms, text) in cases {
            assert_eq!(duration(Some(ms)), text);
            assert_eq!(parse_duration(text), Some(Some(ms)), "{text}");
        }
        assert_eq!(duration(None), "P10675199DT2H48M5.4775807S");
    }

    #[test]
    fn for_ever_survives_the_rounding_of_clients() {
        for text in ["P10675199DT2H48M5.4775807S", "P10675199DT2H48M5.477581S", "P10675199DT2H48M5.47758S"] {
            assert_eq!(parse_duration(text), Some(None), "{text}");
        }
    }

    #[test]
    fn other_spellings_are_read() {
        assert_eq!(parse_duration("PT300S"), Some(Some(300_000)));
        assert_eq!(parse_duration("P2W"), Some(Some(14 * DAY_MS)));
        assert_eq!(parse_duration("P1M"), Some(Some(30 * DAY_MS)));
        assert_eq!(parse_duration("PT1.S"), None);
    }

    #[test]
    fn what_is_no_duration_is_not_read() {
        for text in [
            "",
            "P",
            "PT",
            "1M",
            "PT1",
            "PTS",
            "PT1X",
            "PT1S1M",
            "-PT1S",
            "PT-1S",
            "P99999999999999999999D",
            "P1DT",
            "PT.S",
            "PT1é",
        ] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }

    #[test]
    fn time_spans_are_read() {
        assert_eq!(parse_time_span("00:01:30"), Some(Some(90_000)));
        assert_eq!(parse_time_span("2.03:04:05.6780000"), Some(Some(2 * DAY_MS + 3 * HOUR_MS + 4 * MINUTE_MS + 5678)));
        assert_eq!(parse_time_span("10675199.02:48:05.4775807"), Some(None));
        for text in ["", "5", "1:2", "-00:00:01", "a:b:c", "1.2.3:4:5", "::"] {
            assert_eq!(parse_time_span(text), None, "{text}");
        }
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(timestamp(1_700_000_000_123), "2023-11-14T22:13:20.123Z");
        assert_eq!(timestamp(0), "0001-01-01T00:00:00Z");
        for text in ["2023-11-14T22:13:20.123Z", "2023-11-14T22:13:20.1230000", "2023-11-14T23:13:20.123+01:00"] {
            assert_eq!(parse_timestamp(text), Some(1_700_000_000_123), "{text}");
        }
        assert_eq!(parse_timestamp("yesterday"), None);
    }
}
