//! What the service in the cloud does and a broker on one's own machine need not: off unless it is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// The switches of one emulator; a clone is the same set.
#[derive(Clone, Debug, Default)]
pub struct Cloud(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    idle_link_ms: AtomicI64,
}

impl Cloud {
    /// Detaches links to entities over which nothing was said for this long, on the emulator's clock; zero ends that. The service takes
    /// ten minutes: <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-troubleshoot#link-is-closed>.
    ///
    /// Links that are attached hear of a change when [`crate::faults::Faults::look_again`] is called.
    pub fn detach_idle_links(&self, after: Duration) {
        self.0.idle_link_ms.store(i64::try_from(after.as_millis()).unwrap_or(i64::MAX), Ordering::Release);
    }

    /// After how many milliseconds an idle link is detached; none where it never is.
    pub(crate) fn idle_link_ms(&self) -> Option<i64> {
        Some(self.0.idle_link_ms.load(Ordering::Acquire)).filter(|ms| *ms > 0)
    }
}
