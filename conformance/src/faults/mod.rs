//! Seeded faults: drivers around another one, the memory driver for example, that break one promise each. The suite must
//! fail on every one of them, and every scenario must be failed by one: what no fault can fail proves nothing.

/// Each fault: name, what the driver does wrongly, the scenarios that must notice, and the break.
macro_rules! faults {
    ($($name:literal, $doc:literal, [$($by:literal),* $(,)?], $make:expr;)*) => {
        vec![$(Fault { name: $name, doc: $doc, caught_by: &[$($by),*], make: || Arc::new($make) }),*]
    };
}

mod of_consuming;
mod of_publishing;
mod of_redriving;
mod of_strangers;
mod on_entities;
mod on_publish;
mod on_receive;
mod on_redrive;
mod on_settle;
mod on_strangers;
mod wrapper;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use polybus_core::driver::Driver;

use crate::Target;

/// One broken promise.
#[derive(Clone)]
pub struct Fault {
    /// For example `loses-one-in-a-batch`.
    pub name: &'static str,
    /// What the driver does wrongly, in one line.
    pub doc: &'static str,
    /// The scenarios that must notice. They are run under the fault, and all must fail.
    pub caught_by: &'static [&'static str],
    make: fn() -> Arc<dyn wrapper::Break>,
}

impl Fault {
    /// The driver with the promise broken.
    pub fn around(&self, driver: Arc<dyn Driver>) -> Arc<dyn Driver> {
        wrapper::broken(driver, (self.make)())
    }

    /// The target with the promise broken: all connections of one scenario share the fault's memory.
    pub fn on(&self, target: Target) -> Target {
        let (inner, make) = (target.connect.clone(), self.make);
        let by_space: Arc<Mutex<BTreeMap<String, Arc<dyn wrapper::Break>>>> = Arc::default();
        let mut target = target;
        target.connect = Arc::new(move |overrides| {
            let promise = wrapper::lock(&by_space).entry(overrides.space.clone()).or_insert_with(make).clone();
            let connecting = inner(overrides);
            Box::pin(async move { Ok(wrapper::broken(connecting.await?, promise)) })
        });
        target
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All of them.
pub fn all() -> Vec<Fault> {
    [
        of_publishing::publishing(),
        of_publishing::data(),
        of_consuming::receiving(),
        of_consuming::settling(),
        of_consuming::attempts(),
        of_consuming::dead_letters(),
        of_redriving::redriving(),
        of_publishing::entities(),
        of_strangers::strangers(),
    ]
    .concat()
}
