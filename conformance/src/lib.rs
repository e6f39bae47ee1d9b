//! The conformance suite of polybus: proves that a broker, or your own adapter, keeps the contract.
//!
//! A [`Target`] says how to reach a broker and what the suite may do to it. [`scenarios::all`] has the scenarios: each
//! is one promise of the contract. An adapter's `tests/conformance.rs` ends with [`main_for`], and
//! [`cli`](fn@cli) is the whole command. `WRITING.md` tells how to write a scenario.
//!
//! The chapters: `suite` runs scenarios and reports, `target` is what they run against, `cx` is what a scenario is
//! handed, `drivers` are layers around the driver under test, [`scenarios`] are the promises, and [`faults`] are broken
//! drivers that prove the scenarios themselves. [`stores`] is a suite of its own, for the databases of the patterns.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "cli")]
mod cli;
mod cx;
mod drivers;
pub mod faults;
pub mod scenarios;
pub mod stores;
mod suite;
mod target;

#[cfg(feature = "cli")]
#[cfg_attr(docsrs, doc(cfg(feature = "cli")))]
pub use cli::{cli, cli_with};
pub use cx::{
    child::{ChildConsumer, child_main},
    context::Cx,
    fixture::{Fixture, message, messages, number, numbers},
    proxy::{ByteFilter, Proxy},
    setup::BusSetup,
};
pub use drivers::{
    counting::CallCounter,
    flaky::{CallKind, FlakyBroker},
    masked::masked,
};
pub use suite::{
    check::{During, Failure, Outcome, expect_after_failed, expect_error},
    need::Need,
    report::{Report, ScenarioResult, junit, markdown},
    runner::{ScenarioRun, ScenarioVerdict, Suite, run_one},
    scenario::{Scenario, scenario},
    test_binary::{broker_url, main_for, quiet, trials},
};
pub use target::{
    ClockKind, ConnectFn, ConnectOverrides, CountAccuracy, Restart, Target,
    broker::{BrokerControl, CommandBroker},
    drift::{Drift, RawEntities},
    probe::{Probe, probe},
    raw::{RawInject, RawMessage, RawValue},
};

/// A boxed future that can cross threads.
pub type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;
