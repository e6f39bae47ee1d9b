//! An emulator of Azure Service Bus: the AMQP 1.0 server, the broker behind it and management over HTTP, in memory and in one process.
//!
//! [`Emulator::start`] starts one inside a test. The README tells the rest.

pub mod access;
pub mod amqp;
pub mod broker;
pub mod clock;
pub mod cloud;
pub mod codec;
pub mod config_json;
mod emulator;
pub mod faults;
pub mod http;
pub mod jwt;
pub mod message;
pub mod refusal;
pub mod sas;
mod shared;
mod tls;
pub mod value;
mod websocket;

pub use emulator::{Emulator, Options};
pub use shared::Shared;
pub use tls::Tls;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
