//! What works on one session: it takes a message, waits until it is settled, takes the next.
//!
//! A message that is to be retried in place is kept: the session's lock is renewed until its time has come, then the message is
//! abandoned and comes again, counted.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fe2o3_amqp::{
    Receiver,
    link::delivery::DeliveryInfo,
    types::{messaging::Body, primitives::Value},
};
use polybus_core::{ErrorKind, driver::kit::lease::within};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use crate::amqp::{
    link::{self, Attached},
    locks::Lock,
    management::Status,
    receive_task::{self, Arrival},
    sessions::{Event, Floor, Order, Session, closed},
};

/// A session without messages is given back this soon while others may be waiting for its place.
const CROWDED: Duration = Duration::from_millis(250);

/// A lock that began no longer ago tells how long locks are.
const FRESH: Duration = Duration::from_millis(500);

/// The one that works on a session.
struct Hand {
    floor: Arc<Floor>,
    attached: Attached<Receiver>,
    session: Arc<Session>,
    orders: mpsc::UnboundedReceiver<Order>,
    closing: watch::Receiver<bool>,
    /// Waits for the session's end.
    done: Option<oneshot::Sender<()>>,
}

/// Works on the session, in a task, until it is given back or lost.
pub(crate) fn start(
    floor: Arc<Floor>,
    session: Arc<Session>,
    attached: Attached<Receiver>,
    orders: mpsc::UnboundedReceiver<Order>,
) {
    let mut hand = Hand { closing: floor.closing.subscribe(), floor, attached, session, orders, done: None };
    tokio::spawn(async move {
        hand.work().await;
        hand.finish().await;
    });
}

/// Whether the session goes on.
enum Next {
    Go,
    Stop,
}

impl Hand {
    async fn work(&mut self) {
        loop {
            let Some(arrival) = self.next().await else { return };
            let (info, lock) = (arrival.info.clone(), arrival.lock);
            self.session.received.store(false, Ordering::Release);
            if self.floor.events.send(Event::Arrival(Box::new(arrival), self.session.clone())).is_err() {
                return;
            }
            let next = self.settled(info, lock).await;
            if matches!(next, Next::Stop) {
                // First, so that a message is either not received any more, or let go here.
                self.orders.close();
            }
            self.floor.feed.let_go([lock.token]);
            if matches!(next, Next::Stop) {
                return;
            }
        }
    }

    /// The next message; `None` when the session is to be given back.
    async fn next(&mut self) -> Option<Arrival> {
        if *self.closing.borrow() || self.attached.link.set_credit(1).await.is_err() {
            return None;
        }
        let began = Instant::now();
        let delivery = loop {
            let crowded = self.floor.open.load(Ordering::Acquire) >= self.floor.limit;
            let idle = began + self.floor.idle;
            let soon = began + CROWDED.min(self.floor.idle);
            let now = Instant::now();
            if now >= idle || (crowded && now >= soon) {
                return None;
            }
            let wake = if now < soon { soon } else { idle.min(now + CROWDED) }.min(self.renewal());
            tokio::select! {
                delivery = self.attached.link.recv::<Body<Value>>() => break delivery,
                () = sleep_until(wake) => {
                    if Instant::now() >= self.renewal() && !self.renew().await {
                        return None;
                    }
                }
                _ = self.closing.changed() => return None,
                order = self.orders.recv() => if let Some(Order::End { done, .. }) = order {
                    self.done = Some(done);
                    return None;
                },
            }
        };
        // The lock is the session's, and may be old already.
        let from = self.session.lease().from();
        if from.elapsed() > self.floor.feed.lock() / 4 && !self.renew().await {
            return None;
        }
        match receive_task::arrival(delivery, from, &self.floor.feed) {
            Ok(arrival) => {
                // The message tells of the session's lock, which may be old by now.
                if from.elapsed() < FRESH {
                    self.floor.feed.learn(&arrival.opened.original.told);
                }
                Some(arrival)
            }
            Err(e) => {
                tracing::debug!(source = %self.floor.feed.source, error = %e, "a session has ended");
                None
            }
        }
    }

    /// Waits until the message is settled.
    async fn settled(&mut self, info: DeliveryInfo, lock: Lock) -> Next {
        loop {
            let (waits, renews) = (!self.session.is_received(), self.floor.feed.renews);
            let renewal = self.renewal();
            let order = tokio::select! {
                order = self.orders.recv() => order,
                // It may be received while this waits.
                () = sleep_until(renewal), if waits && renews => {
                    if !self.session.is_received() && !self.renew().await {
                        return Next::Stop;
                    }
                    continue;
                }
                () = closed(&mut self.closing), if waits => {
                    if !self.session.is_received() {
                        return Next::Stop;
                    }
                    continue;
                }
                // Without credit nothing but the end can come.
                ended = self.attached.link.recv::<Body<Value>>() => {
                    if let Err(e) = ended {
                        tracing::debug!(source = %self.floor.feed.source, error = %e, "a session has ended");
                    }
                    return Next::Stop;
                }
            };
            match order {
                // The delivery of an earlier round may have been settled late.
                Some(Order::Settled(of, _) | Order::Hold(of, _) | Order::Lost(of))
                    if of.delivery_id() != info.delivery_id() => {}
                Some(Order::Settled(_, true)) => {
                    let _ = self.attached.link.accept(info).await;
                    return Next::Go;
                }
                Some(Order::Settled(_, false)) => {
                    let _ = self.attached.link.release(info).await;
                    return Next::Go;
                }
                Some(Order::Hold(_, delay)) => return self.hold(info, lock, Instant::now() + delay).await,
                Some(Order::Lost(_)) => {
                    self.abandon(lock).await;
                    return Next::Stop;
                }
                Some(Order::End { abandon, done }) => {
                    self.done = Some(done);
                    if abandon {
                        self.abandon(lock).await;
                    }
                    return Next::Stop;
                }
                None => return Next::Stop,
            }
        }
    }

    /// Keeps the message and the session until then.
    async fn hold(&mut self, info: DeliveryInfo, lock: Lock, until: Instant) -> Next {
        loop {
            tokio::select! {
                () = sleep_until(until) => break,
                () = sleep_until(self.renewal()) => {
                    if !self.renew().await {
                        return Next::Stop;
                    }
                }
                _ = self.closing.changed() => {
                    self.abandon(lock).await;
                    return Next::Stop;
                }
                _ = self.attached.link.recv::<Body<Value>>() => return Next::Stop,
                order = self.orders.recv() => if let Some(Order::End { done, .. }) = order {
                    self.done = Some(done);
                    self.abandon(lock).await;
                    return Next::Stop;
                },
            }
        }
        match self.abandon(lock).await {
            true => {
                let _ = self.attached.link.release(info).await;
                Next::Go
            }
            false => Next::Stop,
        }
    }

    async fn abandon(&self, lock: Lock) -> bool {
        let abandoned = self.floor.feed.management.settle(&[lock.token], &Status::Abandoned, Some(&self.session)).await;
        if let Err(e) = &abandoned {
            tracing::debug!(source = %self.floor.feed.source, error = %e, "a message comes back when its session's lock ends");
        }
        abandoned.is_ok()
    }

    fn renewal(&self) -> Instant {
        self.session.lease().due()
    }

    /// False if the session is lost. What fails for now is tried again while there is time.
    async fn renew(&self) -> bool {
        let feed = &self.floor.feed;
        let Err(e) = within(feed.lock(), feed.renew_session(&self.session)).await else { return true };
        tracing::warn!(source = %feed.source, error = %e, "a session's lock was not renewed");
        let mut lease = self.session.lease();
        if e.kind() == ErrorKind::LockLost || lease.is_over() {
            return false;
        }
        lease.failed();
        true
    }

    async fn finish(self) {
        let Self { floor, attached, orders, done, .. } = self;
        drop(orders);
        link::close_receiver(attached).await;
        floor.open.fetch_sub(1, Ordering::AcqRel);
        floor.freed.notify_one();
        drop(done);
    }
}
