//! Consuming one source.

use crate::{Delivery, Result, Source};

/// Settings of a consumer that is about to be opened.
#[must_use = "call open"]
pub struct SubscribeBuilder(());

impl SubscribeBuilder {
    /// Most unsettled deliveries at once, buffered ones included. Default 64.
    pub fn prefetch(self, n: usize) -> Self {
        let _ = n;
        unimplemented!()
    }

    /// Whether core renews locks by itself, from receipt on. Default true.
    pub fn renew_locks(self, yes: bool) -> Self {
        let _ = yes;
        unimplemented!()
    }

    /// Starts to consume.
    pub async fn open(self) -> Result<Subscription> {
        unimplemented!()
    }
}

/// A consumer: yields deliveries. It yields an error only when it has ended, once, then `None`.
pub struct Subscription(());

impl Subscription {
    /// The next delivery. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Delivery>> {
        unimplemented!()
    }

    /// The source.
    pub fn source(&self) -> &Source {
        unimplemented!()
    }

    /// Stops receiving and gives back what was not handed out. Deliveries already handed out can still be settled.
    pub async fn stop(&mut self) -> Result<()> {
        unimplemented!()
    }

    /// Stops, finishes the settlements under way, and gives back every unsettled delivery. Idempotent.
    pub async fn close(&mut self) -> Result<()> {
        unimplemented!()
    }
}
