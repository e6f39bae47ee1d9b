//! The database's clock, which tests move.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use parking_lot::Mutex;

/// Microseconds that are added to the database's clock in every statement. Always 0 outside tests.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClockOffset(Arc<AtomicI64>);

impl ClockOffset {
    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Acquire)
    }

    #[cfg(feature = "testing")]
    pub(crate) fn set(&self, micros: i64) {
        self.0.store(micros, Ordering::Release);
    }

    /// The expression of the clock with the offset in it.
    pub(crate) fn expression(clock: &str, offset: i64) -> String {
        if offset == 0 { clock.to_owned() } else { format!("({clock} + ({offset}))") }
    }
}

/// The statements of a store: built at the first use, and again when a test has moved the clock.
#[derive(Debug)]
pub(crate) struct Built<T>(Mutex<Option<(i64, Arc<T>)>>);

impl<T> Default for Built<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T> Built<T> {
    pub(crate) fn get(&self, offset: i64) -> Option<Arc<T>> {
        self.0.lock().as_ref().filter(|(of, _)| *of == offset).map(|(_, built)| built.clone())
    }

    pub(crate) fn put(&self, offset: i64, built: T) -> Arc<T> {
        let built = Arc::new(built);
        *self.0.lock() = Some((offset, built.clone()));
        built
    }
}
