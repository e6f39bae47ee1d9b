//! Rates, CPU time and ratios.

use std::time::{Duration, Instant};

/// One side's round.
#[derive(Clone, Copy)]
pub(crate) struct Measured {
    /// Seconds a message.
    wall: f64,
    /// Seconds of CPU a message, of this process, all threads; 0 where that is not known.
    cpu: f64,
}

impl Measured {
    pub(crate) async fn of(messages: usize, round: impl Future<Output = ()>) -> Self {
        let clock = Clock::start();
        round.await;
        clock.stop(messages)
    }

    /// This one, and then another over as many messages.
    pub(crate) fn then(self, other: Self) -> Self {
        Self { wall: self.wall + other.wall, cpu: self.cpu + other.cpu }
    }
}

/// Wall and CPU time since a start.
pub(crate) struct Clock(Instant, Duration);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now(), cpu_time())
    }

    pub(crate) fn stop(self, messages: usize) -> Measured {
        let (wall, cpu) = (self.0.elapsed(), cpu_time().saturating_sub(self.1));
        Measured { wall: wall.as_secs_f64() / messages as f64, cpu: cpu.as_secs_f64() / messages as f64 }
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

/// Runs both sides, each followed by `after`.
pub(crate) async fn both(
    native_first: bool,
    native: impl AsyncFn() -> Measured,
    portable: impl AsyncFn() -> Measured,
    after: impl AsyncFn(),
) -> (Measured, Measured) {
    let (a, b);
    if native_first {
        a = native().await;
        after().await;
        b = portable().await;
    } else {
        b = portable().await;
        after().await;
        a = native().await;
    }
    after().await;
    (a, b)
}

/// The rounds of one comparison.
#[derive(Default)]
pub(crate) struct Comparison(Vec<(Measured, Measured)>);

pub(crate) fn head() {
    println!(
        "{:<62} {:>9} {:>9} {:>6} {:>16} {:>9} {:>9}",
        "", "aws-sdk/s", "polybus/s", "ratio", "", "CPU us/m", "CPU us/m"
    );
}

impl Comparison {
    /// The first round only warms up.
    pub(crate) fn add(&mut self, round: usize, row: (Measured, Measured)) {
        if round > 0 {
            self.0.push(row);
        }
    }

    pub(crate) fn print(&self, what: &str) {
        if self.0.is_empty() {
            return;
        }
        let sorted = |of: fn(&(Measured, Measured)) -> f64| {
            let mut values: Vec<f64> = self.0.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |of| {
            let values = sorted(of);
            values[values.len() / 2]
        };
        let (native, portable) = (1.0 / median(|r| r.0.wall), 1.0 / median(|r| r.1.wall));
        let ratios = sorted(|(a, b)| a.wall / b.wall);
        let (low, ratio, high) = (ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]);
        let spread = format!("({low:.2} to {high:.2})");
        let (a, b) = (1e6 * median(|r| r.0.cpu), 1e6 * median(|r| r.1.cpu));
        println!("{what:<62} {native:>9.0} {portable:>9.0} {ratio:>6.2} {spread:>16} {a:>9.0} {b:>9.0}");
    }
}
