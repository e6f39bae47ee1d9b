//! The driver over AMQP 1.0, bare or inside of WebSockets: links that send and receive, sessions, and the management node.

pub(crate) mod connection;
pub(crate) mod consumer;
pub(crate) mod copies;
pub(crate) mod driver;
pub(crate) mod link;
pub(crate) mod locks;
pub(crate) mod management;
pub(crate) mod purge;
pub(crate) mod receive_task;
pub(crate) mod receiver;
pub(crate) mod rpc;
pub(crate) mod sanitizer;
pub(crate) mod send_link;
pub(crate) mod sender;
pub(crate) mod sessions;
pub(crate) mod settler;
pub(crate) mod websocket;
