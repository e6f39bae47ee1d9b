//! A scenario: one promise of the contract, and the code that tests it.

use std::{fmt, sync::Arc, time::Duration};

use polybus_core::driver::Capabilities;

use crate::{BoxFuture, Cx, Need, Outcome, Target};

/// A scenario, made with [`scenario()`].
#[derive(Clone)]
#[non_exhaustive]
pub struct Scenario {
    /// The name, `group/what-is-promised`.
    pub name: &'static str,
    /// What must be true, in one line that ends with a dot.
    pub doc: &'static str,
    /// On which targets it runs.
    pub needs: fn(&Target, &Capabilities) -> Need,
    /// Whether it disturbs others on the same broker (restart, block). It then runs alone, after the others.
    pub alone: bool,
    /// How long it may take on an idle machine, by the real clock.
    pub timeout: Duration,
    /// Its code.
    pub run: Arc<dyn Fn(Cx) -> BoxFuture<Outcome> + Send + Sync>,
}

/// A scenario that runs on every target, within 60 s, beside others. See [`Cx`] for an example.
pub fn scenario<F, Fut>(name: &'static str, doc: &'static str, run: F) -> Scenario
where
    F: Fn(Cx) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    let run = Arc::new(move |cx| Box::pin(run(cx)) as BoxFuture<Outcome>);
    Scenario { name, doc, needs: |_, _| Need::Run, alone: false, timeout: Duration::from_secs(60), run }
}

impl Scenario {
    /// Says on which targets it runs: `.needs(|_, c| Need::topics(c).and(Need::dead_letters(c)))`.
    pub fn needs(mut self, needs: fn(&Target, &Capabilities) -> Need) -> Self {
        self.needs = needs;
        self
    }

    /// Says that it disturbs others on the same broker.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// Sets how long it may take on an idle machine, by the real clock. It counts as a hang after six times as long.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// The part of the name before the slash.
    pub fn group(&self) -> &'static str {
        self.name.split('/').next().unwrap_or(self.name)
    }
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario").field("name", &self.name).finish_non_exhaustive()
    }
}
