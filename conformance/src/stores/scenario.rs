//! A scenario of the store suite: one promise, and the code that tests it.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use super::{
    cx::StoreCx,
    target::{StoreAbilities, StoreUnderTest},
};
use crate::{Need, Outcome};

/// A scenario. [`store_scenarios`](super::store_scenarios) has them all.
#[non_exhaustive]
pub struct StoreScenario<T: StoreUnderTest> {
    /// The name, `group/what-is-promised`.
    pub name: &'static str,
    /// What must be true, in one line that ends with a dot.
    pub doc: &'static str,
    /// On which stores it runs.
    pub needs: fn(&StoreAbilities) -> Need,
    /// How long it may take on an idle machine. It counts as a hang after six times as long.
    pub timeout: Duration,
    /// Its code.
    pub(super) run: RunStoreScenario<T>,
}

/// The code of a scenario. It stays on its thread: the compiler cannot see that futures which are generic over a store
/// may cross threads.
pub(super) type RunStoreScenario<T> = Arc<dyn Fn(StoreCx<T>) -> LocalFuture + Send + Sync>;

/// A run of a scenario.
pub(super) type LocalFuture = Pin<Box<dyn Future<Output = Outcome>>>;

/// A scenario that runs on every store, within 60 s.
pub(crate) fn store_scenario<T, F, Fut>(name: &'static str, doc: &'static str, run: F) -> StoreScenario<T>
where
    T: StoreUnderTest,
    F: Fn(StoreCx<T>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + 'static,
{
    let run: RunStoreScenario<T> = Arc::new(move |cx| Box::pin(run(cx)) as LocalFuture);
    StoreScenario { name, doc, needs: |_| Need::Run, timeout: Duration::from_secs(60), run }
}

impl<T: StoreUnderTest> StoreScenario<T> {
    pub(crate) fn needs(mut self, needs: fn(&StoreAbilities) -> Need) -> Self {
        self.needs = needs;
        self
    }

    /// It moves the database's clock.
    pub(crate) fn needs_clock(self) -> Self {
        self.needs(|can| Need::when(can.clock, "no clock to move"))
    }

    /// Two transactions write at once in it.
    pub(crate) fn needs_parallel_writers(self) -> Self {
        self.needs(|can| Need::when(can.parallel_writers, "one transaction writes at a time"))
    }

    /// The part of the name before the slash.
    pub fn group(&self) -> &'static str {
        self.name.split('/').next().unwrap_or(self.name)
    }
}

impl<T: StoreUnderTest> Clone for StoreScenario<T> {
    fn clone(&self) -> Self {
        Self { name: self.name, doc: self.doc, needs: self.needs, timeout: self.timeout, run: self.run.clone() }
    }
}

impl<T: StoreUnderTest> fmt::Debug for StoreScenario<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreScenario").field("name", &self.name).finish_non_exhaustive()
    }
}
