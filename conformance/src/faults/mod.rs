//! Seeded faults: drivers around another driver that break one promise each, to prove the scenarios themselves.
//!
//! The suite must fail on each of them, and each scenario must be failed by one: a scenario that no fault fails proves
//! nothing. A call goes from core through the fault's driver, which changes one thing, to the driver below.

/// A list of faults: name, what the driver does wrongly, the scenarios that must notice, and the behaviour.
macro_rules! faults {
    ($($name:literal, $doc:literal, [$($by:literal),* $(,)?], $make:expr;)*) => {
        vec![$(Fault { name: $name, doc: $doc, caught_by: &[$($by),*], make: || Arc::new($make) }),*]
    };
}

mod behaviours;
mod catalogue;

use std::{collections::BTreeMap, fmt, sync::Arc};

use parking_lot::Mutex;

use polybus_core::driver::Driver;

use crate::Target;
use behaviours::faulty_driver;

/// A driver that breaks one promise.
///
/// ```
/// use polybus_conformance::{ClockKind, Target, faults};
///
/// let fault = faults::all().into_iter().next().expect("a fault");
/// let target = fault.on(Target::memory("memory", ClockKind::Paused));
/// ```
#[derive(Clone)]
pub struct Fault {
    /// The name, for example `loses-one-in-a-batch`.
    pub name: &'static str,
    /// What the driver does wrongly, in one line.
    pub doc: &'static str,
    /// The scenarios that must notice: they are run under the fault, and all must fail.
    pub caught_by: &'static [&'static str],
    make: fn() -> Arc<dyn faulty_driver::FaultBehaviour>,
}

impl Fault {
    /// The driver with the promise broken on this connection.
    pub fn around(&self, driver: Arc<dyn Driver>) -> Arc<dyn Driver> {
        faulty_driver::broken(driver, (self.make)())
    }

    /// The target with the promise broken. All connections of one scenario share the state of the fault.
    pub fn on(&self, target: Target) -> Target {
        let (inner, make) = (target.connect.clone(), self.make);
        let by_space: Arc<Mutex<BTreeMap<String, Arc<dyn faulty_driver::FaultBehaviour>>>> = Arc::default();
        let mut target = target;
        target.connect = Arc::new(move |overrides| {
            let promise = by_space.lock().entry(overrides.space.clone()).or_insert_with(make).clone();
            let connecting = inner(overrides);
            Box::pin(async move { Ok(faulty_driver::broken(connecting.await?, promise)) })
        });
        target
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All faults.
pub fn all() -> Vec<Fault> {
    catalogue::all()
}
