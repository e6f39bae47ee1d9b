//! The bytes that may be under way in all lanes of a relay.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes that all lanes together may have read, and what each may read at least.
const BUDGET: usize = 32 << 20;
pub(super) const SMALL_READ: usize = 64 << 10;
const SMALL_READS: usize = 256;

/// The bytes under way in all lanes of a relay. It bounds the memory, whatever the number of addresses.
pub(super) struct Budget {
    large: Arc<Semaphore>,
    small: Arc<Semaphore>,
}

impl Default for Budget {
    fn default() -> Self {
        Self { large: Arc::new(Semaphore::new(BUDGET)), small: Arc::new(Semaphore::new(SMALL_READS)) }
    }
}

impl Budget {
    /// Up to `window` bytes if they are free, else a small read. So addresses that hold their windows for long cannot
    /// keep others from going on.
    pub(super) async fn reserve(&self, window: usize) -> (usize, Option<OwnedSemaphorePermit>) {
        if let Ok(permit) = self.large.clone().try_acquire_many_owned(window as u32) {
            return (window, Some(permit));
        }
        (SMALL_READ.min(window), self.small.clone().acquire_owned().await.ok())
    }
}
