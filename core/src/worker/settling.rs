//! Settling what a handler left behind, without keeping its place longer than needed.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use tokio::time::sleep;

use crate::{
    consume::settle::handling_record::Told,
    consume::{Delivery, SettleError},
    driver::Settlement,
    error::ErrorKind,
    runtime::poll_then_spawn::here_or_spawned,
    worker::pool::Pool,
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

type Answer = Result<(), SettleError>;

/// Hands in a settlement. One that is not answered at once goes on by itself: with `follow` on a task that tries again
/// where that can help, else in core alone, as from its first poll on. How many there are is bounded by the prefetch.
/// What becomes of it is told to `told`, whenever that is known.
pub(crate) async fn settle(pool: &Pool, delivery: Delivery, how: Settlement, follow: bool, told: Told) {
    if follow {
        let mut settling: Pin<Box<dyn Future<Output = Answer> + Send>> = Box::pin(apply(delivery, how.clone()));
        match once(settling.as_mut()).await {
            Poll::Pending => pool.follow(async move { see_through(settling.await, how, told).await }),
            Poll::Ready(Ok(())) => told.done(&how),
            Poll::Ready(Err(e)) if e.error().kind() == ErrorKind::LockLost => told.failed(&how, e.error()),
            Poll::Ready(Err(e)) => pool.follow(see_through(Err(e), how, told)),
        }
        return;
    }
    if let Some(run) = delivery.hand_in(how, told) {
        here_or_spawned(run).await;
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
async fn see_through(mut answer: Answer, mut how: Settlement, told: Told) {
    // What it comes to, though what is left of it may be an ack.
    let meant = how.clone();
    let mut pause = FIRST_PAUSE;
    loop {
        let Err(e) = answer else { return told.done(&meant) };
        let (error, delivery) = e.into_parts();
        if error.context("copy") == Some("kept") {
            // Moved already: another try would move it twice.
            how = Settlement::Ack;
        }
        let Some(delivery) = delivery else { return told.failed(&meant, &error) };
        let (source, id) = (delivery.source(), &*delivery.envelope().id);
        if !error.is_transient() {
            told.failed(&meant, &error);
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
