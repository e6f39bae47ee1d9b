//! The faults with their names, and the scenarios that must notice each of them.
//!
//! A line says what the driver does wrongly, names the scenarios, and makes the behaviour. The behaviours are in
//! `behaviours`.

mod consuming;
mod data;
mod entities;
mod publishing;
mod redriving;
mod strangers;

use super::Fault;

pub(super) fn all() -> Vec<Fault> {
    [
        publishing::all(),
        data::all(),
        consuming::receiving(),
        consuming::settling(),
        consuming::attempts(),
        consuming::dead_letters(),
        redriving::all(),
        entities::all(),
        strangers::all(),
    ]
    .concat()
}
