//! Requests over one connection whose answers come in any order, each with the request's number.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{Error, ErrorKind, Result};

/// Who waits for which answer. When the connection ends, all get the reason, and whoever comes later gets it at once.
///
/// ```
/// use polybus_core::driver::kit::pending_replies::PendingReplies;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> polybus_core::Result<()> {
/// let replies = PendingReplies::default();
/// let reply = replies.begin()?;
/// // The request goes out with `reply.number`. The task that reads the connection finds it in the answer:
/// replies.answer(reply.number, Ok("stored"));
/// assert_eq!(reply.wait().await?, "stored");
/// # Ok(()) }
/// ```
pub struct PendingReplies<T>(Mutex<ReplyTable<T>>);

struct ReplyTable<T> {
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Result<T>>>,
    ended: Option<Error>,
}

/// One answer that is to come. Dropped, it is no longer waited for.
pub struct PendingReply<'a, T> {
    /// The number to send along with the request.
    pub number: u64,
    replies: &'a PendingReplies<T>,
    answer: oneshot::Receiver<Result<T>>,
}

impl<T> Default for PendingReplies<T> {
    fn default() -> Self {
        Self(Mutex::new(ReplyTable { next: 0, waiting: BTreeMap::new(), ended: None }))
    }
}

impl<T> PendingReplies<T> {
    /// A number for a request, to be had before it is sent: its answer may be quick. An error, `Safe`, if
    /// the connection has ended.
    pub fn begin(&self) -> Result<PendingReply<'_, T>> {
        let mut replies = self.0.lock();
        if let Some(ended) = &replies.ended {
            return Err(ended.clone().safe());
        }
        replies.next += 1;
        let (number, (sender, answer)) = (replies.next, oneshot::channel());
        replies.waiting.insert(number, sender);
        Ok(PendingReply { number, replies: self, answer })
    }

    /// The answer to a request; false if nobody waits for it any more.
    pub fn answer(&self, number: u64, answer: Result<T>) -> bool {
        let waiting = self.0.lock().waiting.remove(&number);
        waiting.is_some_and(|waiting| waiting.send(answer).is_ok())
    }

    /// The connection has ended: what was sent may have been carried out, so all that wait get `why` as
    /// `MayDuplicate`.
    pub fn end(&self, why: Error) {
        let mut replies = self.0.lock();
        let waiting = std::mem::take(&mut replies.waiting);
        replies.ended.get_or_insert_with(|| why.clone());
        drop(replies);
        for waiting in waiting.into_values() {
            let _ = waiting.send(Err(why.clone().may_duplicate()));
        }
    }
}

impl<T> PendingReply<'_, T> {
    /// Waits for the answer. It has no end of its own: bound it in time.
    pub async fn wait(mut self) -> Result<T> {
        let lost = |_| Err(Error::new(ErrorKind::Unexpected, "a request was forgotten").may_duplicate());
        (&mut self.answer).await.unwrap_or_else(lost)
    }
}

impl<T> Drop for PendingReply<'_, T> {
    fn drop(&mut self) {
        self.replies.0.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RetrySafety;

    #[tokio::test]
    async fn answers_find_their_requests_and_an_end_ends_all() {
        let replies = PendingReplies::default();
        let (a, b, c) = (replies.begin().unwrap(), replies.begin().unwrap(), replies.begin().unwrap());
        let dropped = c.number;
        drop(c);
        assert!(replies.answer(b.number, Ok("b")) && !replies.answer(dropped, Ok("c")));
        replies.end(Error::new(ErrorKind::Unavailable, "connection lost"));
        assert_eq!(b.wait().await.unwrap(), "b");
        assert_eq!(a.wait().await.unwrap_err().retry(), RetrySafety::MayDuplicate);
        assert_eq!(replies.begin().err().map(|e| e.retry()), Some(RetrySafety::Safe));
    }
}
