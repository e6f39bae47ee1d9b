//! The task of one session: it takes a message, waits until it is settled, and takes the next.
//!
//! For a retry it holds the message in place: it renews the session's lock until the time has come, then abandons the
//! message, which comes again and counts.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fe2o3_amqp::{
    link::delivery::DeliveryInfo,
    types::{messaging::Body, primitives::Value},
};
use polybus_core::{ErrorKind, driver::kit::lease::within};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use crate::amqp::{
    link::{self, ReceiverLink},
    locks::MessageLock,
    management::SettleStatus,
    receive_task::{self, IncomingMessage},
    sessions::{MessageSession, SessionCommand, SessionEvent, SessionPool, wait_for_close},
};

/// A session without messages is given back this soon while all places for sessions are taken.
const CROWDED_IDLE: Duration = Duration::from_millis(250);

/// A message tells how long locks are only if its lock began no longer ago.
const FRESH_LOCK: Duration = Duration::from_millis(500);

struct SessionTask {
    pool: Arc<SessionPool>,
    attached: ReceiverLink,
    session: Arc<MessageSession>,
    commands: mpsc::UnboundedReceiver<SessionCommand>,
    closing: watch::Receiver<bool>,
    /// Who waits for the end of the session.
    done: Option<oneshot::Sender<()>>,
}

/// Starts the task. It ends when the session is given back or lost.
pub(crate) fn start(
    pool: Arc<SessionPool>,
    session: Arc<MessageSession>,
    attached: ReceiverLink,
    commands: mpsc::UnboundedReceiver<SessionCommand>,
) {
    let mut task = SessionTask { closing: pool.closing.subscribe(), pool, attached, session, commands, done: None };
    tokio::spawn(async move {
        task.run().await;
        task.close().await;
    });
}

/// What follows after a message.
enum SessionStep {
    Continue,
    Stop,
}

impl SessionTask {
    async fn run(&mut self) {
        loop {
            let Some(message) = self.next_message().await else { return };
            let (info, lock) = (message.info.clone(), message.lock);
            self.session.received.store(false, Ordering::Release);
            if self.pool.events.send(SessionEvent::Arrival(Box::new(message), self.session.clone())).is_err() {
                return;
            }
            let step = self.wait_until_settled(info, lock).await;
            if matches!(step, SessionStep::Stop) {
                // Before the delivery is removed: `receive_one` adds the delivery and then looks whether this channel
                // is closed. So either it sees the closed channel and removes the delivery itself, or the delivery is
                // removed below.
                self.commands.close();
            }
            self.pool.consumer.remove_unsettled([lock.token]);
            if matches!(step, SessionStep::Stop) {
                return;
            }
        }
    }

    /// The next message; `None` when the session is to be given back or has ended.
    async fn next_message(&mut self) -> Option<IncomingMessage> {
        if *self.closing.borrow() || self.attached.link.set_credit(1).await.is_err() {
            return None;
        }
        let began = Instant::now();
        let delivery = loop {
            let crowded = self.pool.open.load(Ordering::Acquire) >= self.pool.limit;
            let idle = began + self.pool.idle;
            let soon = began + CROWDED_IDLE.min(self.pool.idle);
            let now = Instant::now();
            if now >= idle || (crowded && now >= soon) {
                return None;
            }
            let wake = if now < soon { soon } else { idle.min(now + CROWDED_IDLE) }.min(self.renewal_due());
            tokio::select! {
                delivery = self.attached.link.recv::<Body<Value>>() => break delivery,
                () = sleep_until(wake) => {
                    if Instant::now() >= self.renewal_due() && !self.renew().await {
                        return None;
                    }
                }
                _ = self.closing.changed() => return None,
                command = self.commands.recv() => if let Some(SessionCommand::End { done, .. }) = command {
                    self.done = Some(done);
                    return None;
                },
            }
        };
        // The message comes under the session's lock, which may have been given long ago.
        let from = self.session.lease().from();
        if from.elapsed() > self.pool.consumer.lock_duration() / 4 && !self.renew().await {
            return None;
        }
        match receive_task::read(delivery, from, &self.pool.consumer) {
            Ok(message) => {
                // Only then does the message tell how long locks are.
                if from.elapsed() < FRESH_LOCK {
                    self.pool.consumer.learn_lock_length(&message.content.original.broker);
                }
                Some(message)
            }
            Err(e) => {
                tracing::debug!(source = %self.pool.consumer.source, error = %e, "a session has ended");
                None
            }
        }
    }

    /// Waits until the message is settled.
    async fn wait_until_settled(&mut self, info: DeliveryInfo, lock: MessageLock) -> SessionStep {
        loop {
            let (waits, renews) = (!self.session.is_received(), self.pool.consumer.renews);
            let renewal_due = self.renewal_due();
            let command = tokio::select! {
                command = self.commands.recv() => command,
                // Core may receive the message while this waits, so the branch looks again.
                () = sleep_until(renewal_due), if waits && renews => {
                    if !self.session.is_received() && !self.renew().await {
                        return SessionStep::Stop;
                    }
                    continue;
                }
                () = wait_for_close(&mut self.closing), if waits => {
                    if !self.session.is_received() {
                        return SessionStep::Stop;
                    }
                    continue;
                }
                // The link has no credit, so only its end can come.
                ended = self.attached.link.recv::<Body<Value>>() => {
                    if let Err(e) = ended {
                        tracing::debug!(source = %self.pool.consumer.source, error = %e, "a session has ended");
                    }
                    return SessionStep::Stop;
                }
            };
            match command {
                // This is about a delivery of an earlier round that was settled late.
                Some(SessionCommand::Settled(of, _) | SessionCommand::Hold(of, _) | SessionCommand::Lost(of))
                    if of.delivery_id() != info.delivery_id() => {}
                Some(SessionCommand::Settled(_, true)) => {
                    let _ = self.attached.link.accept(info).await;
                    return SessionStep::Continue;
                }
                Some(SessionCommand::Settled(_, false)) => {
                    let _ = self.attached.link.release(info).await;
                    return SessionStep::Continue;
                }
                Some(SessionCommand::Hold(_, delay)) => {
                    return self.hold(info, lock, Instant::now() + delay).await;
                }
                Some(SessionCommand::Lost(_)) => {
                    self.abandon(lock).await;
                    return SessionStep::Stop;
                }
                Some(SessionCommand::End { abandon, done }) => {
                    self.done = Some(done);
                    if abandon {
                        self.abandon(lock).await;
                    }
                    return SessionStep::Stop;
                }
                None => return SessionStep::Stop,
            }
        }
    }

    /// Holds the message and the session in place until then.
    async fn hold(&mut self, info: DeliveryInfo, lock: MessageLock, until: Instant) -> SessionStep {
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                () = sleep_until(self.renewal_due()) => {
                    if !self.renew().await {
                        return SessionStep::Stop;
                    }
                }
                _ = self.closing.changed() => {
                    self.abandon(lock).await;
                    return SessionStep::Stop;
                }
                _ = self.attached.link.recv::<Body<Value>>() => return SessionStep::Stop,
                command = self.commands.recv() => if let Some(SessionCommand::End { done, .. }) = command {
                    self.done = Some(done);
                    self.abandon(lock).await;
                    return SessionStep::Stop;
                },
            }
        }
        match self.abandon(lock).await {
            true => {
                let _ = self.attached.link.release(info).await;
                SessionStep::Continue
            }
            false => SessionStep::Stop,
        }
    }

    async fn abandon(&self, lock: MessageLock) -> bool {
        let abandoned =
            self.pool.consumer.management.settle(&[lock.token], &SettleStatus::Abandoned, Some(&self.session)).await;
        if let Err(e) = &abandoned {
            tracing::debug!(source = %self.pool.consumer.source, error = %e, "a message comes back when its session's lock ends");
        }
        abandoned.is_ok()
    }

    fn renewal_due(&self) -> Instant {
        self.session.lease().due()
    }

    /// Renews the lock of the session. False if it is lost. A renewal that fails otherwise is tried again while the
    /// lock lasts.
    async fn renew(&self) -> bool {
        let consumer = &self.pool.consumer;
        let Err(e) = within(consumer.lock_duration(), consumer.renew_session(&self.session)).await else { return true };
        tracing::warn!(source = %consumer.source, error = %e, "a session's lock was not renewed");
        let mut lease = self.session.lease();
        if e.kind() == ErrorKind::LockLost || lease.is_over() {
            return false;
        }
        lease.failed();
        true
    }

    async fn close(self) {
        let Self { pool, attached, commands, done, .. } = self;
        drop(commands);
        link::close_receiver(attached).await;
        pool.open.fetch_sub(1, Ordering::AcqRel);
        pool.freed.notify_one();
        drop(done);
    }
}
