//! Taking messages.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{connection::Consumer, fail, message_store::Taken};
use crate::{
    driver::{ReceivedMessage, Receiver},
    error::{ErrorKind, Result},
};

/// Dropped without `close`, it is a consumer that crashed: everything unsettled goes back at once.
pub(super) struct MemoryReceiver {
    consumer: Arc<Consumer>,
    closed: bool,
    /// Its source was deleted: it attaches anew when it is asked again.
    detached: bool,
    /// Kept from one wait to the next, so that a busy consumer arms its timer once in a lock's time, not for each message.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl MemoryReceiver {
    pub(super) fn new(consumer: Arc<Consumer>) -> Self {
        Self { consumer, closed: false, detached: false, alarm: None }
    }

    fn poll_receive(&mut self, max: usize, cx: &mut Context<'_>) -> Poll<Result<Vec<ReceivedMessage>>> {
        let Consumer { queue, side, id, connection, .. } = &*self.consumer;
        loop {
            match queue.take(*side, *id, max, cx) {
                Ok(Taken::Messages(messages)) => return Poll::Ready(Ok(messages)),
                Ok(Taken::Closed) => {
                    let closed = fail(ErrorKind::Closed, "the receiver was closed");
                    return Poll::Ready(Err(connection.check_open().err().unwrap_or(closed)));
                }
                Ok(Taken::Wait(until)) => ready!(poll_alarm(&mut self.alarm, until, cx)),
                Err(e) => {
                    self.detached = true;
                    return Poll::Ready(Err(e.with_context("source", &self.consumer.origin)));
                }
            }
        }
    }
}

/// Ready at `until`, or before: the caller looks again then.
fn poll_alarm(alarm: &mut Option<Pin<Box<Sleep>>>, until: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
    let Some(until) = until else {
        *alarm = None;
        return Poll::Pending;
    };
    let alarm = alarm.get_or_insert_with(|| Box::pin(sleep_until(until)));
    if alarm.deadline() > until || alarm.is_elapsed() {
        alarm.as_mut().reset(until);
    }
    alarm.as_mut().poll(cx)
}

/// Whoever stops waiting leaves neither a waker nor a timer behind, and passes on a wake-up that was meant for it.
struct Waiting<'a>(&'a mut MemoryReceiver, bool);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.1 {
            self.0.alarm = None;
            self.0.consumer.queue.give_up(self.0.consumer.side, self.0.consumer.id);
        }
    }
}

#[async_trait]
impl Receiver for MemoryReceiver {
    async fn receive(&mut self, max: usize) -> Result<Vec<ReceivedMessage>> {
        if self.detached && !self.closed {
            self.consumer = self.consumer.succeed()?;
            self.detached = false;
        }
        let mut waiting = Waiting(self, false);
        poll_fn(|cx| {
            let polled = waiting.0.poll_receive(max, cx);
            waiting.1 = polled.is_pending();
            polled
        })
        .await
    }

    async fn close(&mut self) -> Result<()> {
        self.closed = true;
        self.alarm = None;
        self.consumer.queue.stop(self.consumer.side, self.consumer.id);
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
