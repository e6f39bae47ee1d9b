//! The receiving half of a consumer.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{connection::MemoryConsumer, fail, message_store::TakeOutcome};
use crate::{
    ErrorKind, Result,
    driver::{ReceivedMessage, Receiver},
};

/// Receives messages. A receiver that is dropped without `close` counts as crashed: all unsettled messages of its
/// consumer are given back at once.
pub(super) struct MemoryReceiver {
    consumer: Arc<MemoryConsumer>,
    closed: bool,
    /// Its source was deleted. The next `receive` opens a consumer anew.
    detached: bool,
    /// Kept from one wait to the next, so that a busy consumer sets its timer once in the length of a lock, not for
    /// each message.
    timer: Option<Pin<Box<Sleep>>>,
}

impl MemoryReceiver {
    pub(super) fn new(consumer: Arc<MemoryConsumer>) -> Self {
        Self { consumer, closed: false, detached: false, timer: None }
    }

    fn poll_receive(&mut self, max: usize, cx: &mut Context<'_>) -> Poll<Result<Vec<ReceivedMessage>>> {
        let MemoryConsumer { queue, kind, id, connection, .. } = &*self.consumer;
        loop {
            match queue.take(*kind, *id, max, cx) {
                Ok(TakeOutcome::Messages(messages)) => return Poll::Ready(Ok(messages)),
                Ok(TakeOutcome::Closed) => {
                    let closed = fail(ErrorKind::Closed, "the receiver was closed");
                    return Poll::Ready(Err(connection.check_open().err().unwrap_or(closed)));
                }
                Ok(TakeOutcome::Wait(until)) => ready!(poll_timer(&mut self.timer, until, cx)),
                Err(e) => {
                    self.detached = true;
                    return Poll::Ready(Err(e.with_context("source", &self.consumer.origin)));
                }
            }
        }
    }
}

/// Ready at `until` at the latest, maybe before: the caller must look again.
fn poll_timer(timer: &mut Option<Pin<Box<Sleep>>>, until: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(until) = until else {
        *timer = None;
        return Poll::Pending;
    };
    let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
    if timer.deadline() > until || timer.is_elapsed() {
        timer.as_mut().reset(until);
    }
    timer.as_mut().poll(cx)
}

/// Removes waker and timer of a `receive` that is dropped while it waits (the flag is true then). A wake-up that has
/// already reached it goes on to another consumer.
struct ReceiveGuard<'a>(&'a mut MemoryReceiver, bool);

impl Drop for ReceiveGuard<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.timer = None;
            self.0.consumer.queue.stop_waiting(self.0.consumer.kind, self.0.consumer.id);
        }
    }
}

#[async_trait]
impl Receiver for MemoryReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        if self.detached && !self.closed {
            self.consumer = self.consumer.replace()?;
            self.detached = false;
        }
        let mut waiting = ReceiveGuard(self, false);
        poll_fn(|cx| {
            let polled = waiting.0.poll_receive(max, cx);
            waiting.1 = polled.is_pending();
            polled
        })
        .await
    }

    async fn close(&mut self) -> Result<()> {
        self.closed = true;
        self.timer = None;
        self.consumer.queue.stop(self.consumer.kind, self.consumer.id);
        Ok(())
    }
}

impl Drop for MemoryReceiver {
    fn drop(&mut self) {
        if !self.closed {
            self.consumer.leave();
        }
    }
}
