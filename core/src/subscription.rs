//! Consuming one source.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use tokio::time::Instant;

use crate::{Delivery, Result, Source, bus::BusInner, check, consumer::Consumer};

/// Settings of a consumer that is about to be opened.
#[must_use = "call open"]
pub struct SubscribeBuilder {
    bus: Arc<BusInner>,
    source: Source,
    prefetch: usize,
    renew: bool,
}

impl SubscribeBuilder {
    pub(crate) fn new(bus: Arc<BusInner>, source: Source) -> Self {
        Self { bus, source, prefetch: 64, renew: true }
    }

    /// Most unsettled deliveries at once, buffered ones included. Default 64.
    pub fn prefetch(mut self, n: usize) -> Self {
        self.prefetch = n.max(1);
        self
    }

    /// Whether core renews locks by itself, from receipt on. Default true.
    pub fn renew_locks(mut self, yes: bool) -> Self {
        self.renew = yes;
        self
    }

    /// Starts to consume. While the broker cannot be reached it waits up to the bus' publish timeout. A missing source is
    /// `NotFound`, here or as the subscription's last item.
    pub async fn open(self) -> Result<Subscription> {
        let Self { bus, source, prefetch, renew } = self;
        let opened = async {
            bus.open("subscribe")?;
            let mut entity = bus.topology.source(&source);
            check::source(&*bus.driver, &entity)?;
            entity.prefetch = prefetch;
            entity.renew_locks = renew;
            let deadline = bus.deadline(Instant::now());
            let (receiver, settler) = bus.patiently(deadline, || bus.driver.open_receiver(&entity)).await?;
            let consumer = Arc::new(Consumer::new(bus.clone(), entity, receiver, settler));
            if let Err(e) = bus.register(&consumer) {
                return Err(consumer.finish().await.err().unwrap_or(e));
            }
            Ok(Subscription { consumer })
        };
        opened.await.map_err(|e| bus.located(e, "subscribe").with("source", &source))
    }
}

/// A consumer: yields deliveries. It yields an error only when it has ended, once, then `None`; passing faults are
/// logged while it reconnects.
///
/// Dropped, it stops receiving and gives back what it has not handed out; deliveries in hand can still be settled.
pub struct Subscription {
    pub(crate) consumer: Arc<Consumer>,
}

impl Subscription {
    /// The next delivery. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        if self.consumer.polled.is_under_way() {
            return poll_fn(|cx| self.consumer.poll_next(cx)).await;
        }
        self.consumer.next().await
    }

    /// The source.
    pub fn source(&self) -> &Source {
        &self.consumer.entity.name
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
