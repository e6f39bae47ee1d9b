//! The suite on the memory driver: on many threads in real time, on one thread with the clock paused, and with a
//! driver that admits to next to nothing, so that every refusal is tested.

use std::process::ExitCode;

use polybus_conformance::{ClockKind, Target, main_for, masked};
use polybus_core::driver::Capabilities;

fn bare(name: &str, topics: bool) -> Target {
    Target::memory(name, ClockKind::Paused).wrap(move |driver| {
        masked(driver, |c| {
            *c = Capabilities::default();
            c.declare = true;
            c.topics = topics;
        })
    })
}

fn main() -> ExitCode {
    main_for([
        Target::memory("memory", ClockKind::Real),
        Target::memory("memory-paused", ClockKind::Paused),
        bare("memory-bare", false),
        bare("memory-bare-topics", true),
    ])
}
