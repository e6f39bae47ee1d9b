//! How slow this machine is: lateness is judged against its pace in the last minute, not against a constant.

use std::{
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

/// For how long a sample counts: what is judged now may have begun this long ago.
const MEMORY: Duration = Duration::from_secs(60);
/// How long the watching thread sleeps between two samples.
const STEP: Duration = Duration::from_millis(20);
/// The largest factor by which work is taken to be slowed down.
const MOST: f64 = 8.0;

/// What was measured in one second.
#[derive(Clone, Copy)]
struct PaceSample {
    since: Instant,
    /// The worst lateness of a sleep.
    late: Duration,
    /// The total time of the fixed pieces of work.
    work: Duration,
    count: u32,
}

struct MachinePace {
    /// The shortest time in which the piece of work was ever done.
    best: Duration,
    seconds: Vec<PaceSample>,
    /// When the sample under way began: if it is late already, that counts like one that has ended.
    began: Option<Instant>,
}

fn pace() -> MutexGuard<'static, MachinePace> {
    static PACE: OnceLock<Mutex<MachinePace>> = OnceLock::new();
    let pace = PACE.get_or_init(|| {
        // A thread and not a task: it has to wait for the processor as the scenarios' threads do.
        let started = thread::Builder::new().name("pace".into()).spawn(watch);
        drop(started);
        Mutex::new(MachinePace { best: work(), seconds: Vec::new(), began: None })
    });
    pace.lock()
}

/// Starts the watching thread, so that the first scenario that asks finds samples.
pub(crate) fn start() {
    drop(pace());
}

/// Does a fixed piece of work (some hundred microseconds of arithmetic), and tells how long it took.
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
            None => pace.seconds.push(PaceSample { since: now, late, work, count: 1 }),
        }
        pace.seconds.retain(|looks| now - looks.since < MEMORY);
    }
}

/// The time that something may take now which takes `usual` at most on an idle machine.
///
/// `usual` grows with the mean time of the pieces of work in the last minute: the worst one may have been interrupted
/// and says little of the others. Twice the worst lateness of a sleep is added.
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
