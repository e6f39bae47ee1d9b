//! Waiting for a condition that others change and tell of.

use tokio::sync::Notify;

/// Waits until `holds`, which is asked again at each notification of all who wait.
pub(crate) async fn wait_until(notify: &Notify, holds: impl Fn() -> bool) {
    loop {
        let notified = notify.notified();
        tokio::pin!(notified);
        // Enabled before the look, so that a notification right after it is not missed.
        notified.as_mut().enable();
        if holds() {
            return;
        }
        notified.await;
    }
}
