//! The driver over AMQP 1.0, over TCP or WebSockets.
//!
//! Everything goes over one connection ([`connection`]), whose stream passes the [`sanitizer`] first. Each link
//! ([`link`]) has an AMQP session of its own. [`rpc`] makes requests over a pair of links: to `$cbs` for tokens, and to
//! `$management` ([`management`]) for settlements and schedules.
//!
//! - Out: [`sender`] encodes a message, and [`send_link`] transfers it with others as one batch.
//! - In: [`receive_task`] reads a link into a buffer, from which [`receiver`] hands messages to core. Sources in order
//!   have a link for each session instead: [`sessions`].
//! - Settled: [`settler`] sends settlements to `$management` ([`locks`]), and for retries and redrives sends copies
//!   first ([`copies`]). What receiver and settler share is in [`consumer`].

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
