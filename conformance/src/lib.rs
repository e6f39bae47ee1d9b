//! The conformance suite of polybus: proves that a broker, or your own adapter, keeps the contract.
//!
//! A [`Target`] says how to reach a broker and what the suite may do to it; [`scenarios::all`] holds the scenarios. An
//! adapter's `tests/conformance.rs` ends with [`main_for`]; `WRITING.md` tells how to write a scenario.

mod broker;
mod check;
mod child;
#[cfg(feature = "cli")]
mod cli;
mod context;
mod counting;
mod drift;
pub mod faults;
mod flaky;
mod kit;
mod masked;
mod memory_raw;
mod need;
mod pace;
mod probe;
mod proxy;
mod raw;
mod report;
mod runner;
mod scenario;
pub mod scenarios;
mod setup;
mod target;
mod trials;

pub use broker::{Broker, CommandBroker};
pub use check::{During, Failure, Outcome, expect_after_failed, expect_error};
pub use child::{Child, child_main};
#[cfg(feature = "cli")]
pub use cli::{cli, cli_with};
pub use context::Cx;
pub use counting::Calls;
pub use drift::{Drift, RawEntities};
pub use flaky::{Calling, Flaky};
pub use kit::{Fixture, message, messages, number, numbers};
pub use masked::masked;
pub use need::Need;
pub use probe::{Probe, probe};
pub use proxy::{Filter, Proxy};
pub use raw::{Raw, RawInject, RawValue};
pub use report::{Report, Row, junit, markdown};
pub use runner::{Ran, ScenarioVerdict, Suite, run_one};
pub use scenario::{Scenario, scenario};
pub use setup::Setup;
pub use target::{Clocks, Connect, Counts, Overrides, Restart, Target};
pub use trials::{broker_url, main_for, quiet, trials};

/// A boxed future that can cross threads.
pub type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;
