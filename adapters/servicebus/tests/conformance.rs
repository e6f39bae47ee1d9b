//! The conformance suite against the emulator, or any namespace that `POLYBUS_SERVICEBUS_URL` names.

mod by_hand;
mod over_amqp;

use std::process::ExitCode;

fn main() -> ExitCode {
    polybus_conformance::main_for([over_amqp::target("servicebus-emulator", "POLYBUS_SERVICEBUS_URL")])
}
