//! The conformance suite over WebSockets, against what `POLYBUS_SERVICEBUS_WEBSOCKET_URL` names; for the local stack
//! that is the URL in `POLYBUS_SERVICEBUS_REST_URL`. `POLYBUS_REQUIRE=servicebus` does not require this target: it
//! takes as long as the others and differs by the byte stream alone, which `tests/websocket.rs` tests.

mod by_hand;
mod over_amqp;

use std::process::ExitCode;

fn main() -> ExitCode {
    let target = over_amqp::target("servicebus-websocket-emulator", "POLYBUS_SERVICEBUS_WEBSOCKET_URL");
    let mut target = target.parameter("transport", "websocket");
    target.service = "servicebus-websocket".into();
    polybus_conformance::main_for([target])
}
