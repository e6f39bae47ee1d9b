//! The store suite: proves that a database's tables keep what the outbox, the inbox and jobs promise.
//!
//! [`StoreUnderTest`] says how to reach a database and what the suite may do to it; [`store_scenarios`] has the
//! scenarios, each one promise. A store's `tests/store_conformance.rs` (with `harness = false`) ends with a
//! [`StoreSuite`]:
//!
//! ```text
//! fn main() -> ExitCode {
//!     StoreSuite::new().on("mydb", "mydb", MyTarget::from_env()).faults_on("mydb-faults", MyTarget::from_env()).main()
//! }
//! ```
//!
//! Jobs and schedules are a group of their own, for stores that have them: [`StoreSuite::jobs_on`],
//! [`StoreSuite::job_faults_on`] and [`job_scenarios`].
//!
//! The broker is `memory://`, with a layer that breaks it where a scenario needs a broken one.
//!
//! The chapters: `target` is what a store's author writes, `cx` is what a scenario is handed, `layer` goes around the
//! store under test and makes it fail as a database does (`troubles`, and `table_troubles` for single calls) or breaks
//! one promise to prove the scenarios themselves (`fault`, with the scenarios that notice in `catalogue`), `broker` breaks
//! addresses, and `trials`, `fault_trials` and `suite` run and report.

mod broker;
mod catalogue;
mod cx;
mod fault;
mod fault_trials;
mod layer;
mod relays;
mod scenario;
mod scenarios;
mod suite;
mod table_troubles;
mod target;
mod trials;
mod troubles;

pub use catalogue::{SeededFault, seeded_faults, seeded_job_faults};
pub use cx::StoreCx;
pub use fault::StoreFault;
pub use layer::{SuiteStore, SuiteTx};
pub use scenario::StoreScenario;
pub use scenarios::{job_scenarios, store_scenarios};
pub use suite::StoreSuite;
pub use target::{BoxedError, JobsUnderTest, StoreAbilities, StoreOutage, StoreUnderTest};
pub use trials::run_store_scenario;
