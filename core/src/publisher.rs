//! Publishing to one address.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use crate::{Address, Outgoing, Receipt, Result};

/// A resolved sender to one address. Cheap to clone; all clones share batches.
#[derive(Clone)]
pub struct Publisher(());

impl Publisher {
    /// Publishes one message: Ok once the broker has taken durable responsibility.
    ///
    /// Dropping the future gives up the answer: the message is published or not.
    pub fn publish(&self, message: impl Into<Outgoing>) -> Publishing {
        let _ = message.into();
        unimplemented!()
    }

    /// Publishes many: one result per message, in order. A failure never fails its neighbours; on an ordered address,
    /// later messages of a failed key are not sent.
    pub fn publish_all<M: Into<Outgoing>>(&self, messages: impl IntoIterator<Item = M>) -> PublishingAll {
        let _ = messages.into_iter().map(Into::into).collect::<Vec<Outgoing>>();
        unimplemented!()
    }

    /// The address.
    pub fn address(&self) -> &Address {
        unimplemented!()
    }
}

/// A publish under way: `Send + 'static`, so that it can be spawned as it is.
#[must_use = "nothing is published until it is polled"]
pub struct Publishing(Pin<Box<dyn Future<Output = Result<Receipt>> + Send>>);

impl Future for Publishing {
    type Output = Result<Receipt>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

/// Many publishes under way.
#[must_use = "nothing is published until it is polled"]
pub struct PublishingAll(Pin<Box<dyn Future<Output = Vec<Result<Receipt>>> + Send>>);

impl Future for PublishingAll {
    type Output = Vec<Result<Receipt>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}
