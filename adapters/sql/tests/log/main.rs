//! The event log on every database.
#![allow(clippy::unwrap_used)]

#[macro_use]
#[path = "../database/mod.rs"]
mod database;

mod appends;
mod by_hand;
mod conflicts;
mod floors;
mod reads;
#[allow(dead_code, reason = "of its tests, these use a part")]
#[path = "../../../../patterns/tests/rows/log.rs"]
mod said;
mod steps;
mod subscriptions;
mod support;
mod torture;
