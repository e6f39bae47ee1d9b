//! When a loop looks for rows in a table that others write to.

use std::time::Duration;

use tokio::time::Instant;

/// When to look after a write whose commit nobody has told of, in milliseconds after it.
const LOOKS: [u64; 6] = [2, 5, 10, 20, 40, 80];

/// The times of the next looks: at each poll, and several times after a write that may be committed soon.
pub(crate) struct LookTimes {
    poll: Duration,
    next_poll: Instant,
    /// The last one comes first.
    after_write: Vec<Instant>,
}

impl LookTimes {
    /// Looks at once, and then at each poll.
    pub(crate) fn new(poll: Duration) -> Self {
        Self { poll, next_poll: Instant::now(), after_write: Vec::new() }
    }

    pub(crate) fn next(&self) -> Instant {
        self.after_write.last().map_or(self.next_poll, |at| self.next_poll.min(*at))
    }

    pub(crate) fn is_due(&self) -> bool {
        self.next() <= Instant::now()
    }

    /// Rows were written in a transaction that may end soon.
    pub(crate) fn written(&mut self) {
        let now = Instant::now();
        self.after_write = LOOKS.iter().rev().map(|ms| now + Duration::from_millis(*ms)).collect();
    }

    /// A look begins now.
    pub(crate) fn looking(&mut self) {
        let now = Instant::now();
        self.after_write.retain(|at| *at > now);
        self.next_poll = now + self.poll;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_write_it_looks_several_times_and_then_at_each_poll() {
        let (start, mut looks) = (Instant::now(), LookTimes::new(Duration::from_millis(200)));
        assert!(looks.is_due());
        looks.looking();
        looks.written();
        let mut times = Vec::new();
        while times.len() < 8 {
            tokio::time::sleep_until(looks.next()).await;
            times.push(start.elapsed().as_millis());
            looks.looking();
        }
        assert_eq!(times, [2, 5, 10, 20, 40, 80, 280, 480]);
    }
}
