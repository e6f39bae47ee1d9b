//! The task that reads one link: it notes when each message arrived, and speaks for the receiver.

use std::{sync::Arc, time::Duration};

use fe2o3_amqp::{
    Receiver,
    link::{RecvError, delivery::DeliveryInfo},
    types::{
        messaging::{Body, Modified},
        primitives::Value,
    },
};
use polybus_core::{
    Error,
    driver::{
        kit::prefetched::{self, ReceiveBuffer},
        lock_margin,
    },
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    amqp::{
        consumer::Feed,
        link::{self, Attached, Delivered, Patience},
        locks::Lock,
    },
    error,
    message::original::{self, Opened},
};

/// How long the broker may take to send what is on its way when a consumer closes.
const DRAIN: Duration = Duration::from_secs(2);

/// A message as it came.
pub(crate) struct Arrival {
    /// From then on its lock counts.
    pub(crate) at: Instant,
    pub(crate) lock: Lock,
    pub(crate) info: DeliveryInfo,
    pub(crate) opened: Opened,
}

/// What a link has brought, and the lock tokens by which that is renewed.
pub(crate) type Arrivals = ReceiveBuffer<Arrival, Lock>;

/// What the broker is told of deliveries that are over. A disposition that comes after the broker's own record is closed does
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Completed,
    /// Back, uncounted.
    Released,
    /// Back, and its attempt counts.
    Abandoned,
}

enum Command {
    Allow(u64),
    Forget(Vec<DeliveryInfo>, Fate),
    Stop(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// Speaks to the task. The task ends, and the link with it, when the last of these is gone.
#[derive(Clone)]
pub(crate) struct Pump(mpsc::UnboundedSender<Command>);

impl Pump {
    /// Starts reading; no message comes without credit.
    pub(crate) fn start(feed: Arc<Feed>, attached: Attached<Receiver>) -> (Self, Arc<Arrivals>) {
        let (command, commands) = mpsc::unbounded_channel();
        // Bounded by the credit.
        let arrivals = Arc::new(ReceiveBuffer::new(feed.lock(), lock_margin(feed.lock()), feed.renews));
        tokio::spawn(run(attached, commands, Mouth { feed, arrivals: arrivals.clone() }));
        (Self(command), arrivals)
    }

    /// This many messages may come, counted from the link's beginning.
    pub(crate) fn allow(&self, total: u64) {
        let _ = self.0.send(Command::Allow(total));
    }

    /// These deliveries are over. False if the link is gone.
    pub(crate) fn forget(&self, deliveries: Vec<DeliveryInfo>, fate: Fate) -> bool {
        self.0.send(Command::Forget(deliveries, fate)).is_ok()
    }

    /// Takes the credit back; done once what was on its way has come.
    pub(crate) async fn stop(&self) {
        self.ask(Command::Stop).await;
    }

    /// Ends the link.
    pub(crate) async fn close(&self) {
        self.ask(Command::Close).await;
    }

    async fn ask(&self, what: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (tell, done) = oneshot::channel();
        if self.0.send(what(tell)).is_ok() {
            // An error means that the link has ended, which is as good.
            let _ = done.await;
        }
    }
}

async fn run(mut attached: Attached<Receiver>, mut commands: mpsc::UnboundedReceiver<Command>, mouth: Mouth) {
    let mut done = None;
    let mut window = Window::new(mouth.feed.prefetch);
    loop {
        tokio::select! {
            delivery = attached.link.recv::<Body<Value>>() => {
                window.came += 1;
                match mouth.deliver(delivery) {
                    Said::More if attached.link.credit() > 0 => {}
                    // What was not worth a frame before.
                    Said::More => window.grant(&mut attached.link, 1).await,
                    Said::End => break,
                    Said::Unwanted(info) => {
                        let _ = attached.link.release(info).await;
                    }
                }
            }
            command = commands.recv() => match command {
                None => break,
                Some(Command::Close(closed)) => {
                    done = Some(closed);
                    break;
                }
                Some(Command::Stop(stopped)) => {
                    window.stopped = true;
                    if attached.link.credit() > 0 {
                        let drained = link::drain(&mut attached, Patience::InAll(DRAIN), |delivery| matches!(mouth.deliver(delivery), Said::More)).await;
                        tracing::trace!(?drained, "the credit was taken back");
                    }
                    let _ = stopped.send(());
                }
                Some(Command::Allow(total)) => {
                    window.allow(total);
                    window.grant(&mut attached.link, 1).await;
                }
                Some(Command::Forget(deliveries, fate)) => {
                    window.over += deliveries.len() as u64;
                    // A failure means that the link is gone, which reading finds out.
                    let _ = match fate {
                        Fate::Completed => attached.link.accept_all(deliveries).await,
                        Fate::Released => attached.link.release_all(deliveries).await,
                        Fate::Abandoned => attached.link.modify_all(deliveries, failed()).await,
                    };
                    // While the receiver is busy with what has come, the next ones are on their way. Small top-ups wait until they are
                    // worth a frame.
                    let worth = window.prefetch / 4;
                    window.grant(&mut attached.link, worth).await;
                }
            },
        }
    }
    drop(commands);
    link::close_receiver(attached).await;
    drop(done);
}

/// How many messages may come, so that never more than the prefetch are unsettled.
struct Window {
    prefetch: u32,
    came: u64,
    /// As the receiver said last, counted from the link's beginning, and as it said first: this link's deliveries that are over make room
    /// beyond that.
    allowed: u64,
    first: Option<u64>,
    over: u64,
    stopped: bool,
}

impl Window {
    fn new(prefetch: usize) -> Self {
        let prefetch = u32::try_from(prefetch).unwrap_or(u32::MAX);
        Self { prefetch, came: 0, allowed: 0, first: None, over: 0, stopped: false }
    }

    fn allow(&mut self, total: u64) {
        self.allowed = self.allowed.max(total);
        self.first.get_or_insert(total);
    }

    /// The credit that may stand.
    fn credit(&self) -> u32 {
        let over = self.first.map_or(0, |first| first.saturating_add(self.over));
        u32::try_from(self.allowed.max(over).saturating_sub(self.came)).unwrap_or(u32::MAX)
    }

    /// Gives the broker its credit, if it is so much more than before. Never less: what is on its way could not be taken.
    async fn grant(&self, link: &mut Receiver, worth: u32) {
        let (now, credit) = (link.credit(), self.credit());
        if !self.stopped && credit > now && (now == 0 || credit - now >= worth) {
            let _ = link.set_credit(credit).await;
        }
    }
}

/// Puts what comes where the receiver finds it, and says at last that nothing more does.
struct Mouth {
    feed: Arc<Feed>,
    arrivals: Arc<Arrivals>,
}

enum Said {
    More,
    /// Nothing more will come.
    End,
    /// The receiver was closed before this came.
    Unwanted(DeliveryInfo),
}

impl Mouth {
    fn deliver(&self, delivery: Delivered) -> Said {
        let arrival = match arrival(delivery, Instant::now(), &self.feed) {
            Ok(arrival) => arrival,
            Err(e) => {
                self.arrivals.end(e);
                return Said::End;
            }
        };
        let (lock, at) = (arrival.lock, arrival.at);
        if self.feed.learn(&arrival.opened.original.told) {
            let lock = self.feed.lock();
            self.arrivals.shorten(lock, lock_margin(lock));
        }
        match self.arrivals.put(arrival, lock, at) {
            Ok(true) => {
                let feed = self.feed.clone();
                tokio::spawn(prefetched::keep(Arc::downgrade(&self.arrivals), move |locks| {
                    let feed = feed.clone();
                    async move { feed.renew_locks(&locks).await }
                }));
            }
            Ok(false) => {}
            Err(late) => return Said::Unwanted(late.info),
        }
        Said::More
    }
}

impl Drop for Mouth {
    fn drop(&mut self) {
        self.arrivals.end(error::lost("receive", "the link has ended"));
    }
}

fn failed() -> Modified {
    Modified { delivery_failed: Some(true), undeliverable_here: None, message_annotations: None }
}

/// What a link brought, under a lock that counts from `at`; an error if it is the end.
///
/// It is taken apart here, by who has just made it: what is not kept goes back to where its memory came from.
pub(crate) fn arrival(delivery: Delivered, at: Instant, feed: &Feed) -> Result<Arrival, Error> {
    let (info, opened) = match delivery {
        Ok(delivery) => {
            let (info, message) = delivery.into_parts();
            (info, original::open(message, feed.at()))
        }
        Err(RecvError::MessageDecode(e)) => {
            (e.info, original::unreadable("no AMQP 1.0 message that can be read", feed.at()))
        }
        Err(e) => return Err(error::of_recv(&e, "receive")),
    };
    let lock = Lock { token: lock_token(&info), partition: opened.original.partition() };
    Ok(Arrival { at, lock, info, opened })
}

/// The delivery tag is the lock token: a GUID in its little-endian form.
fn lock_token(info: &DeliveryInfo) -> uuid::Uuid {
    let tag: Result<[u8; 16], _> = info.delivery_tag().as_ref().try_into();
    tag.map(uuid::Uuid::from_bytes_le).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_makes_room_and_what_is_unsettled_takes_it() {
        let mut window = Window::new(10);
        window.over = 3;
        assert_eq!(window.credit(), 0, "nobody has asked yet");
        window.over = 0;
        // Four of an earlier link are unsettled still.
        window.allow(6);
        window.came = 6;
        assert_eq!(window.credit(), 0);
        window.over = 2;
        assert_eq!(window.credit(), 2);
        window.came = 8;
        // The receiver counts the earlier link's as well.
        window.allow(12);
        assert_eq!(window.credit(), 4);
        window.allow(9);
        assert_eq!(window.credit(), 4, "what was granted is not taken back");
        window.over = 8;
        assert_eq!(window.credit(), 6);
    }
}
