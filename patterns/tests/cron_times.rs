//! The times of schedules: against a table around the changes of the clock, and against walks minute by minute.
#![allow(clippy::unwrap_used)]

mod cron_table;

use cron_table::CASES;
use polybus_core::{
    ErrorKind,
    time::{OffsetDateTime, format_description::well_known::Rfc3339},
};
use polybus_patterns::cron::CronSpec;
use proptest::prelude::*;

const MINUTE: i64 = 60_000_000;

/// `2026-03-28T00:00Z` in microseconds.
fn micros(text: &str) -> i64 {
    let text = text.replace('Z', ":00Z");
    i64::try_from(OffsetDateTime::parse(&text, &Rfc3339).unwrap().unix_timestamp_nanos() / 1000).unwrap()
}

fn times(spec: &CronSpec, from: i64, until: i64) -> Vec<i64> {
    std::iter::successors(spec.next_after(from), |at| spec.next_after(*at)).take_while(|at| *at <= until).collect()
}

#[test]
fn schedules_fire_as_the_table_says_around_each_change_of_the_clock() {
    for case in CASES {
        let spec = CronSpec::parse(case.spec, case.zone).unwrap();
        let (from, until) = (micros(case.from), micros(case.until));
        let expected: Vec<i64> = case.fires.iter().map(|at| micros(at)).collect();
        let found = times(&spec, from, until);
        assert_eq!(found, expected, "{} in {} from {}", case.spec, case.zone, case.from);
        // From any moment in between it is the same.
        for at in (from..until).step_by(17 * MINUTE as usize) {
            let next = expected.iter().find(|expected| **expected > at);
            assert_eq!(spec.next_after(at).filter(|at| *at <= until), next.copied(), "{} in {}", case.spec, case.zone);
        }
    }
}

#[test]
fn a_zone_that_skipped_a_day_skips_none_of_its_times() {
    let spec = CronSpec::parse("30 2 * * *", "Pacific/Apia").unwrap();
    let found = times(&spec, micros("2011-12-28T12:30Z"), micros("2012-01-01T00:00Z"));
    // There was no 30 December: its time fires at the end of the gap.
    assert_eq!(found, ["2011-12-29T12:30Z", "2011-12-30T10:00Z", "2011-12-30T12:30Z", "2011-12-31T12:30Z"].map(micros));
}

#[test]
fn what_is_no_pattern_or_no_zone_is_refused() {
    for (spec, zone, what) in [
        ("", "UTC", "five fields"),
        ("* * * *", "UTC", "five fields"),
        ("* * * * * * *", "UTC", "five fields"),
        ("60 * * * *", "UTC", "cannot be read"),
        ("* 24 * * *", "UTC", "cannot be read"),
        ("hello * * * *", "UTC", "cannot be read"),
        ("@sometimes", "UTC", "cannot be read"),
        ("0 0 31 2 *", "UTC", "never"),
        ("0 0 30 2 *", "Europe/Berlin", "never"),
        ("0 0 * * *", "Europe/Berlim", "time zone"),
        ("0 0 * * *", "", "time zone"),
        ("0 0 * * *", "+01:00", "time zone"),
    ] {
        let began = std::time::Instant::now();
        let error = CronSpec::parse(spec, zone).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(what), "{spec} in {zone}: {error}");
        assert!(began.elapsed().as_secs() < 30, "{spec}");
    }
    let long = CronSpec::parse(&"1,".repeat(1000), "UTC").unwrap_err();
    assert!(long.to_string().len() < 5000);
}

#[test]
fn what_crons_have_is_there() {
    let next = |spec: &str| CronSpec::parse(spec, "UTC").unwrap().next_after(micros("2026-11-30T12:00Z")).unwrap();
    for (spec, at) in [
        ("@hourly", "2026-11-30T13:00Z"),
        ("@daily", "2026-12-01T00:00Z"),
        ("@monthly", "2026-12-01T00:00Z"),
        ("@yearly", "2027-01-01T00:00Z"),
        ("0 0 L * *", "2026-12-31T00:00Z"),
        ("0 9 * JAN MON", "2027-01-04T09:00Z"),
        ("0 9 * * FRI#2", "2026-12-11T09:00Z"),
        ("0 0 29 2 *", "2028-02-29T00:00Z"),
        ("0 0 13 * 5", "2026-12-04T00:00Z"),
        ("30 0 12 * * *", "2026-11-30T12:00Z"),
    ] {
        let expected = micros(at) + if spec == "30 0 12 * * *" { 30_000_000 } else { 0 };
        assert_eq!(next(spec), expected, "{spec}");
    }
    let every = CronSpec::parse("*/10 * * * * *", "UTC").unwrap();
    assert_eq!(every.next_after(5), Some(10_000_000));
    assert_eq!(every.next_after(9_999_999), Some(10_000_000));
}

/// A field of numbers, and how it is written.
fn field(low: u32, high: u32) -> impl Strategy<Value = (String, Vec<u32>)> {
    let single = (low..=high).prop_map(|n| (n.to_string(), vec![n]));
    let all = Just(("*".to_owned(), (low..=high).collect::<Vec<_>>()));
    let steps = (2..=7_u32).prop_map(move |n| {
        (format!("*/{n}"), (low..=high).filter(|value| (value - low).is_multiple_of(n)).collect::<Vec<_>>())
    });
    let list = proptest::collection::btree_set(low..=high, 1..4).prop_map(|set| {
        let text: Vec<String> = set.iter().map(u32::to_string).collect();
        (text.join(","), set.into_iter().collect())
    });
    prop_oneof![single, all, steps, list]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn none_is_skipped_and_none_is_made_up(minute in field(0, 59), hour in field(0, 23), from in 0_i64..2_000_000_000) {
        let text = format!("{} {} * * *", minute.0, hour.0);
        let spec = CronSpec::parse(&text, "UTC").unwrap();
        let from = from * 1_000_000;
        // Two days, minute by minute.
        let first = from.div_euclid(MINUTE) * MINUTE + MINUTE;
        let expected: Vec<i64> = (0..2880)
            .map(|n| first + n * MINUTE)
            .filter(|at| {
                let of_day = at.rem_euclid(86_400_000_000) / MINUTE;
                minute.1.contains(&((of_day % 60) as u32)) && hour.1.contains(&((of_day / 60) as u32))
            })
            .collect();
        let found = times(&spec, from, first + 2879 * MINUTE);
        prop_assert_eq!(found, expected, "{}", text);
    }

    #[test]
    fn times_rise_in_every_zone(minute in field(0, 59), hour in field(0, 23), zone in 0_usize..6, from in 0_i64..4_000_000_000) {
        let zones = [
            "Europe/Berlin", "America/New_York", "Africa/Cairo", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca",
        ];
        let spec = CronSpec::parse(&format!("{} {} * * *", minute.0, hour.0), zones[zone]).unwrap();
        let mut last = from * 1_000_000;
        for _ in 0..200 {
            let next = spec.next_after(last).unwrap();
            prop_assert!(next > last && next % 1_000_000 == 0);
            // Each day has a time at least, also one that was shortened.
            prop_assert!(next - last <= 50 * 3_600_000_000);
            last = next;
        }
    }
}
