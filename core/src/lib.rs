//! The core of polybus: envelope, portable types, driver traits, worker and the memory driver.
//!
//! Applications use the `polybus` crate; adapter authors implement [`Driver`], [`Sender`], [`Receiver`] and [`Settler`].

mod bus;
mod config;
mod connection;
mod consume;
mod driver;
mod error;
pub mod memory;
mod message;
mod publish;
mod redrive;
mod registry;
mod runtime;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod topology;
mod worker;

pub use async_trait::async_trait;
pub use bus::{Bus, BusOptions};
pub use config::{BusConfig, Config};
pub use consume::delivery::{Delivery, SettleError};
pub use consume::{SubscribeBuilder, Subscription};
pub use driver::capabilities::{Capabilities, Durability, Hold, Ordered};
pub use driver::layer::DriverLayer;
pub use driver::{
    Batching, DeadLetter, Driver, Prepared, Received, Receiver, Sender, Settle, Settlement, Settler, Token, lock_margin,
};
pub use error::{Error, Kind, Result, Retry};
pub use message::envelope::{Envelope, FOREIGN, Parts};
pub use message::event::{Codec, Event, Json};
pub use message::headers::Headers;
pub use message::outgoing::{Outgoing, Receipt};
pub use publish::{Publisher, Publishing, PublishingAll};
pub use redrive::{Ended, Guard, Letter, Sift, Sifted, Verdict};
pub use registry::{ConnectUrl, Connector, Registry};
pub use runtime::clock::{Clock, SystemClock, TokioClock};
pub use topology::adapter_options::Options;
pub use topology::address::{Address, Source};
pub use topology::entity::{DeclareMode, DeclareReport, Difference, Entity, Plan, Settings, Stats};
pub use topology::type_filter::{TypeFilter, Unwanted};
pub use topology::{QueueSpec, SubscriptionSpec, TopicSpec, Topology};
pub use worker::context::Context;
pub use worker::handler::{Handler, HandlerError, with};
pub use worker::retry_policy::RetryPolicy;
pub use worker::runner::Request;
pub use worker::{WorkerBuilder, WorkerReport};

// For adapters, under the names that they know them by.
pub use driver::kit::{lease, prefetched as inbox, reconnect as attempt, size};
pub use message::{cloudevents, headers};
pub use runtime::duration;
pub use topology::names;
