//! The search of a pattern on a wall clock that knows no zone: each time is there once. Zones come on top of it.

use std::cmp::Ordering;

use croner::{CivilDateTime, Cron, CronDateTime, Resolution, Weekday, errors::CronError};
use jiff::civil::DateTime;

/// A time on the wall.
#[derive(Clone, Copy, Debug)]
struct WallTime(DateTime);

impl CronDateTime for WallTime {
    fn to_civil(&self) -> CivilDateTime {
        let DateTimeParts { year, month, day, hour, minute, second } = parts(self.0);
        CivilDateTime::from_ymd_hms_opt(year, month, day, hour, minute, second).unwrap_or(CivilDateTime::new(
            croner::CivilDate::from_parts_unchecked(year, month, day),
            croner::CivilTime::MIDNIGHT,
        ))
    }

    fn civil_weekday(&self) -> Weekday {
        match self.0.date().weekday() {
            jiff::civil::Weekday::Monday => Weekday::Monday,
            jiff::civil::Weekday::Tuesday => Weekday::Tuesday,
            jiff::civil::Weekday::Wednesday => Weekday::Wednesday,
            jiff::civil::Weekday::Thursday => Weekday::Thursday,
            jiff::civil::Weekday::Friday => Weekday::Friday,
            jiff::civil::Weekday::Saturday => Weekday::Saturday,
            jiff::civil::Weekday::Sunday => Weekday::Sunday,
        }
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let narrow = |n: u32| i8::try_from(n).map_err(|_| CronError::InvalidDate);
        let year = i16::try_from(civil.year()).map_err(|_| CronError::InvalidDate)?;
        let (month, day) = (narrow(civil.month())?, narrow(civil.day())?);
        let (hour, minute, second) = (narrow(civil.hour())?, narrow(civil.minute())?, narrow(civil.second())?);
        let at = DateTime::new(year, month, day, hour, minute, second, 0).map_err(|_| CronError::InvalidDate)?;
        Ok(Resolution::Single(Self(at)))
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(jiff::SignedDuration::from_secs(seconds)).ok().map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.cmp(&other.0)
    }
}

struct DateTimeParts {
    year: i32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

fn parts(at: DateTime) -> DateTimeParts {
    DateTimeParts {
        year: i32::from(at.year()),
        month: at.month().unsigned_abs().into(),
        day: at.day().unsigned_abs().into(),
        hour: at.hour().unsigned_abs().into(),
        minute: at.minute().unsigned_abs().into(),
        second: at.second().unsigned_abs().into(),
    }
}

/// The first time of the pattern after this one, or at it; `None` if there is none.
pub(super) fn next(pattern: &Cron, from: DateTime, inclusive: bool) -> Option<DateTime> {
    pattern.find_next_occurrence(&WallTime(from), inclusive).ok().map(|found| found.0)
}
