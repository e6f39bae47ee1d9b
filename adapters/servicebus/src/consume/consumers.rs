//! The consumers of a driver, to know what of a source is in their hands.

use std::sync::{Arc, Mutex, PoisonError, Weak};

/// One consumer.
pub(crate) trait Hands {
    /// What its source is known by.
    type Of: ?Sized + PartialEq;

    fn of(&self) -> &Self::Of;

    /// How many deliveries it holds.
    fn held(&self) -> u64;
}

pub(crate) struct Feeds<F>(Mutex<Vec<Weak<F>>>);

impl<F> Default for Feeds<F> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<F: Hands> Feeds<F> {
    pub(crate) fn add(&self, feed: &Arc<F>) {
        let mut feeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.retain(|feed| feed.strong_count() > 0);
        feeds.push(Arc::downgrade(feed));
    }

    /// What all of them hold of a source.
    pub(crate) fn held(&self, of: &F::Of) -> u64 {
        let feeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        feeds.iter().filter_map(Weak::upgrade).filter(|feed| feed.of() == of).map(|feed| feed.held()).sum()
    }
}
