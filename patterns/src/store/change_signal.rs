//! The signal by which a relay looks at once instead of at its next poll.

use std::sync::Arc;

use tokio::sync::watch;

/// Says that rows were written, to all listeners in this process.
///
/// There are two strengths. [`committed`](Self::committed) says that rows are there. [`written`](Self::written) says
/// that a transaction has written rows and may commit soon: a listener then looks several times.
#[derive(Clone, Debug)]
pub struct ChangeSignal(Arc<watch::Sender<Changes>>);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Changes {
    written: u64,
    committed: u64,
}

impl Default for ChangeSignal {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Changes::default())))
    }
}

impl ChangeSignal {
    /// Rows were written in a transaction that is still open.
    pub fn written(&self) {
        self.0.send_modify(|changes| changes.written += 1);
    }

    /// Rows were committed.
    pub fn committed(&self) {
        self.0.send_modify(|changes| changes.committed += 1);
    }

    /// A listener that hears what comes from now on.
    pub fn listen(&self) -> ChangeListener {
        let mut changes = self.0.subscribe();
        let seen = *changes.borrow_and_update();
        ChangeListener { changes, seen }
    }
}

/// Hears a [`ChangeSignal`].
#[derive(Debug)]
pub struct ChangeListener {
    changes: watch::Receiver<Changes>,
    seen: Changes,
}

impl ChangeListener {
    /// Waits for the next signal. True if it says that rows are committed.
    ///
    /// # Cancel safety
    /// Dropping the future loses no signal.
    pub async fn changed(&mut self) -> bool {
        let seen = self.seen;
        let Ok(changes) = self.changes.wait_for(|changes| *changes != seen).await.map(|changes| *changes) else {
            return std::future::pending().await;
        };
        let committed = changes.committed != seen.committed;
        self.seen = changes;
        committed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_signal_before_the_wait_is_heard() {
        let signal = ChangeSignal::default();
        let mut listener = signal.listen();
        signal.written();
        assert!(!listener.changed().await);
        signal.written();
        signal.committed();
        assert!(listener.changed().await);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(10), listener.changed()).await;
        assert!(waited.is_err(), "each signal is heard once");
    }
}
