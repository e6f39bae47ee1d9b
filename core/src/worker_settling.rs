//! Settling what a handler left behind, without keeping its place longer than needed.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use tokio::time::sleep;

use crate::{Delivery, Error, Kind, Retry, SettleError, Settlement, worker_pool::Pool};

/// What is known of a settlement when the handler's place becomes free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// Settled, or on its way.
    Done,
    /// The lock was lost: nothing was settled.
    LockLost,
}

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

type Answer = Result<(), SettleError>;

/// Hands in a settlement. One that is not answered at once goes on by itself: with `follow` on a task that tries again
/// where that can help, else in core alone, as from its first poll on. How many there are is bounded by the prefetch.
pub(crate) async fn settle(pool: &Pool, delivery: Delivery, how: Settlement, follow: bool) -> Settled {
    let polled = if follow {
        let mut settling: Pin<Box<dyn Future<Output = Answer> + Send>> = Box::pin(apply(delivery, how.clone()));
        let polled = once(settling.as_mut()).await;
        if polled.is_pending() {
            let how = how.clone();
            pool.follow(async move { see_through(settling.await, how).await });
        }
        polled
    } else if how == Settlement::Ack {
        once(pin!(delivery.ack())).await
    } else {
        once(pin!(apply(delivery, how.clone()))).await
    };
    match polled {
        Poll::Ready(Err(e)) if e.error().kind() == Kind::LockLost => Settled::LockLost,
        Poll::Ready(Err(e)) => {
            pool.follow(see_through(Err(e), how));
            Settled::Done
        }
        Poll::Ready(Ok(())) | Poll::Pending => Settled::Done,
    }
}

async fn once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

async fn apply(delivery: Delivery, how: Settlement) -> Answer {
    match how {
        Settlement::Ack => delivery.ack().await,
        Settlement::RetryAfter(delay) => delivery.retry_after(delay).await,
        Settlement::DeadLetter { reason, detail } => delivery.dead_letter(reason, detail).await,
        // A worker decides on nothing else.
        _ => delivery.release().await,
    }
}

/// Tries again as long as the delivery is held and the error may pass; then gives the message back.
async fn see_through(mut answer: Answer, mut how: Settlement) {
    let mut pause = FIRST_PAUSE;
    while let Err(e) = answer {
        let (error, delivery) = e.into_parts();
        if error.context("copy") == Some("kept") {
            // Moved already: another try would move it twice.
            how = Settlement::Ack;
        }
        let Some(delivery) = delivery else {
            tracing::warn!(target: "polybus", %error, "a message could not be settled; it will come again");
            return;
        };
        let (source, id) = (delivery.source(), &*delivery.envelope().id);
        if !may_pass(&error) {
            tracing::error!(target: "polybus", %source, id, %error, "a message could not be settled; released");
            // Not at once, or a message that can never be settled would spin.
            sleep(LONGEST_PAUSE).await;
            return;
        }
        tracing::warn!(target: "polybus", %source, id, %error, "a message could not be settled; trying again");
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        answer = apply(delivery, how.clone()).await;
    }
}

fn may_pass(error: &Error) -> bool {
    error.retry() != Retry::Never || matches!(error.kind(), Kind::Unavailable | Kind::Throttled | Kind::Timeout)
}
