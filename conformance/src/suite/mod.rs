//! The suite: what a scenario is, on which targets it runs, how it is run, and what is reported.
//!
//! `test_binary::main_for` and the command make a `runner::Suite` of a target and the scenarios. It asks the target
//! what it can do, sorts out by `need` what does not concern it, runs each scenario in a thread of its own with a new
//! context, and hands the results to `report`. A scenario checks with `check`, and judges lateness by `pace`.

pub(crate) mod check;
pub(crate) mod need;
pub(crate) mod pace;
pub(crate) mod report;
pub(crate) mod runner;
pub(crate) mod scenario;
pub(crate) mod test_binary;
