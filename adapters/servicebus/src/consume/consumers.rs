//! The consumers of a driver, to count the messages that they hold.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

/// A consumer that can be counted.
pub(crate) trait CountedConsumer {
    /// What identifies its source.
    type Source: ?Sized + PartialEq;

    fn source(&self) -> &Self::Source;

    /// How many deliveries it holds.
    fn held(&self) -> u64;
}

pub(crate) struct ConsumerRegistry<C>(Mutex<Vec<Weak<C>>>);

impl<C> Default for ConsumerRegistry<C> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<C: CountedConsumer> ConsumerRegistry<C> {
    pub(crate) fn add(&self, consumer: &Arc<C>) {
        let mut consumers = self.0.lock();
        consumers.retain(|consumer| consumer.strong_count() > 0);
        consumers.push(Arc::downgrade(consumer));
    }

    /// How many messages of a source all consumers hold.
    pub(crate) fn held(&self, source: &C::Source) -> u64 {
        let consumers = self.0.lock();
        consumers.iter().filter_map(Weak::upgrade).filter(|c| c.source() == source).map(|c| c.held()).sum()
    }
}
