//! How slow this machine is just now: lateness is judged against it, not against a constant.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// How long something counts: what was late a minute ago may have been served by the same busy machine.
const MEMORY: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(20);
/// Of a busy machine this much at most is believed.
const MOST: f64 = 8.0;

/// The looks of one second: how late a sleep ended at worst, and how long a fixed piece of work took, all together.
#[derive(Clone, Copy)]
struct Looks {
    since: Instant,
    late: Duration,
    work: Duration,
    count: u32,
}

struct Pace {
    /// The quickest this work was ever done here.
    best: Duration,
    seconds: Vec<Looks>,
    /// When the look began that is under way. One that is late already counts as much as one that has ended.
    began: Option<Instant>,
}

fn pace() -> MutexGuard<'static, Pace> {
    static PACE: OnceLock<Mutex<Pace>> = OnceLock::new();
    let pace = PACE.get_or_init(|| {
        // A thread of its own, as the scenarios' are, so that it waits for the processor as they do.
        let started = thread::Builder::new().name("pace".into()).spawn(watch);
        drop(started);
        Mutex::new(Pace { best: work(), seconds: Vec::new(), began: None })
    });
    pace.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins to watch: what the first scenarios are slowed down by must be known when they ask.
pub(crate) fn start() {
    drop(pace());
}

/// Some hundred microseconds of arithmetic.
fn work() -> Duration {
    let began = Instant::now();
    let mut n = 1_u64;
    for i in 0..20_000_u64 {
        n = std::hint::black_box(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(i));
    }
    std::hint::black_box(n);
    began.elapsed()
}

fn watch() {
    loop {
        let began = Instant::now();
        pace().began = Some(began);
        thread::sleep(STEP);
        let late = began.elapsed().saturating_sub(STEP);
        let work = work();
        let mut pace = pace();
        pace.best = pace.best.min(work);
        let now = Instant::now();
        match pace.seconds.last_mut().filter(|last| now - last.since < Duration::from_secs(1)) {
            Some(last) => {
                (last.late, last.work, last.count) = (last.late.max(late), last.work + work, last.count + 1);
            }
            None => pace.seconds.push(Looks { since: now, late, work, count: 1 }),
        }
        pace.seconds.retain(|looks| now - looks.since < MEMORY);
    }
}

/// What took at most `usual` on an idle machine may take this long on this one, as it was over the last minute: by the mean of its
/// work, since one piece of it that was interrupted says little of the rest, and by the worst of its sleeps.
pub(crate) fn slowed(usual: Duration) -> Duration {
    let pace = pace();
    let under_way = pace.began.map(|began| began.elapsed().saturating_sub(STEP)).unwrap_or_default();
    let late = pace.seconds.iter().map(|looks| looks.late).fold(under_way, Duration::max);
    let (work, count) = pace
        .seconds
        .iter()
        .fold((0.0, 0), |(work, count), looks| (work + looks.work.as_secs_f64(), count + looks.count));
    let mean = if count == 0 { 0.0 } else { work / f64::from(count) };
    usual.mul_f64((mean / pace.best.as_secs_f64().max(1e-6)).clamp(1.0, MOST)) + late * 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_less_than_usual_and_never_for_ever() {
        let usual = Duration::from_secs(1);
        let now = slowed(usual);
        assert!(now >= usual && now < Duration::from_secs(600), "{now:?}");
    }
}
