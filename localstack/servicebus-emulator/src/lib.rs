//! An emulator of Azure Service Bus: an AMQP 1.0 server, a broker, and management over HTTP, in memory and in one
//! process.
//!
//! [`Emulator::start`] starts one inside a test; the README shows how it is used.
//!
//! A client's bytes arrive in [`amqp`] or [`http`]. Both check the client's token with [`auth`], translate the request,
//! and call the [`broker`], which holds every queue, topic, subscription and message and knows no protocol. The broker
//! goes by the [`clock`], and both servers ask [`faults`] and [`cloud`] what they should do wrong or do as the cloud
//! does.

pub mod amqp;
pub mod auth;
pub mod broker;
pub mod clock;
pub mod cloud;
pub mod codec;
pub mod config;
mod emulator;
pub mod faults;
pub mod http;
pub mod message;
pub mod refusal;
mod shared;
mod transport;

pub use emulator::{Emulator, EmulatorOptions};
pub use shared::SharedState;
pub use transport::TlsIdentity;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
