//! The suite on the memory driver: on many threads in real time, and on one thread with the clock paused.

use std::process::ExitCode;

use polybus_conformance::{Clocks, Target, main_for};

fn main() -> ExitCode {
    main_for([Target::memory("memory", Clocks::Real), Target::memory("memory-paused", Clocks::Movable)])
}
