//! Values over time: how fast one grows, and by how much it rose.

use std::{collections::VecDeque, time::Duration};

/// The growth of a value over a window, by the first and the last sample of it.
#[derive(Debug, Default)]
pub(super) struct GrowthWindow(VecDeque<(Duration, f64)>);

impl GrowthWindow {
    /// Adds a sample, and answers the growth a minute. `None` before the samples span the window.
    pub(super) fn per_minute(&mut self, window: Duration, at: Duration, value: f64) -> Option<f64> {
        let samples = &mut self.0;
        samples.push_back((at, value));
        // The first one stays until the next one is old enough to be the first.
        while samples.get(1).is_some_and(|(second, _)| at.saturating_sub(*second) >= window) {
            samples.pop_front();
        }
        let (first_at, first) = samples.front().copied()?;
        let span = at.saturating_sub(first_at);
        (span >= window).then(|| (value - first) / span.as_secs_f64() * 60.0)
    }
}

/// By how much a count rose within a window. What it falls by in between does not matter.
#[derive(Debug, Default)]
pub(super) struct RiseWindow {
    last: Option<f64>,
    rises: VecDeque<(Duration, f64)>,
}

impl RiseWindow {
    /// Adds a sample, and answers the sum of the rises. `None` at the first one.
    pub(super) fn rise(&mut self, window: Duration, at: Duration, value: f64) -> Option<f64> {
        let last = self.last.replace(value)?;
        if value > last {
            self.rises.push_back((at, value - last));
        }
        while self.rises.front().is_some_and(|(then, _)| at.saturating_sub(*then) >= window) {
            self.rises.pop_front();
        }
        Some(self.rises.iter().map(|(_, rise)| rise).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn growth_is_the_average_of_the_window_and_unknown_before_it() {
        let mut growth = GrowthWindow::default();
        let window = secs(60);
        let values = [(0, 0.0), (30, 1000.0), (60, 100.0), (90, 1000.0), (95, 1000.0)];
        let rates = values.map(|(at, value)| growth.per_minute(window, secs(at), value));
        assert_eq!(rates[..4], [None, None, Some(100.0), Some(0.0)]);
        // Against the sample at 30, the last one that is a window old.
        assert_eq!(rates[4], Some(0.0));
        assert_eq!(growth.0.len(), 4, "samples that are older than the window go");
    }

    #[test]
    fn growth_looks_across_polls_that_failed() {
        let mut growth = GrowthWindow::default();
        assert_eq!(growth.per_minute(secs(60), secs(0), 0.0), None);
        assert_eq!(growth.per_minute(secs(60), secs(600), 100.0), Some(10.0));
        assert_eq!(growth.per_minute(secs(60), secs(660), 40.0), Some(-60.0));
    }

    #[test]
    fn a_rise_counts_what_came_and_not_what_left() {
        let mut rise = RiseWindow::default();
        let values = [(0, 7.0), (10, 7.0), (20, 9.0), (30, 0.0), (40, 1.0), (80, 1.0), (100, 1.0)];
        let rises = values.map(|(at, value)| rise.rise(secs(60), secs(at), value));
        assert_eq!(rises, [None, Some(0.0), Some(2.0), Some(2.0), Some(3.0), Some(1.0), Some(0.0)]);
    }
}
