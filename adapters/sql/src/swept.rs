//! Which marks a process has swept already.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;

pub(crate) const MICROS_PER_HOUR: i64 = 3_600_000_000;

/// For each consumer, the hour before which no mark is left that was set in the hour of its message.
///
/// Without it each sweep would look again at what lives in hours long past: the marks of messages that came late. What
/// a process does not know, it looks at once.
#[derive(Debug, Default)]
pub(crate) struct Swept(Mutex<HashMap<(i32, Duration), i64>>);

impl Swept {
    /// The first hour to look at. In hour 0, of messages without a time, no mark was set.
    pub(crate) fn first_hour(&self, consumer: i32, retention: Duration) -> i64 {
        // The mark may have been set in the hour after that of its message, or before it.
        self.0.lock().get(&(consumer, retention)).map_or(1, |hour| hour - 1)
    }

    /// All that is older than an hour was swept.
    pub(crate) fn all_before(&self, consumer: i32, retention: Duration, hour: i64) {
        // Also backwards, as the clock may go.
        self.0.lock().insert((consumer, retention), hour);
    }
}
