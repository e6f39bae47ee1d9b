//! Renews the locks of buffered messages until they are taken.

use std::{future::poll_fn, pin::Pin, sync::Weak, task::Poll, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{BufferState, BufferedMessage, ReceiveBuffer, lose};
use crate::{
    Error, ErrorKind, Result,
    driver::{
        catch_panic::{caught, caught_call},
        kit::lease::within,
    },
};

impl<M, L: Clone> ReceiveBuffer<M, L> {
    /// Decides what to renew now and when to look again, and marks what is to be renewed. `calls` says whether renewals
    /// are under way: without them, and with nothing to wait for, the task ends.
    fn plan_renewals(&self, calls: bool) -> RenewalPlan<L> {
        let mut state = self.state();
        let lock = state.lock;
        let BufferState { waiting, has_task, .. } = &mut *state;
        let now = Instant::now();
        let mut plan = RenewalPlan { due: Vec::new(), next: None, ends: false };
        let mut together = Vec::new();
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
                match w.alone {
                    true => plan.due.push(vec![(w.number, w.renew_by.clone())]),
                    false => together.push((w.number, w.renew_by.clone())),
                }
            }
        }
        if !together.is_empty() {
            plan.due.insert(0, together);
        }
        plan.next = waiting.iter_mut().filter(held()).map(|w| w.lease.due()).min();
        plan.ends = !calls && plan.due.is_empty() && plan.next.is_none();
        *has_task = !plan.ends;
        plan
    }

    /// Takes the answer to one message's renewal.
    fn renewed(&self, number: u64, renewed: Result<Instant>) {
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
            Err(e) => {
                tracing::debug!(error = %e, "the lock of a message that nobody has received was not renewed; trying again");
                waiting.lease.failed();
            }
        }
    }
}

/// What the task does next.
struct RenewalPlan<L> {
    /// The locks that are due, by the number of their message: one list for each call.
    due: Vec<Vec<(u64, L)>>,
    /// When the next lock is due that is not in a call.
    next: Option<Instant>,
    /// Nothing waits and no call is under way.
    ends: bool,
}

/// The numbers of one call's messages, and the result of each.
type RenewalAnswers = (Vec<u64>, Vec<Result<Instant>>);

/// Makes one call, bounded in time. A panic, a timeout and a missing answer are errors of each message.
async fn call<F>(lock: Duration, numbers: Vec<u64>, renewing: Result<F>) -> RenewalAnswers
where
    F: Future<Output = Vec<Result<Instant>>>,
{
    let answers = match renewing {
        Ok(renewing) => within(lock, caught(renewing)).await,
        Err(panicked) => Err(panicked),
    };
    let mut answers = answers.unwrap_or_else(|e| e.for_each_of(numbers.len()));
    answers.resize_with(numbers.len(), || Err(Error::new(ErrorKind::Unexpected, "the driver gave no answer")));
    (numbers, answers)
}

/// Waits until one of the calls is answered. Waits for ever if there is none.
async fn any<C: Future<Output = RenewalAnswers>>(calls: &mut Vec<Pin<Box<C>>>) -> RenewalAnswers {
    poll_fn(|cx| {
        for at in 0..calls.len() {
            if let Poll::Ready(answer) = calls[at].as_mut().poll(cx) {
                drop(calls.swap_remove(at));
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    })
    .await
}

/// Renews the locks of messages that wait in the buffer, until none waits or the buffer is dropped. Spawn it as a task
/// of its own when [`ReceiveBuffer::put`] answers true.
///
/// `renew` gets all locks that are due at once, makes one attempt, and answers with one result for each: the time from
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
pub async fn keep<M, L: Clone, F>(buffer: Weak<ReceiveBuffer<M, L>>, renew: impl Fn(Vec<L>) -> F)
where
    F: Future<Output = Vec<Result<Instant>>>,
{
    let mut calls = Vec::new();
    loop {
        let Some(strong) = buffer.upgrade() else { return };
        let (plan, lock, sooner) =
            (strong.plan_renewals(!calls.is_empty()), strong.state().lock, strong.sooner.clone());
        drop(strong);
        if plan.ends {
            return;
        }
        for due in plan.due {
            let (numbers, locks): (Vec<u64>, Vec<L>) = due.into_iter().unzip();
            let renewing = caught_call(|| renew(locks));
            calls.push(Box::pin(call(lock, numbers, renewing)));
        }
        let (numbers, answers) = match plan.next {
            None => any(&mut calls).await,
            Some(next) => tokio::select! {
                answer = any(&mut calls) => answer,
                () = sleep_until(next) => continue,
                // Locks turned out to be shorter, so that one may be due sooner.
                () = sooner.notified() => continue,
            },
        };
        let Some(strong) = buffer.upgrade() else { return };
        for (number, answer) in numbers.into_iter().zip(answers) {
            strong.renewed(number, answer);
        }
    }
}
