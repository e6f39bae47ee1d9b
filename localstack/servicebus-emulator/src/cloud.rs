//! Rules of the service in the cloud that are off unless a test switches them on.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

/// The switches of one emulator. A clone refers to the same switches.
#[derive(Clone, Debug, Default)]
pub struct CloudRules(Arc<CloudSwitches>);

#[derive(Debug, Default)]
struct CloudSwitches {
    idle_link_ms: AtomicI64,
}

impl CloudRules {
    /// Detaches links to entities over which nothing was said for this long, on the emulator's clock; zero ends that.
    /// The service takes ten minutes:
    /// <https://learn.microsoft.com/azure/service-bus-messaging/service-bus-amqp-troubleshoot#link-is-closed>.
    ///
    /// Links that are attached hear of a change when [`crate::faults::Faults::look_again`] is called.
    pub fn detach_idle_links(&self, after: Duration) {
        self.0.idle_link_ms.store(i64::try_from(after.as_millis()).unwrap_or(i64::MAX), Ordering::Release);
    }

    /// The idle time after which a link is detached, in milliseconds. `None` means never.
    pub(crate) fn idle_link_ms(&self) -> Option<i64> {
        Some(self.0.idle_link_ms.load(Ordering::Acquire)).filter(|ms| *ms > 0)
    }
}
