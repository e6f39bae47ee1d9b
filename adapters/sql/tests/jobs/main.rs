//! Workers of jobs on every database.
#![allow(clippy::unwrap_used)]

#[macro_use]
#[path = "../database/mod.rs"]
mod database;

mod cancelled;
mod killed;
mod kinds;
mod outcomes;
mod shared;
mod support;
mod transactions;
mod unique;
