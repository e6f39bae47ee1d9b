//! Rates, CPU time and ratios of several sides that take turns.

use std::time::{Duration, Instant};

/// One side's round.
#[derive(Clone, Copy, Default)]
pub(crate) struct RoundTimes {
    /// Seconds a message.
    wall: f64,
    /// Seconds of CPU a message, of this process, all threads; 0 where that is not known.
    cpu: f64,
}

impl RoundTimes {
    pub(crate) async fn of(messages: usize, work: impl Future<Output = ()>) -> Self {
        let (started, cpu) = (Instant::now(), cpu_time());
        work.await;
        let (wall, cpu) = (started.elapsed(), cpu_time().saturating_sub(cpu));
        Self { wall: wall.as_secs_f64() / messages as f64, cpu: cpu.as_secs_f64() / messages as f64 }
    }
}

/// Of this process so far: user and system time from Linux' `/proc/self/stat`, in its ticks of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The command's name is in parentheses and may hold spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

pub(crate) fn head() {
    println!(
        "{:<70} {:>9} {:>9} {:>6} {:>16} {:>9} {:>9}",
        "", "fe2o3/s", "polybus/s", "ratio", "", "us CPU", "us CPU"
    );
}

/// The rounds of polybus beside its twins: polybus is the last side.
pub(crate) struct Comparison<const TWINS: usize> {
    twins: [String; TWINS],
    rounds: Vec<([RoundTimes; TWINS], RoundTimes)>,
}

impl<const TWINS: usize> Comparison<TWINS> {
    pub(crate) fn new(twins: [String; TWINS]) -> Self {
        Self { twins, rounds: Vec::new() }
    }

    /// Runs each side once. Round 0 only warms up. Each round begins with another side, so that none always meets the
    /// warmer broker.
    pub(crate) async fn round(&mut self, round: usize, side: impl AsyncFn(usize) -> RoundTimes) {
        let (mut twins, mut portable) = ([RoundTimes::default(); TWINS], RoundTimes::default());
        for turn in 0..=TWINS {
            let turn = (turn + round) % (TWINS + 1);
            if turn < TWINS && crate::alone() {
                continue;
            }
            *twins.get_mut(turn).unwrap_or(&mut portable) = side(turn).await;
        }
        if round > 0 {
            self.rounds.push((twins, portable));
        }
    }

    pub(crate) fn print(&self) {
        for (i, what) in self.twins.iter().enumerate() {
            let sorted = |of: fn(&RoundTimes, &RoundTimes) -> f64| {
                let mut values: Vec<f64> =
                    self.rounds.iter().map(|(twins, portable)| of(&twins[i], portable)).collect();
                values.sort_by(f64::total_cmp);
                values
            };
            let median = |of| {
                let values = sorted(of);
                values[values.len() / 2]
            };
            let (native, portable) = (1.0 / median(|a, _| a.wall), 1.0 / median(|_, b| b.wall));
            let ratios = sorted(|a, b| a.wall / b.wall);
            let (low, ratio, high) = (ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
            let spread = format!("({low:.2} to {high:.2})");
            let (a, b) = (1e6 * median(|a, _| a.cpu), 1e6 * median(|_, b| b.cpu));
            println!("{what:<70} {native:>9.0} {portable:>9.0} {ratio:>6.2} {spread:>16} {a:>9.1} {b:>9.1}");
        }
    }
}
