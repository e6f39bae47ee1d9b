//! The core of polybus: envelope, portable types, driver traits, worker and the memory driver.
//!
//! Applications use the `polybus` crate, which has the same names at the same places; adapter authors start at [`driver`].

mod batching;
mod bus;
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
pub mod testing;
pub mod topology;
pub mod worker;

pub use bus::{Bus, BusOptions};
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
