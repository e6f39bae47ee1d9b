//! The conformance suite against the emulator.

fn main() {}
