//! What one look at a schedule decides.

use super::CronSpec;
use crate::store::StoredSchedule;

/// What becomes of times that passed while no worker had the schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missed {
    /// One job for all of them, for the latest.
    #[default]
    RunOnce,
    /// A job for each of the last so many, at most 1,000, and none for those before.
    All(u32),
    /// None: a time fires only within a minute.
    Skip,
}

/// What becomes of a time at which the last job of the schedule is not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overlap {
    /// It fires all the same: the jobs run side by side.
    #[default]
    Allow,
    /// It does not fire.
    Skip,
    /// Its job is written once the last one is finished, at most 100 of them.
    Queue,
}

/// How late a time may fire that is not missed, in microseconds.
const ON_TIME: i64 = 60_000_000;

/// How many due times are looked at. Of those before, only that there were some is known.
const MAX_DUE: usize = 1000;

/// How many times wait for the last job at most.
const MAX_PENDING: usize = 100;

/// What a look decides.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct TickDecision {
    /// The times whose jobs are to be written now.
    pub(super) fire: Vec<i64>,
    pub(super) next_at: Option<i64>,
    pub(super) last_at: Option<i64>,
    pub(super) pending: String,
    /// Times that do not fire because the last job is not finished.
    pub(super) skipped: u64,
    /// Times that do not fire because they are late.
    pub(super) missed: u64,
}

/// Times that wait, as the column holds them.
fn read_pending(pending: &str) -> Vec<i64> {
    if pending.is_empty() {
        return Vec::new();
    }
    serde_json::from_str(pending).unwrap_or_else(|_| {
        tracing::warn!(target: "polybus", "waiting times of a schedule that another version wrote cannot be read; they are gone");
        Vec::new()
    })
}

fn write_pending(times: &[i64]) -> String {
    if times.is_empty() { String::new() } else { serde_json::to_string(times).unwrap_or_default() }
}

/// The column with one more time; `None` where too many wait.
pub(super) fn with_pending(pending: &str, at: i64) -> Option<String> {
    let mut times = read_pending(pending);
    times.push(at);
    (times.len() <= MAX_PENDING).then(|| write_pending(&times))
}

/// The last times up to now, and behind this one: as many as are looked at, or all.
fn last_times(spec: &CronSpec, behind: i64, now: i64) -> Vec<i64> {
    let mut window = ON_TIME;
    loop {
        let from = now.saturating_sub(window).max(behind);
        let next = |at: &i64| spec.next_after(*at).filter(|at| *at <= now);
        let times: Vec<i64> = std::iter::successors(next(&from), next).collect();
        if times.len() >= MAX_DUE || from == behind {
            return times;
        }
        window = window.saturating_mul(2);
    }
}

/// Looks at a schedule at this time.
pub(super) fn tick(row: &StoredSchedule, now: i64, spec: &CronSpec, missed: Missed, overlap: Overlap) -> TickDecision {
    let mut due: Vec<i64> = Vec::new();
    let mut count: u64 = 0;
    let mut next_at = row.next_at;
    // The next time is never before the stored one, so a clock that was set back fires nothing again.
    while let Some(at) = next_at.filter(|at| *at <= now) {
        count += 1;
        due.push(at);
        if due.len() > MAX_DUE {
            due.remove(0);
        }
        next_at = spec.next_after(at);
        // After a long time the times in between are passed by: nobody wants a million jobs of last year.
        if count == MAX_DUE as u64 * 10 && next_at.is_some_and(|at| at <= now) {
            let last = last_times(spec, at, now);
            count += last.len() as u64;
            due.extend(last);
            due.drain(..due.len().saturating_sub(MAX_DUE));
            next_at = spec.next_after(now);
        }
    }
    let keep = match missed {
        Missed::RunOnce => 1,
        Missed::All(most) => usize::try_from(most).unwrap_or(usize::MAX),
        Missed::Skip => usize::from(due.last().is_some_and(|at| now - at <= ON_TIME)),
    };
    due.drain(..due.len().saturating_sub(keep));
    let mut decision = TickDecision { next_at, missed: count - due.len() as u64, ..TickDecision::default() };
    let mut waiting = read_pending(&row.pending);
    match overlap {
        // What was asked for by hand fires as well.
        Overlap::Allow => decision.fire = std::mem::take(&mut waiting).into_iter().chain(due).collect(),
        Overlap::Skip => {
            let by_hand = waiting.len();
            waiting.extend(&due);
            if !row.is_unfinished && !waiting.is_empty() {
                decision.fire.push(waiting.remove(0));
            }
            // Of those by hand, the others still wait.
            let left = by_hand.saturating_sub(decision.fire.len());
            decision.skipped = (waiting.len() - left) as u64;
            waiting.truncate(left);
        }
        Overlap::Queue => {
            waiting.extend(due);
            if !row.is_unfinished && !waiting.is_empty() {
                decision.fire.push(waiting.remove(0));
            }
            decision.skipped = waiting.len().saturating_sub(MAX_PENDING) as u64;
            waiting.truncate(MAX_PENDING);
        }
    }
    decision.pending = write_pending(&waiting);
    decision.last_at = decision.fire.last().copied().or(row.last_at);
    decision
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn hourly() -> CronSpec {
        CronSpec::parse("0 * * * *", "UTC").unwrap()
    }

    fn due_at(next: i64) -> StoredSchedule {
        StoredSchedule { next_at: Some(next), ..StoredSchedule::default() }
    }

    fn look(row: &StoredSchedule, now: i64, missed: Missed, overlap: Overlap) -> TickDecision {
        tick(row, now, &hourly(), missed, overlap)
    }

    #[test]
    fn a_time_that_has_come_fires_once_and_the_next_one_follows() {
        let before = look(&due_at(HOUR), HOUR - 1, Missed::RunOnce, Overlap::Allow);
        assert_eq!((before.fire, before.next_at), (vec![], Some(HOUR)));
        let fired = look(&due_at(HOUR), HOUR + 5, Missed::RunOnce, Overlap::Allow);
        assert_eq!((fired.fire, fired.next_at, fired.last_at), (vec![HOUR], Some(2 * HOUR), Some(HOUR)));
        assert_eq!((fired.missed, fired.skipped), (0, 0));
    }

    #[test]
    fn of_more_times_than_are_counted_the_last_ones_fire() {
        const DAY: i64 = 24 * HOUR;
        let minutes = CronSpec::parse("* * * * *", "UTC").unwrap();
        let now = 30 * DAY + 20;
        let all = tick(&due_at(60_000_000), now, &minutes, Missed::All(100), Overlap::Allow);
        let wanted: Vec<i64> = (0..100).rev().map(|ago| 30 * DAY - ago * 60_000_000).collect();
        assert_eq!((all.fire, all.next_at), (wanted, Some(30 * DAY + 60_000_000)));
        let once = tick(&due_at(60_000_000), now, &minutes, Missed::RunOnce, Overlap::Allow);
        assert_eq!((once.fire, once.next_at), (vec![30 * DAY], Some(30 * DAY + 60_000_000)));
        assert!(once.missed >= 10_000);
        let most = tick(&due_at(60_000_000), now, &minutes, Missed::All(u32::MAX), Overlap::Allow);
        assert_eq!(most.fire.len(), 1_000);
    }

    #[test]
    fn after_three_days_each_policy_has_its_own_jobs() {
        let (row, now) = (due_at(HOUR), 72 * HOUR + 10_000_000);
        let once = look(&row, now, Missed::RunOnce, Overlap::Allow);
        assert_eq!((once.fire, once.missed, once.next_at), (vec![72 * HOUR], 71, Some(73 * HOUR)));
        let all = look(&row, now, Missed::All(10), Overlap::Allow);
        assert_eq!(all.fire, (63..=72).map(|n| n * HOUR).collect::<Vec<_>>());
        assert_eq!(all.missed, 62);
        let skip = look(&row, now, Missed::Skip, Overlap::Allow);
        assert_eq!((skip.fire, skip.missed), (vec![72 * HOUR], 71), "the last one is on time");
        let late = look(&row, now + 51_000_000, Missed::Skip, Overlap::Allow);
        assert_eq!((late.fire, late.missed, late.next_at), (vec![], 72, Some(73 * HOUR)));
    }

    #[test]
    fn a_clock_that_was_set_back_fires_nothing_again() {
        let fired = look(&due_at(10 * HOUR), 10 * HOUR, Missed::RunOnce, Overlap::Allow);
        let row = due_at(fired.next_at.unwrap());
        for minutes in [0, 30, 60, 90, 119, 120, 179] {
            let again = look(&row, 8 * HOUR + minutes * 60_000_000, Missed::All(9), Overlap::Allow);
            assert_eq!((again.fire, again.next_at), (vec![], Some(11 * HOUR)), "{minutes}");
        }
        assert_eq!(look(&row, 11 * HOUR, Missed::All(9), Overlap::Allow).fire, [11 * HOUR]);
    }

    #[test]
    fn a_job_that_is_not_finished_holds_up_the_next_as_the_policy_says() {
        let unfinished = StoredSchedule { is_unfinished: true, ..due_at(HOUR) };
        assert_eq!(look(&unfinished, HOUR, Missed::RunOnce, Overlap::Allow).fire, [HOUR]);
        let skipped = look(&unfinished, HOUR, Missed::RunOnce, Overlap::Skip);
        assert_eq!((skipped.fire, skipped.skipped, skipped.pending.as_str()), (vec![], 1, ""));
        let queued = look(&unfinished, 3 * HOUR, Missed::All(9), Overlap::Queue);
        assert_eq!(queued.pending, format!("[{},{},{}]", HOUR, 2 * HOUR, 3 * HOUR));
        // One at a time, once the last one is finished.
        let row = StoredSchedule { next_at: queued.next_at, pending: queued.pending, ..StoredSchedule::default() };
        let one = look(&row, 3 * HOUR, Missed::All(9), Overlap::Queue);
        assert_eq!((one.fire, one.pending), (vec![HOUR], format!("[{},{}]", 2 * HOUR, 3 * HOUR)));
    }

    #[test]
    fn of_several_at_once_only_one_fires_without_overlap() {
        let skip = look(&due_at(HOUR), 3 * HOUR, Missed::All(9), Overlap::Skip);
        assert_eq!((skip.fire, skip.skipped), (vec![HOUR], 2));
        let queue = look(&due_at(HOUR), 500 * HOUR, Missed::All(1000), Overlap::Queue);
        assert_eq!((queue.fire.len(), queue.skipped), (1, 399));
    }

    #[test]
    fn what_is_asked_for_by_hand_fires_when_it_may() {
        let pending = with_pending(&with_pending("", 5).unwrap(), 7).unwrap();
        let row = |is_unfinished| StoredSchedule { pending: pending.clone(), is_unfinished, ..due_at(HOUR) };
        let allow = look(&row(true), 10, Missed::RunOnce, Overlap::Allow);
        assert_eq!((allow.fire, allow.pending.as_str()), (vec![5, 7], ""));
        for overlap in [Overlap::Skip, Overlap::Queue] {
            let waits = look(&row(true), 10, Missed::RunOnce, overlap);
            assert_eq!((waits.fire, waits.pending.as_str(), waits.skipped), (vec![], "[5,7]", 0));
            let one = look(&row(false), 10, Missed::RunOnce, overlap);
            assert_eq!((one.fire, one.pending.as_str(), one.skipped), (vec![5], "[7]", 0));
        }
        let unreadable = StoredSchedule { pending: "{".into(), ..due_at(HOUR) };
        assert_eq!(look(&unreadable, HOUR, Missed::RunOnce, Overlap::Queue).fire, [HOUR]);
    }

    #[test]
    fn years_of_every_second_are_passed_by() {
        let spec = CronSpec::parse("* * * * * *", "UTC").unwrap();
        let (row, now) = (due_at(HOUR), 400_000 * HOUR);
        let started = std::time::Instant::now();
        let once = tick(&row, now, &spec, Missed::RunOnce, Overlap::Allow);
        assert_eq!((once.fire, once.next_at), (vec![now], Some(now + 1_000_000)));
        assert!(started.elapsed().as_secs() < 20);
    }
}
