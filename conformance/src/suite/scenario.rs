//! One promise of the contract and the test of it.

use std::{fmt, sync::Arc, time::Duration};

use polybus_core::driver::Capabilities;

use crate::{BoxFuture, Cx, Need, Outcome, Target};

/// One scenario. Make it with [`scenario`].
#[derive(Clone)]
#[non_exhaustive]
pub struct Scenario {
    /// `group/name`.
    pub name: &'static str,
    /// What must be true, in one line.
    pub doc: &'static str,
    /// Whether it concerns a target.
    pub needs: fn(&Target, &Capabilities) -> Need,
    /// Whether it disturbs others on the same broker (restart, block): such run alone, after the rest.
    pub alone: bool,
    /// How long it may take on a real clock.
    pub timeout: Duration,
    /// Its code.
    pub run: Arc<dyn Fn(Cx) -> BoxFuture<Outcome> + Send + Sync>,
}

/// A scenario that runs on every target, within 60 s, beside others.
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

    /// It disturbs others on the same broker.
    pub fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    /// How long it may take on a real clock.
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
