//! Consuming one source.

pub(crate) mod admission;
pub(crate) mod consumer;
pub(crate) mod consumers;
mod delivery;
pub(crate) mod handled_counts;
pub(crate) mod key_lanes;
pub(crate) mod lifecycle;
pub(crate) mod lock_renewal;
pub(crate) mod next_future;
pub(crate) mod prefetch_window;
pub(crate) mod refusals;
pub(crate) mod settle;
pub(crate) mod stall;
pub(crate) mod unsettled;

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use tokio::time::Instant;

pub use self::delivery::{Delivery, SettleError};

use crate::{
    connection::preflight,
    consume::{consumer::Consumer, consumers::Consumers},
    error::{Error, Result},
    topology::Source,
};

/// Settings of a consumer that is about to be opened.
#[must_use = "call open"]
pub struct SubscriptionBuilder {
    consumers: Arc<Consumers>,
    source: Source,
    prefetch: usize,
    renew: bool,
    give_up_after: Duration,
}

impl SubscriptionBuilder {
    pub(crate) fn new(consumers: Arc<Consumers>, source: Source) -> Self {
        let give_up_after = consumers.give_up_after;
        Self { consumers, source, prefetch: 64, renew: true, give_up_after }
    }

    /// Most unsettled deliveries at once, buffered ones included. Default 64; 0 is `InvalidArgument` from [`open`](Self::open).
    pub fn prefetch(mut self, n: usize) -> Self {
        self.prefetch = n;
        self
    }

    /// Whether core renews locks by itself, from receipt on. Default true.
    pub fn renew_locks(mut self, yes: bool) -> Self {
        self.renew = yes;
        self
    }

    /// How long the broker may refuse this consumer without a success in between, see
    /// [`BusOptions::give_up_after`](crate::bus::BusOptions::give_up_after). Default: the bus'.
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up_after = limit;
        self
    }

    /// Starts to consume. While the broker cannot be reached it waits up to the bus' publish timeout. A missing source is
    /// `NotFound`, here at once, or as the subscription's last item once it has lasted.
    pub async fn open(self) -> Result<Subscription> {
        let Self { consumers, source, prefetch, renew, give_up_after } = self;
        let connection = &consumers.connection;
        let opened = async {
            connection.ensure_open("subscribe")?;
            if prefetch == 0 {
                return Err(Error::invalid("prefetch must be at least 1"));
            }
            let mut entity = connection.topology.source(&source);
            preflight::source(&*connection.driver, &entity)?;
            entity.prefetch = prefetch;
            entity.renew_locks = renew;
            let deadline = connection.deadline(Instant::now());
            let (receiver, settler) =
                connection.patiently(deadline, || connection.driver.open_receiver(&entity)).await?;
            let consumer = Arc::new(Consumer::new(consumers.clone(), entity, receiver, settler, give_up_after));
            if let Err(e) = consumers.register(&consumer) {
                return Err(consumer.finish().await.err().unwrap_or(e));
            }
            Ok(Subscription { consumer })
        };
        opened.await.map_err(|e| connection.located(e, "subscribe").with_context("source", &source))
    }
}

/// A consumer: yields deliveries. It yields an error only when it has ended, once, then `None`; passing faults are
/// logged while it reconnects. `NotFound`, `PermissionDenied` and `Unauthenticated` end it only once they have lasted for
/// [`give_up_after`](SubscriptionBuilder::give_up_after), `Closed` at once.
///
/// Dropped, it stops receiving and gives back what it has not handed out; deliveries in hand can still be settled.
pub struct Subscription {
    pub(crate) consumer: Arc<Consumer>,
}

impl Subscription {
    /// The next delivery. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        // Neither a full buffer nor a driver that answers at once would ever yield.
        tokio::task::coop::consume_budget().await;
        if let Some(delivery) = self.consumer.at_hand() {
            return Some(Ok(delivery));
        }
        // Who waits no longer must not be the one that the broker wakes for the next message.
        let waiting = Waiting(&self.consumer);
        poll_fn(|cx| waiting.0.poll_next(cx)).await
    }

    /// The source.
    pub fn source(&self) -> &Source {
        &self.consumer.entity.name
    }

    /// Why nothing comes, as the last call to the broker told; `None` if that brought something, or waits.
    pub(crate) fn trouble(&self) -> Option<crate::error::Error> {
        self.consumer.trouble().clone()
    }

    /// Stops receiving and gives back what was not handed out. Deliveries already handed out can still be settled.
    pub async fn stop(&mut self) -> Result<()> {
        self.consumer.stop().await
    }

    /// Stops, finishes the settlements under way, and gives back every unsettled delivery; settling one later is
    /// `LockLost`. Idempotent.
    pub async fn close(&mut self) -> Result<()> {
        self.consumer.finish().await
    }
}

struct Waiting<'a>(&'a Arc<Consumer>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.polled.give_up();
    }
}

impl Stream for Subscription {
    type Item = Result<Delivery>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.consumer.poll_next(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.consumer.polled.end();
        self.consumer.abandon();
    }
}
