//! Renews the locks of buffered messages until they are taken.

use std::sync::{Arc, Weak};

use tokio::{sync::Notify, time::Instant};

use super::{BufferState, BufferedMessage, ReceiveBuffer, lose};
use crate::{
    ErrorKind, Result,
    driver::kit::{
        lease::answer_limit,
        renewal::{RenewalCall, RenewalPlan, RenewedLocks, renew},
    },
};

impl<M, L: Clone> RenewedLocks for ReceiveBuffer<M, L> {
    type Id = u64;
    type Token = L;

    fn plan(&self, under_way: usize) -> RenewalPlan<u64, L> {
        let mut state = self.state();
        let (lock, limit) = (state.lock, answer_limit(state.lock));
        let BufferState { waiting, has_task, .. } = &mut *state;
        let now = Instant::now();
        let call = || RenewalCall { ids: Vec::new(), tokens: Vec::new(), limit };
        let (mut together, mut calls) = (call(), Vec::new());
        // Locks that would be due soon go into the same call.
        let soon = now + lock / 8;
        let held = || |w: &&mut BufferedMessage<M, L>| !w.lost && !w.renewing;
        let first = waiting.iter().filter(|w| !w.lost && !w.renewing).map(|w| w.lease.due()).min();
        if first.is_some_and(|first| first <= now) {
            for w in waiting.iter_mut().filter(held()).filter(|w| w.lease.due() <= soon) {
                // A lock whose last renewal was not answered waits until it is due itself.
                if w.alone && w.lease.due() > now {
                    continue;
                }
                w.renewing = true;
                let mut alone = call();
                let call = if w.alone { &mut alone } else { &mut together };
                call.ids.push(w.number);
                call.tokens.push(w.renew_by.clone());
                calls.extend((!alone.ids.is_empty()).then_some(alone));
            }
        }
        if !together.ids.is_empty() {
            calls.insert(0, together);
        }
        let next = waiting.iter_mut().filter(held()).map(|w| w.lease.due()).min();
        let ends = under_way == 0 && calls.is_empty() && next.is_none();
        *has_task = !ends;
        RenewalPlan { calls, next, ends }
    }

    fn answered(&self, number: u64, renewed: Result<Instant>) {
        let mut state = self.state();
        // The message was taken meanwhile. What core was told of its lock is shorter than the lock is now, which is
        // safe.
        let Some(at) = state.waiting.iter().position(|waiting| waiting.number == number) else { return };
        let waiting = &mut state.waiting[at];
        waiting.renewing = false;
        waiting.alone = renewed.as_ref().is_err_and(|e| e.kind() == ErrorKind::Timeout);
        match renewed {
            Ok(from) => waiting.lease.renewed(from),
            Err(e) if e.kind() == ErrorKind::LockLost || waiting.lease.is_over() => {
                tracing::debug!(error = %e, "a message that nobody has received went back to the broker");
                waiting.lost = true;
                let key = (self.key)(&waiting.message).map(str::to_owned);
                lose(state.waiting.iter_mut().skip(at), self.key, key.as_deref());
            }
            // It was lost with an earlier message of its key while this call was under way.
            Err(_) if waiting.lost => {}
            Err(e) => {
                tracing::debug!(error = %e, "the lock of a message that nobody has received was not renewed; trying again");
                waiting.lease.failed();
            }
        }
    }

    fn earlier(&self) -> &Arc<Notify> {
        &self.sooner
    }
}

/// Renews the locks of messages that wait in the buffer, until none waits or the buffer is dropped. Spawn it as a task
/// of its own when [`ReceiveBuffer::put`] answers true.
///
/// `extend` gets all locks that are due at once, makes one attempt, and answers with one result for each: the time from
/// which the lock counts now, which is when the request went out. `LockLost` loses the message. After any other error
/// it is tried again while there is time.
///
/// A call has an eighth of the lock and is then dropped. Each of its messages goes into a call of its own the next
/// time, so that one that is never answered loses no other. Several calls may be under way at once.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use polybus_core::{Result, driver::kit::prefetched::{ReceiveBuffer, keep}};
/// use tokio::time::Instant;
///
/// /// Asks the broker, in one request, to lengthen these locks.
/// async fn renew(locks: Vec<u64>) -> Vec<Result<Instant>> {
///     let sent = Instant::now();
///     locks.iter().map(|_| Ok(sent)).collect()
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let buffer = Arc::new(ReceiveBuffer::new(Duration::from_secs(30), Duration::from_secs(1), true));
/// if buffer.put("message", 7, Instant::now()) == Ok(true) {
///     tokio::spawn(keep(Arc::downgrade(&buffer), renew));
/// }
/// # }
/// ```
pub async fn keep<M, L: Clone, F>(buffer: Weak<ReceiveBuffer<M, L>>, extend: impl Fn(Vec<L>) -> F)
where
    F: Future<Output = Vec<Result<Instant>>>,
{
    renew(buffer, extend).await;
}
