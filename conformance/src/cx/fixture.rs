//! What most scenarios start with: a bus with one entity, and messages that carry a number.

use polybus_core::{Address, Bus, Delivery, Envelope, Source, Subscription, TopicSpec};

use crate::{During, Failure, Outcome};

/// A small message whose payload is this number.
pub fn message(n: usize) -> Envelope {
    Envelope::new("test.message", n.to_string())
}

/// The messages of these numbers.
pub fn messages(numbers: impl IntoIterator<Item = usize>) -> Vec<Envelope> {
    numbers.into_iter().map(message).collect()
}

/// The number of a [`message`].
pub fn number(envelope: &Envelope) -> Outcome<usize> {
    let text = std::str::from_utf8(&envelope.data).ok();
    text.and_then(|t| t.parse().ok()).ok_or_else(|| Failure::new(format!("not a numbered message: {envelope:?}")))
}

/// The numbers of several [`message`]s.
pub fn numbers<'a>(envelopes: impl IntoIterator<Item = &'a Envelope>) -> Outcome<Vec<usize>> {
    envelopes.into_iter().map(number).collect()
}

/// A bus with one declared queue (`q`) or topic (`t`), and where to publish and consume there.
#[derive(Clone)]
pub struct Fixture {
    /// The bus that declared the entity.
    pub bus: Bus,
    /// The queue or topic, to publish to.
    pub address: Address,
    /// The queue, or the first subscription of the topic, to consume.
    pub source: Source,
}

impl Fixture {
    pub(crate) fn queue(bus: Bus) -> Self {
        Self { bus, address: Address::queue("q"), source: Source::queue("q") }
    }

    pub(crate) fn topic(bus: Bus, spec: &TopicSpec) -> Self {
        let first = spec.subscriptions.keys().next().map_or("none", |s| s);
        Self { bus, address: Address::topic("t"), source: Source::subscription("t", first) }
    }

    /// The topic's subscription of this name.
    pub fn subscription(&self, name: &str) -> Source {
        Source::subscription(self.address.name(), name)
    }

    /// The same entities, used through another bus.
    pub fn on(&self, bus: Bus) -> Self {
        Self { bus, address: self.address.clone(), source: self.source.clone() }
    }

    /// Publishes one message, which must be Ok.
    pub async fn publish(&self, message: impl Into<polybus_core::Outgoing>) -> Outcome {
        self.bus.publish(&self.address, message).await.during("publish")?;
        Ok(())
    }

    /// Publishes several messages at once, all of which must be Ok.
    pub async fn publish_all(&self, messages: impl IntoIterator<Item = Envelope>) -> Outcome {
        for (i, result) in self.bus.publish_all(&self.address, messages).await.into_iter().enumerate() {
            result.during(format!("publish of message {i}"))?;
        }
        Ok(())
    }

    /// Opens a consumer of the source.
    pub async fn subscribe(&self, prefetch: usize) -> Outcome<Subscription> {
        self.bus.subscribe(self.source.clone()).prefetch(prefetch).open().await.during("subscribe")
    }

    /// Opens a consumer of the source's dead letters.
    pub async fn subscribe_dead(&self, prefetch: usize) -> Outcome<Subscription> {
        self.bus
            .subscribe(self.source.dead_letters())
            .prefetch(prefetch)
            .open()
            .await
            .during("subscribe to dead letters")
    }

    /// Opens a consumer with a prefetch of 1, and takes one delivery.
    pub async fn one(&self, cx: &crate::Cx) -> Outcome<(Subscription, Delivery)> {
        let mut sub = self.subscribe(1).await?;
        let delivery = cx.recv(&mut sub).await?;
        Ok((sub, delivery))
    }
}
