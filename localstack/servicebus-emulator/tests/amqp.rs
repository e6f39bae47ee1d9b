//! The AMQP server, seen by a client that says exactly what a test wants said.

#[path = "amqp/access.rs"]
mod access;
#[path = "amqp/client.rs"]
mod client;
#[path = "amqp/cloud.rs"]
mod cloud;
#[path = "amqp/errors.rs"]
mod errors;
#[path = "amqp/liveness.rs"]
mod liveness;
#[path = "amqp/requests.rs"]
mod requests;
#[path = "amqp/sessions.rs"]
mod sessions;
#[path = "amqp/settlement.rs"]
mod settlement;
#[path = "amqp/support.rs"]
mod support;
#[path = "amqp/transfers.rs"]
mod transfers;
#[path = "amqp/websockets.rs"]
mod websockets;
