//! The times of a pattern in a zone.

use croner::{
    Cron,
    parser::{CronParser, Seconds, Year},
};
use jiff::{
    SignedDuration, Timestamp,
    civil::DateTime,
    tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase},
};
use polybus_core::{Error, Result};

use super::wall_clock;

/// The longest pattern, in bytes.
const MAX_SPEC: usize = 256;

/// Changes of a zone's clock that a search passes at most. A rare pattern, such as 29 February on a Monday, is 28 years
/// away, and some zones change four times a year.
const MAX_CHANGES: usize = 400;

/// The time from which on a pattern must have times, to be one: 1 January 2026.
const FIRST: i64 = 1_767_225_600_000_000;

/// The times of a schedule: a pattern, in a time zone.
///
/// The pattern has five fields, or six with the seconds in front, or is `@hourly`, `@daily`, `@weekly`, `@monthly` or
/// `@yearly`:
///
/// | field | values | also |
/// |---|---|---|
/// | second | 0–59 | `*`, `,`, `-`, `/` |
/// | minute | 0–59 | `*`, `,`, `-`, `/` |
/// | hour | 0–23 | `*`, `,`, `-`, `/` |
/// | day of the month | 1–31 | `L` the last one, `15W` the working day next to the 15th |
/// | month | 1–12, `JAN`–`DEC` | |
/// | day of the week | 0–7 (0 and 7 are Sunday), `SUN`–`SAT` | `FRI#2` the second one of the month, `FRI#L` the last |
///
/// With both a day of the month and a day of the week, either will do, as in every cron. A schedule fires up to a second
/// or two late, so seconds are no clock.
///
/// What becomes of times that daylight saving skips or repeats is [in the chapter](super#daylight-saving).
///
/// ```
/// use polybus_patterns::cron::CronSpec;
///
/// let spec = CronSpec::parse("30 2 * * *", "Europe/Berlin")?;
/// // 2026-03-28 at 12:00 UTC; the night after it has no half past two.
/// let times = spec.upcoming(1_774_699_200_000_000, 2);
/// assert_eq!(times[0].local, "2026-03-29T03:00:00+02:00[Europe/Berlin]");
/// assert_eq!(times[1].local, "2026-03-30T02:30:00+02:00[Europe/Berlin]");
/// # Ok::<(), polybus_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct CronSpec {
    pattern: Cron,
    zone: TimeZone,
    /// Its times are fixed ones on the clock, not those of its hands.
    is_fixed: bool,
}

/// A time of a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CronTime {
    /// In microseconds since 1970.
    pub at: i64,
    /// In the zone of the schedule, by RFC 9557: `2026-03-29T03:00:00+02:00[Europe/Berlin]`.
    pub local: String,
}

impl CronSpec {
    /// Reads a pattern and the name of a zone.
    ///
    /// # Errors
    /// `InvalidArgument` for a pattern that is none, or that never has a time (31 February), and for a zone that is
    /// not known. The data of all zones is built in.
    ///
    /// ```
    /// use polybus_patterns::cron::CronSpec;
    ///
    /// CronSpec::parse("0 9 * * MON-FRI", "America/New_York")?;
    /// assert!(CronSpec::parse("61 * * * *", "UTC").is_err());
    /// assert!(CronSpec::parse("0 0 31 2 *", "UTC").unwrap_err().to_string().contains("never"));
    /// assert!(CronSpec::parse("0 9 * * *", "Europe/Berlim").is_err());
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn parse(spec: &str, zone: &str) -> Result<Self> {
        let wrong = |text: String| Err(Error::invalid(text).with_context("spec", spec.escape_debug()));
        let text = spec.trim();
        if text.len() > MAX_SPEC {
            return wrong(format!("a schedule's pattern of more than {MAX_SPEC} bytes"));
        }
        let fields = text.split_whitespace().count();
        if !text.starts_with('@') && !(5..=6).contains(&fields) {
            return wrong(format!(
                "a schedule's pattern has five fields (minute, hour, day of the month, month, day of the week), or six \
                 with the seconds in front, not {fields}"
            ));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let pattern = match parser.parse(text) {
            Ok(pattern) => pattern,
            Err(e) => return wrong(format!("a schedule's pattern that cannot be read: {e}")),
        };
        let zone = match zone {
            "UTC" | "Etc/UTC" => TimeZone::UTC,
            name => TimeZoneDatabase::bundled().get(name).map_err(|_| {
                Error::invalid("an unknown time zone: use the name of the IANA database, such as Europe/Berlin, or UTC")
                    .with_context("zone", name.escape_debug())
            })?,
        };
        let is_fixed = is_fixed(text);
        let spec = Self { pattern, zone, is_fixed };
        match spec.next_after(FIRST) {
            Some(_) => Ok(spec),
            None => wrong("a schedule's pattern that never has a time".to_owned()),
        }
    }

    /// The first time after this one, both in microseconds since 1970; `None` if none comes any more.
    ///
    /// ```
    /// # use polybus_patterns::cron::CronSpec;
    /// let daily = CronSpec::parse("@daily", "UTC")?;
    /// assert_eq!(daily.next_after(0), Some(86_400_000_000));
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn next_after(&self, micros: i64) -> Option<i64> {
        let after = Timestamp::from_microsecond(micros).ok()?;
        let next = if self.is_fixed { self.next_fixed(after) } else { self.next_of_hands(after) };
        next.map(Timestamp::as_microsecond)
    }

    /// The next times after this one, at most `n`.
    ///
    /// ```
    /// # use polybus_patterns::cron::CronSpec;
    /// let hourly = CronSpec::parse("0 * * * *", "UTC")?;
    /// assert_eq!(hourly.upcoming(0, 3).len(), 3);
    /// # Ok::<(), polybus_core::Error>(())
    /// ```
    pub fn upcoming(&self, after: i64, n: usize) -> Vec<CronTime> {
        let next = |at: &i64| self.next_after(*at);
        let times = std::iter::successors(self.next_after(after), next).take(n);
        times.map(|at| CronTime { at, local: self.local(at) }).collect()
    }

    fn local(&self, micros: i64) -> String {
        let at = Timestamp::from_microsecond(micros).unwrap_or_default();
        at.to_zoned_datetime(self.zone.clone()).to_string()
    }

    /// Each time on the wall is one instant: in a gap the end of the gap, and of two the first. So instants follow in
    /// the order of the times on the wall.
    fn next_fixed(&self, after: Timestamp) -> Option<Timestamp> {
        let mut wall = whole_second(self.zone.to_datetime(after));
        loop {
            wall = wall_clock::next(&self.pattern, wall, false)?;
            let at = self.instant(wall)?;
            if at > after {
                return Some(at);
            }
        }
    }

    fn instant(&self, wall: DateTime) -> Option<Timestamp> {
        let utc = |offset: jiff::tz::Offset| offset.to_timestamp(wall).ok();
        match self.zone.to_ambiguous_timestamp(wall).offset() {
            AmbiguousOffset::Unambiguous { offset } => utc(offset),
            AmbiguousOffset::Fold { before, .. } => utc(before),
            AmbiguousOffset::Gap { before, .. } => {
                // By the clock before the change, this is behind the change.
                let behind = utc(before)?;
                let change = self.zone.preceding(behind + SignedDuration::from_nanos(1)).next()?;
                Some(change.timestamp())
            }
        }
    }

    /// Between two changes of the zone's clock its hands go on evenly. So each stretch is searched by its own offset.
    fn next_of_hands(&self, after: Timestamp) -> Option<Timestamp> {
        let (mut from, mut inclusive) = (after, false);
        for _ in 0..MAX_CHANGES {
            let change = self.zone.following(from).next().map(|change| change.timestamp());
            let offset = self.zone.to_offset(from);
            let wall = offset.to_datetime(from);
            let found = wall_clock::next(&self.pattern, whole_second(wall), inclusive && wall == whole_second(wall));
            let found = found.and_then(|wall| offset.to_timestamp(wall).ok());
            match (found, change) {
                (Some(found), Some(change)) if found < change => return Some(found),
                (found, None) => return found,
                (_, Some(change)) => (from, inclusive) = (change, true),
            }
        }
        None
    }
}

fn whole_second(at: DateTime) -> DateTime {
    at.with().subsec_nanosecond(0).build().unwrap_or(at)
}

/// Whether seconds, minutes and hours are values, lists and ranges alone.
fn is_fixed(spec: &str) -> bool {
    if let Some(name) = spec.strip_prefix('@') {
        return !name.eq_ignore_ascii_case("hourly");
    }
    let fields: Vec<&str> = spec.split_whitespace().collect();
    let of_clock = if fields.len() == 6 { &fields[..3] } else { &fields[..fields.len().min(2)] };
    !of_clock.iter().any(|field| field.contains(['*', '/', '?']))
}
