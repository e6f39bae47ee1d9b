//! A request to a broker whose answer must not be lost with the future that waits for it.

use std::{future::Future, pin::Pin};

/// At most one request under way. [`Receiver::receive`](crate::driver::Receiver::receive) may be dropped at any time; a
/// request that lives here goes on with the next call.
///
/// ```
/// use polybus_core::driver::kit::pending_request::PendingRequest;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let mut poll = PendingRequest::default();
/// assert_eq!(poll.answer(|| async { 7 }).await, 7);
/// assert!(poll.last().await.is_none(), "nothing is under way");
/// # }
/// ```
pub struct PendingRequest<T>(Option<Pin<Box<dyn Future<Output = T> + Send>>>);

impl<T> Default for PendingRequest<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> PendingRequest<T> {
    /// The answer to the request that is under way, or to one that begins now.
    ///
    /// # Cancel safety
    /// A dropped call leaves the request where it is.
    pub async fn answer<F>(&mut self, begin: impl FnOnce() -> F) -> T
    where
        F: Future<Output = T> + Send + 'static,
    {
        let answer = self.0.get_or_insert_with(|| Box::pin(begin())).as_mut().await;
        // After the await, or a dropped call would take the request along.
        self.0 = None;
        answer
    }

    /// The answer to the request that is under way, if one is: for closing.
    pub async fn last(&mut self) -> Option<T> {
        let answer = self.0.as_mut()?.as_mut().await;
        self.0 = None;
        Some(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_dropped_call_leaves_the_request_to_the_next() {
        let mut pending = PendingRequest::default();
        let slow = |n: u32| {
            move || async move {
                sleep(Duration::from_secs(2)).await;
                n
            }
        };
        assert!(timeout(Duration::from_secs(1), pending.answer(slow(1))).await.is_err());
        assert_eq!(pending.answer(slow(2)).await, 1);
        assert_eq!(pending.last().await, None);
    }
}
