//! The core of polybus: envelope, portable types, driver traits, worker and the memory driver.
//!
//! Applications use the crate `polybus`, which has the same names in the same places. Adapter authors begin with
//! [`driver`].
//!
//! | chapter | what lives there |
//! |---|---|
//! | [`message`] | what is sent: the envelope, its headers, typed payloads, and CloudEvents on the wire |
//! | [`topology`] | queues, topics and subscriptions, and what each of them is at the broker |
//! | [`config`] | the configuration file |
//! | [`publish`] | publishing, batched and repeated |
//! | [`consume`] | receiving deliveries and settling them |
//! | [`worker`] | a handler for each message, with retries and dead letters |
//! | [`redrive`] | moving dead letters back |
//! | [`driver`] | what an adapter implements, and parts to build it from |
//! | [`memory`] | the broker in this process |
//! | [`telemetry`] | spans, metrics and trace context |
//! | `testing` | a bus for tests, with the feature `testing` |
//!
//! A message that is published goes from [`Bus`] through [`publish`] to the [`driver::Sender`] of its address. One that
//! is received comes from a [`driver::Receiver`] through [`consume`] to the application or its [`worker`], and what
//! becomes of it goes back to the [`driver::Settler`].
//!
//! ```
//! use std::sync::Arc;
//! use polybus_core::{Address, Bus, BusOptions, Envelope, QueueSpec, Source, Topology, memory::MemoryDriver};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> polybus_core::Result<()> {
//! let topology = Topology::new().queue("payments", QueueSpec::new());
//! let bus = Bus::new(Arc::new(MemoryDriver::new()), BusOptions::topology(topology))?;
//! bus.declare().await?;
//! bus.publish(Address::queue("payments"), Envelope::new("payment.made", "{}")).await?;
//!
//! let mut payments = bus.subscribe(Source::queue("payments")).open().await?;
//! if let Some(delivery) = payments.next().await {
//!     delivery?.ack().await?;
//! }
//! bus.close().await?;
//! # Ok(()) }
//! ```

#![cfg_attr(docsrs, feature(doc_cfg))]

mod batching;
mod bus;
#[cfg(feature = "config")]
#[cfg_attr(docsrs, doc(cfg(feature = "config")))]
pub mod config;
mod connection;
pub mod consume;
pub mod driver;
mod error;
pub mod memory;
pub mod message;
pub mod publish;
pub mod redrive;
mod registry;
mod runtime;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
#[cfg_attr(docsrs, doc(cfg(feature = "testing")))]
pub mod testing;
pub mod topology;
pub mod worker;

pub use bus::{Bus, BusOptions};
#[cfg(feature = "config")]
pub use config::Config;
pub use consume::{Delivery, SettleError, Subscription};
pub use error::{Error, ErrorKind, Result, RetrySafety};
pub use message::{Envelope, Event, Headers, Outgoing, Receipt};
pub use publish::Publisher;
pub use registry::Registry;
pub use runtime::clock;
pub use time;
pub use topology::{Address, QueueSpec, Source, SubscriptionSpec, TopicSpec, Topology};
pub use worker::{Handler, HandlerContext, HandlerError, RetryPolicy, stateful};
